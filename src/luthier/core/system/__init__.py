"""What the machine and its operating system need: files, locks, processes, threads."""
