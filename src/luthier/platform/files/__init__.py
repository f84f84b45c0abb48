"""Files of projects and artifacts by digest."""
