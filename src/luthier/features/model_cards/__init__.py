"""A model as one looks at it: runs, evaluations, exports, names."""
