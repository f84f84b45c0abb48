"""Layers around every request: its id, its headers, its size and the host name it used."""
