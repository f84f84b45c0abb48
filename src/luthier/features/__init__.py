"""One folder a noun, a vertical slice: records, store, service, command line, API, pages and templates."""
