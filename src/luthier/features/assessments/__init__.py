"""Results of suites and safety checks, stored."""
