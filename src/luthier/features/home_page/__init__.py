"""The first page: what is going on in a project."""
