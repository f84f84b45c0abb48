"""What a deployed model is asked and answers, watched: has something changed, since when, and what to do about it."""
