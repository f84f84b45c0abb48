"""Usage of models by key, day and model, and its cost."""
