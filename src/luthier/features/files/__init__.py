"""Files of a project, as routes, and the references that callers make to them."""
