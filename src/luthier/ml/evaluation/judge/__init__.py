"""Models as judges of answers: prompts, parsing of replies, and biases."""
