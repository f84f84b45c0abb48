"""From a request to a complete plan in which every value names its source."""
