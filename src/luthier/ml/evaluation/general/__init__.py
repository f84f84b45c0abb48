"""Questions and texts on general ability, which measure forgetting (see suite.yaml)."""
