"""Models as judges of answers: what they are asked, how their replies are read, and what they are biased by."""
