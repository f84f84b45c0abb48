"""A new run: choices, form, plan as it changes."""
