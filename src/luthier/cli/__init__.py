"""The command line: one file a verb. Parses, calls the service, renders; heavy imports wait."""
