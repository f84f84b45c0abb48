"""Records of audits, evaluations and verdicts."""
