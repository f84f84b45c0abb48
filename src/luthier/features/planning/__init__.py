"""From a recipe to a plan with its price: rows, probes, quotes, budgets."""
