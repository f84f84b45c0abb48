"""What is seen of a deployed model once people use it."""
