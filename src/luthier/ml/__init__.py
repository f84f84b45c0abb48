"""Libraries that know no home, no database and no HTTP."""
