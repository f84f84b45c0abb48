"""/v1/completions: continuations of a text, complete or streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, model_validator

from luthier.core.stream import Ended, Piece, TextRequest, WrittenToken
from luthier.features.serving.api.answering import (
    ANSWERS,
    ChunkWriter,
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
_MAX_PROMPTS: Final = 2048
"""As many as inputs of other routes. They are answered some at a time (`prompt_window`)."""
# Fails at the first wrong element: a million errors would block the event loop.
Prompts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
Tokens = Annotated[list[int], Field(fail_fast=True, min_length=1)]
TokenPrompts = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]


class CompletionBody(SamplingBody):
    """The request body. Prompts as token ids use the model's tokenizer."""

    prompt: str | Prompts | Tokens | TokenPrompts
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, ge=1)
    echo: bool | None = None
    # 0 only with echo: the prompt alone.
    max_tokens: int | None = Field(default=None, ge=0)
    suffix: Unsupported = None

    @model_validator(mode="before")
    @classmethod
    def _has_prompt(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("prompt") is None:
            # OpenAI begins a new document then, with a token of its own models.
            raise ValueError(
                "no prompt; expected: a text, token ids, or several of either; to begin a new text, send as prompt the "
                "token that begins one in this model, such as <|endoftext|> or <s>"
            )
        return values


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
    if body.max_tokens == 0 and not body.echo:
        message = "max_tokens=0 without echo; expected: at least 1, or echo: true for the prompt alone"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    echo: Literal["before", "alone"] = "alone" if body.max_tokens == 0 else "before"
    sampling, stops = body.sampling(), body.stops()
    return [
        TextRequest(
            text=prompt if isinstance(prompt, str) else None,
            token_ids=None if isinstance(prompt, str) else tuple(prompt),
            sampling=sampling,
            # 16 is OpenAI's default of this endpoint ("Create completion").
            max_new_tokens=_DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens),
            stop=stops,
            num_choices=body.n or 1,
            num_top=body.logprobs,
            echo=echo if body.echo else None,
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
    _starts: dict[int, int] = field(default_factory=dict)  # of choices: the characters of the prompt before them

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices = []
        for number, choice in enumerate(answer.choices):
            logprobs = self._likelihoods(number, choice.prompt, choice.tokens)
            text = choice.text if choice.prompt is None else choice.prompt.text + choice.text
            choices.append(self._choice(number, text, choice.reason, logprobs))
        return self._document(choices) | {"usage": usage_of(answer)}

    def first(self, event: Piece | Ended) -> None:  # noqa: ARG002 - a text has no role to tell
        return None

    def piece(self, piece: Piece) -> dict[str, Any]:
        prompt, tokens = (piece, ()) if piece.of_prompt else (None, piece.tokens)
        logprobs = self._likelihoods(piece.choice, prompt, tokens)
        return self._chunk(self._choice(piece.choice, piece.text, None, logprobs))

    def end(self, ended: Ended) -> dict[str, Any]:
        return self._chunk(self._choice(ended.choice, "", ended.reason, None))

    def usage(self, answer: Answer) -> dict[str, Any] | None:
        return self._document([]) | {"usage": usage_of(answer)} if self.tells_usage else None

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._document([choice]) | ({"usage": None} if self.tells_usage else {})

    def _choice(self, number: int, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _likelihoods(self, number: int, prompt: Piece | None, tokens: Sequence[WrittenToken]) -> dict[str, Any] | None:
        """Of a prompt that is returned, and of the tokens behind it."""
        if prompt is not None:
            self._starts[number] = len(prompt.text)
        if not self.tells_likelihoods:
            return None
        own = _likelihoods(tokens, self._starts.get(number, 0))
        if prompt is None:
            return own
        found = _likelihoods(prompt.tokens, 0)
        # The first token follows nothing, so that it has no likelihood (OpenAI and vLLM write null).
        found["token_logprobs"][:1], found["top_logprobs"][:1] = [None], [None]
        return {name: [*values, *own[name]] for name, values in found.items()}

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def _likelihoods(tokens: Sequence[WrittenToken], start: int) -> dict[str, list[Any]]:
    return {
        "tokens": [token.chosen.token for token in tokens],
        "token_logprobs": [token.chosen.log_probability for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [start + token.offset for token in tokens],
    }


def _top(token: WrittenToken) -> dict[str, float]:
    """The likeliest tokens by their text, and always the one that was chosen."""
    found: dict[str, float] = {}
    for one in (token.chosen, *token.top):
        # Parts of characters have one text: of these the likeliest counts.
        found[one.token] = max(one.log_probability, found.get(one.token, one.log_probability))
    return found
