"""Base models and tuned models, as a command, routes and pages."""
