"""The command `luthier`, put together from all features."""
