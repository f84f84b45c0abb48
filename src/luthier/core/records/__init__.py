"""Records of the other nouns."""
