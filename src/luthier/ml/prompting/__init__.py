"""What a prompt can do without training: examples chosen by the prompt, instructions, and a search over both."""
