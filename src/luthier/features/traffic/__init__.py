"""What deployed models are asked and answer: recorded, counted, kept or forgotten."""
