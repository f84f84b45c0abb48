"""What a format costs and what it loses: measured in processes of their own, shown as a table and a Pareto plot."""
