"""Is what an answer rests on to be found? Its citations and its claims, looked up in a corpus of documents."""
