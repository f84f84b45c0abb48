"""Models written for other runtimes, proved equal, bundled and signed."""
