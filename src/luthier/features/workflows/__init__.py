"""Work in stages that resumes where it was stopped."""
