"""The audit log, as a command and a page."""
