"""Training and evaluation sides, with a proof that they share nothing."""
