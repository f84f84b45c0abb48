"""The Model Context Protocol: tools and resources for agents, over stdio and HTTP."""
