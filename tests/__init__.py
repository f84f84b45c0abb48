"""Our tests: a package, since others bring one of this name."""
