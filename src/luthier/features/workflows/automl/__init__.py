"""From a file and a goal to a judged model."""
