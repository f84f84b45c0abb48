"""From what was asked to what will be done: a complete plan in which every value says where it comes from."""
