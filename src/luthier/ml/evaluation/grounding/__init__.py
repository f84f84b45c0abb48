"""Grounding of answers: their citations and claims, looked up in a corpus of documents."""
