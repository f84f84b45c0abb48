"""What can be asked of chat and completions alike, and how it is refused what this server cannot do."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from luthier.core.stream import MAX_CHOICES, Sampling
from luthier.features.serving.service import new_seed
from luthier.platform.http.errors import ApiError


def _refuse(value: Any) -> None:
    if value is not None:
        raise ValueError("this server does not support this parameter: leave it out")


def _refuse_unless_off(value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError("this server does not do this: leave it out, or send false")


def _refuse_tier(value: Any) -> Any:
    if value not in (None, "auto", "default"):
        raise ValueError("this server has one tier, auto or default: leave it out")
    return value


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""A parameter of OpenAI's that is not built. Also an empty value asks for it: `web_search_options: {}` for a search."""
OffOnly = Annotated[None, BeforeValidator(_refuse_unless_off)]
"""A switch of OpenAI's that is not built: only `false` passes."""
OneTier = Annotated[str | None, BeforeValidator(_refuse_tier)]
"""A request for another tier has to learn that there is none."""
Name = Annotated[str, Field(max_length=1024)]
"""Of a user, or of a cache: it changes no answer."""


Bias = Annotated[float, Field(strict=False, ge=-100, le=100)]
MAX_BIASES: Final = 1024


class StreamOptions(BaseModel):
    """include_usage: a last chunk tells the tokens used."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: OffOnly = None


class SamplingBody(BaseModel):
    """Common to both. A key that is not known is refused, so that no wish is passed over in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1024)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: Name | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def end_user(self) -> str | None:
        """Whose ask it is, where the request says so: it decides which target of a deployment answers."""
        # `safety_identifier` is OpenAI's newer name for it; chat alone has the field.
        named: str | None = self.user or getattr(self, "safety_identifier", None)
        return named

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # A random seed: without one, OpenAI's API draws differently each time.
            seed=new_seed() if self.seed is None else self.seed,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self._biases(),
        )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias or {}
        # isdigit alone accepts other scripts' digits; ten digits and more are no token id and would overflow.
        if wrong := next((key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)), None):
            message = f"Invalid logit_bias: {wrong!r} is no token id; expected: ids of the model's own tokenizer"
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
        return tuple((int(key), value) for key, value in given.items())

    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer. Raises ApiError for more than four, an empty one, or a very long one."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or not all(0 < len(stop) <= 1024 for stop in stops):
            raise ApiError(
                400,
                "Invalid 'stop': expected up to 4 texts of 1 to 1024 characters",
                param="stop",
                code="invalid_value",
            )
        return stops
