"""The home folder: settings, the context of a use case, logs, health."""
