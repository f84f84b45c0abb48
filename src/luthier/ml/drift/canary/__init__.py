"""A canary held against the rest of its deployment: when it is looked at, and whether it is worse."""
