"""Fine-tune language models on your own machine."""
