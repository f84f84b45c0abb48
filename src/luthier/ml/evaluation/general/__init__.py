"""Questions and texts of general ability, by which the cost of tuning is measured (see suite.yaml)."""
