"""Clients of others; a package, so that the server of its files ends with the last of them."""
