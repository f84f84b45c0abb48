"""The web workshop: pages over the same services as the API, for people who would rather look than type."""
