"""One protocol for child processes that run code of this project: `process` in the parent, `channel` in the child."""
