"""Is what an answer rests on to be found? Its citations and its claims, held against a corpus of documents."""
