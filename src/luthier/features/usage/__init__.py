"""What was asked of models, by key, day and model, and what it costs."""
