"""The engine of workflows: work in declared stages, each stored when it is done, that resumes where it stopped."""
