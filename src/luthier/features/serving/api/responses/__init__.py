"""/v1/responses: OpenAI's Responses API over the same models and engines as chat completions."""
