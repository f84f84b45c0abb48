"""Sums over the tokens of a micro-batch, and their gradients, without all logits at one time."""
