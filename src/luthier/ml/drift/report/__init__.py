"""The page of a look at a model; it needs nothing else."""
