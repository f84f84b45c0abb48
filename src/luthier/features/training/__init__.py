"""Runs of training: launched, resumed, reported."""
