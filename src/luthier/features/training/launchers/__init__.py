"""Launchers of the processes of a run: in-process, local processes, Ray, torchrun or Slurm."""
