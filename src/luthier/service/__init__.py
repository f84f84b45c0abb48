"""Use cases, one file a noun: what the CLI, the Python API and later the server all call."""
