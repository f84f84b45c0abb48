"""A deployed model trained again on reviewed answers."""
