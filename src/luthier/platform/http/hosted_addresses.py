"""Addresses of OpenAI's API that this server does not have, today's and older ones, and what to do without them."""

from __future__ import annotations

import re
from typing import Final

_ELSEWHERE: Final[tuple[tuple[str, str, str], ...]] = (
    # (addresses, expected, what to do)
    (
        "responses/compact",
        "a conversation as long as it is, or without its oldest turns",
        "send truncation: auto to POST /v1/responses",
    ),
    (
        "assistants threads agents chatkit vaults decisions",
        "a conversation with a model, which this server answers",
        "send it to POST /v1/responses or POST /v1/chat/completions, with functions as tools",
    ),
    (
        "vector_stores containers skills",
        "tools of the type function, as there are no tools of the hosted service",
        "let your program search or run code, and send what it finds in a message or as the result of a tool",
    ),
    (
        "audio images videos realtime live content_provenance_checks",
        "text, which is all that models here read and write",
        "send text to POST /v1/chat/completions or POST /v1/responses",
    ),
    (
        "webhook_endpoints webhook_event_types",
        "the webhooks of this server",
        "register the address at POST /api/v1/webhooks",
    ),
    (
        "organization projects",
        "the projects, keys and usage of this server",
        "see GET /api/v1/projects, /api/v1/keys and /api/v1/usage",
    ),
    ("safety", "moderations by a classifier of this server", "send texts to POST /v1/moderations"),
    (
        "engines",
        "the model in the body of a request",
        "send model to POST /v1/completions, /v1/chat/completions or /v1/embeddings, and list them: GET /v1/models",
    ),
    ("fine-tunes", "fine-tuning jobs", "create a job: POST /v1/fine_tuning/jobs"),
    ("edits", "a chat completion", "send the text with the instruction to POST /v1/chat/completions"),
)  # fmt: skip
HOSTED_NAMES: Final = tuple(name for names, _, _ in _ELSEWHERE for name in names.split())
"""What the addresses begin with, after `/v1/`."""
_AZURE: Final = re.compile(r"(?:/v1)?/openai/(?:deployments|v1)/")


def instead_of(path: str) -> str | None:
    """What to do in place of a request to an address that only OpenAI's or Azure's service has; None for others."""
    if _AZURE.match(path):
        return (
            "expected: an address of OpenAI's API, as Azure's are others; what to do: use the client OpenAI in place "
            "of AzureOpenAI, with a base_url that ends in /v1"
        )
    own = path.removeprefix("/v1/")
    for names, expected, do in _ELSEWHERE:
        if own != path and any(own == name or own.startswith(f"{name}/") for name in names.split()):
            return f"expected: {expected}; what to do: {do}"
    return None
