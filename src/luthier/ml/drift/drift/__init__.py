"""Has a stream of values changed? Ranks, evidence that is right at every look, PSI, and topics of texts."""
