"""Cost and quality loss of export formats: each measured in its own process, shown as a table and a Pareto plot."""
