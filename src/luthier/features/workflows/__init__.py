"""Workflows: work in stages that resumes where it stopped."""
