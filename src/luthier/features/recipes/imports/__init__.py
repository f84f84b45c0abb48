"""Recipes of other tools, translated key by key."""
