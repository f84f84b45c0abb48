"""Who did what, in entries that are sealed by hashes."""
