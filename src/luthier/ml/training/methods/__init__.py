"""How the weights change: one file a method, found through `registry`."""
