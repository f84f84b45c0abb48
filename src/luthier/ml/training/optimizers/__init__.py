"""How trained weights move: one file an update rule, found through `registry`."""
