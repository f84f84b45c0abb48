"""Data files that are elsewhere: on the hub, behind an address, in an object store."""
