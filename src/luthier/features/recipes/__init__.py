"""Recipes: read, checked, drafted."""
