"""Base models and tuned models: found, checked, resolved by name."""
