"""Projects, keys, members and sessions: who may do what."""
