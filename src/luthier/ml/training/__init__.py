"""Training: one loop, into which methods and objectives plug; events out, checkpoints down."""
