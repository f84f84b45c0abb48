"""The processes that answer HTTP, put together from all features."""
