"""SQL answers: how a query is found and written out, and made-up databases that tell queries apart."""
