"""The playground: chat with one model or two."""
