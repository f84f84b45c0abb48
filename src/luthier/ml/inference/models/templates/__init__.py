"""Chat templates: loading and rendering within bounds, what a model does with messages and tools, and its thoughts."""
