"""Runs in object storage: checkpoints are uploaded while a run trains, and another machine resumes from them."""
