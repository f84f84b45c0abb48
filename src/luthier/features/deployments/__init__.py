"""Names that route to models, with canary releases."""
