"""Queued work: a worker takes jobs from the database and looks after the processes that do them."""
