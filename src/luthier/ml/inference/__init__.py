"""Inference behind one interface: every engine generates text and scores likelihoods through `core.ports.Engine`."""
