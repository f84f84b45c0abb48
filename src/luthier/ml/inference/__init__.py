"""Inference behind one door: every engine writes text and scores likelihoods through `core.ports.Engine`."""
