"""What outlives a process: the database, its migrations, and files named by their digest."""
