"""/v1/completions: continuations of a text, complete or streamed."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from luthier.core.stream import Ended, Piece, TextRequest, WrittenToken
from luthier.features.serving.api.answering import (
    ANSWERS,
    ChunkWriter,
    OffOnly,
    SamplingBody,
    Unsupported,
    respond,
    usage_of,
)
from luthier.features.serving.service import Answer
from luthier.platform.http.authentication import Asker, HomeContext
from luthier.platform.http.errors import ApiError

router = APIRouter(prefix="/v1/completions", tags=["completions"])

_DEFAULT_TOKENS: Final = 16
_MAX_PROMPTS: Final = 32
"""LangChain sends up to 20 in a request."""
# Fails at the first wrong element: a million errors would block the event loop.
Prompts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
TokenPrompts = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]


class CompletionBody(SamplingBody):
    """The request body. Prompts as token ids use the model's tokenizer."""

    prompt: str | Prompts | Tokens | TokenPrompts
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, ge=1)
    echo: OffOnly = None
    suffix: Unsupported = None


@router.post("", responses=ANSWERS, response_class=Response)
async def create_completion(body: CompletionBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Continue a text; with `stream` as server-sent events."""
    return await respond(
        request,
        context,
        caller,
        model=body.model,
        asked=completion_requests(body),
        words=lambda fingerprint: ChunkWriter(
            CompletionResponseBuilder(body.model, fingerprint, body.tells_usage, body.logprobs is not None)
        ),
        is_streamed=bool(body.stream),
        user=body.end_user(),
    )


def completion_requests(body: CompletionBody) -> list[TextRequest]:
    """The requests for the engine, one for each prompt.

    Raises:
        ApiError: Values that contradict each other.
    """
    # best_of above n would generate more texts than are returned.
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            400,
            f"best_of={body.best_of} with n={body.n or 1} is not supported; expected: as many as n, or none",
            param="best_of",
            code="invalid_value",
        )
    sampling, stops = body.sampling(), body.stops()
    return [
        TextRequest(
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else tuple(prompt),
            sampling=sampling,
            # 16 is OpenAI's default of this endpoint ("Create completion").
            max_new_tokens=body.max_tokens or _DEFAULT_TOKENS,
            stop=stops,
            num_choices=body.n or 1,
            num_top=body.logprobs,
        )
        for prompt in _prompts(body)
    ]


def _prompts(body: CompletionBody) -> list[str] | list[list[int]]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    if isinstance(body.prompt[0], int):
        return [body.prompt]
    return body.prompt


@dataclass(slots=True)
class CompletionResponseBuilder:
    """`text_completion`, the same object for complete responses and chunks.

    Attributes:
        model: As the request names it.
        fingerprint: Of the model that answers.
        tells_usage: Whether a stream ends with a chunk of token counts.
        tells_likelihoods: Whether log probabilities are returned.
        id: `cmpl-...`, the same in all chunks.
        created: Seconds since 1970.
    """

    model: str
    fingerprint: str
    tells_usage: bool
    tells_likelihoods: bool
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices = [
            self._choice(number, choice.text, choice.reason, choice.tokens)
            for number, choice in enumerate(answer.choices)
        ]
        return self._document(choices) | {"usage": usage_of(answer)}

    def first(self, event: Piece | Ended) -> None:  # noqa: ARG002 - a text has no role to tell
        return None

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(self._choice(piece.choice, piece.text, None, piece.tokens))

    def end(self, ended: Ended) -> dict[str, Any]:
        return self._chunk(self._choice(ended.choice, "", ended.reason, None))

    def usage(self, answer: Answer) -> dict[str, Any] | None:
        return self._document([]) | {"usage": usage_of(answer)} if self.tells_usage else None

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._document([choice]) | ({"usage": None} if self.tells_usage else {})

    def _choice(
        self, number: int, text: str, reason: str | None, tokens: list[WrittenToken] | tuple[WrittenToken, ...] | None
    ) -> dict[str, Any]:
        told = _likelihoods(tokens) if self.tells_likelihoods and tokens is not None else None
        return {"index": number, "text": text, "logprobs": told, "finish_reason": reason}

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def _likelihoods(tokens: list[WrittenToken] | tuple[WrittenToken, ...]) -> dict[str, Any]:
    return {
        "tokens": [token.chosen.token for token in tokens],
        "token_logprobs": [token.chosen.log_probability for token in tokens],
        "top_logprobs": [{one.token: one.log_probability for one in token.top} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
