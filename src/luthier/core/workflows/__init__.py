"""Records of workflows and studies."""
