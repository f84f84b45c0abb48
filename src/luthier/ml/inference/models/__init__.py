"""Base models: where they come from, how they load, and how a conversation becomes their text."""
