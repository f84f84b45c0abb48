"""What a single answer is worth, from 0 to 1: graders by OpenAI's names."""
