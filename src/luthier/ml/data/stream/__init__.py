"""Rows that are read while a run trains: shard by shard, shuffled in a buffer, tokenised on the way."""
