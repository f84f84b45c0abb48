"""From a file and a goal to an evaluated model."""
