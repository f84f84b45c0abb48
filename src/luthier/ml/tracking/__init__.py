"""Experiment trackers: TensorBoard, MLflow, Weights & Biases, Trackio, and those of other packages."""
