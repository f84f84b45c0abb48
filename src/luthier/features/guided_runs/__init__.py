"""The guided run: what for, which data, quick or better, and start; the recipe follows from the answers."""
