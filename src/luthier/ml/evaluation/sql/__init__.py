"""SQL answers: how a query is found and written out, and generated databases that distinguish queries."""
