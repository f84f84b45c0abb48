"""Base models as GGUF files: the header, and conversion into a transformers folder by a child process."""
