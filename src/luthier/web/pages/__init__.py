"""One file a page or a noun: reads a form, calls a service, renders a template."""
