"""The home page: the activity of a project."""
