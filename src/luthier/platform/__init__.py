"""What every feature needs: the home, the database, jobs, processes, who may do what, HTTP, pages, the command line."""
