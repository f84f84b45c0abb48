"""The inbox: all work of a project that waits for people, with who does it and by when."""
