"""Retraining of a deployed model on reviewed answers."""
