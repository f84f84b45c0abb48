"""The pages of datasets, one file each."""
