"""The card of a dataset: Markdown with the front matter of the Hugging Face hub, and Croissant next to it."""
