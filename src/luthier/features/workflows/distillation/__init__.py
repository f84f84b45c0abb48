"""A teacher teaches a smaller model."""
