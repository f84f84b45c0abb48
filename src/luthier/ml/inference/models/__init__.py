"""Base models: sources, loading, and chat templates."""
