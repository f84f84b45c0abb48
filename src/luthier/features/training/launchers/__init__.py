"""Who starts the processes of a run: this one, local ones, Ray, torchrun or Slurm."""
