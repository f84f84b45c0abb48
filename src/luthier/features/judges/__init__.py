"""Models that judge, and how far they agree with people."""
