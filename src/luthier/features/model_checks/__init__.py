"""Whether a base model works here, in each part, before anybody trains it."""
