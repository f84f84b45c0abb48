"""Training methods: which weights are trained and how."""
