"""What is watched of a model, each as a number an exchange or an hour, and as a signal of the report."""
