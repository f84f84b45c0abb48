"""JSON, YAML, schemas and text with bounds."""
