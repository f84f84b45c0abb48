"""Child processes: started, watched, asked, ended."""
