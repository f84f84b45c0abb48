"""What stands around every request: its id, its headers, its size and the name it came by."""
