"""One file a change of the schema since 0.1.0, never edited after a release."""
