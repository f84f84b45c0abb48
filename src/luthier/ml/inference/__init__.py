"""Inference behind one interface: every engine writes text and scores likelihoods through `core.ports.Engine`."""
