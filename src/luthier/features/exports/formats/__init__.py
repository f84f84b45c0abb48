"""What each format of a model costs and what it loses."""
