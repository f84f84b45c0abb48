"""What a plug-in author needs to test against Luthier: a tiny base model, and contract suites."""
