"""OpenAI's Evals API: evals with their graders, runs over a data source, and graded output items."""
