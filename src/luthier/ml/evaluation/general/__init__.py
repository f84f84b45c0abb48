"""Questions and texts of general ability, by which it is told what tuning cost (see suite.yaml)."""
