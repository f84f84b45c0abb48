"""Models judged on held-out rows, with intervals and a verdict."""
