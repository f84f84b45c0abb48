"""The playground's form: what was said so far with each model, what is said next, and how answers are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import Field, TypeAdapter, ValidationError
from starlette.datastructures import FormData

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.stream import Sampling, TextRequest
from luthier.features.serving.service import new_seed

MAX_SIDES: Final = 2
MAX_TURNS: Final = 200
MAX_CHARACTERS: Final = 400_000
"""Of a conversation, all turns together."""
_MAX_STOPS: Final = 4
_MAX_STOP_CHARACTERS: Final = 1024
DEFAULTS: Final = {
    "system": "", "temperature": "0.7", "top_p": "1", "max_tokens": "256", "seed": "", "stop": "", "effort": "",
}  # fmt: skip
EFFORTS: Final = {"": "as the model was trained", "none": "none", "low": "low", "medium": "medium", "high": "high"}
"""How much a model is to think, by the value of the field; what it means is the chat template's."""


class Turn(FrozenModel):
    """One turn of a conversation.

    Attributes:
        role: Who says it.
        content: What is said.
        facts: Of an answer, its tokens and times, as text.
        exchange_id: Of an answer, its id in the traffic log.
        thumb: That was given to an answer.
        thought: Written before the answer; it is shown, and not sent back to the model.
    """

    role: Literal["user", "assistant"]
    content: str
    facts: str = Field(default="", max_length=300)
    exchange_id: str = Field(default="", max_length=128)
    thumb: Literal["", "up", "down"] = ""
    thought: str = ""


_TURNS: Final[TypeAdapter[tuple[Turn, ...]]] = TypeAdapter(tuple[Turn, ...])


@dataclass(slots=True)
class Side:
    """A model and the conversation with it. error: what the last ask came to, where it failed."""

    model: str = ""
    turns: list[Turn] = field(default_factory=list)
    error: Exception | None = None

    def as_json(self) -> str:
        """The conversation for a hidden field, in signs that no page shows in another way."""
        return json.dumps([turn.model_dump() for turn in self.turns])

    def ask_next(self, message: str) -> None:
        """Say something; a question that was never answered gives way to it."""
        # Its model had failed; two questions in a row would not fit the chat template.
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()
        self.turns.append(Turn(role="user", content=message))

    def ask_again(self) -> bool:
        """Take the last answer back; returns whether there is a question to be answered."""
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
        return bool(self.turns)


def sides_of(form: FormData) -> list[Side]:
    """The models and what was said with each. Raises RequestError."""
    # A field may come as a file, which is not text.
    models = [text for text in form.getlist("model") if isinstance(text, str)][:MAX_SIDES]
    talks = [text for text in form.getlist("talk") if isinstance(text, str)][:MAX_SIDES]
    # A side that has said nothing yet may have no field.
    talks += ["[]"] * (len(models) - len(talks))
    return [Side(model, _turns(stream)) for model, stream in zip(models, talks, strict=False)]


def settings_of(form: FormData) -> dict[str, str]:
    """All settings as they were written, to be shown again."""
    return {name: text_of(form, name, default) for name, default in DEFAULTS.items()}


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A field that is text; forms end lines as the web does, models as all others do."""
    found = form.get(name, default)
    return found.replace("\r\n", "\n") if isinstance(found, str) else default


def request_of(settings: Mapping[str, str], turns: Sequence[Turn]) -> TextRequest:
    """What the model is asked. Raises RequestError for a setting that cannot be."""
    seed = settings["seed"].strip()
    sampling = Sampling(
        temperature=_number(settings, "temperature", 0, 2),
        top_p=_number(settings, "top_p", 0, 1),
        # A new one each time, so that asking again gives another answer.
        seed=int(_number(settings, "seed", -(2**62), 2**62, is_whole=True)) if seed else new_seed(),
    )
    return TextRequest(
        conversation=Conversation(messages=messages_of(settings, turns)),
        sampling=sampling,
        max_new_tokens=int(_number(settings, "max_tokens", 1, 100_000, is_whole=True)),
        stop=_stops(settings["stop"]),
        reasoning_effort=_effort(settings["effort"]),
    )


def messages_of(settings: Mapping[str, str], turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The conversation, with what the model is told before it. Raises RequestError for one that is too long."""
    _check(turns, len(settings["system"]))
    begin = [Message(role="system", content=settings["system"])] if settings["system"].strip() else []
    return (*begin, *(Message(role=turn.role, content=turn.content) for turn in turns))


def _turns(text: str) -> list[Turn]:
    try:
        # The hidden field comes back from the browser, and may have been changed there.
        found = list(_TURNS.validate_json(text or "[]"))
    except ValidationError:
        raise RequestError(
            "a conversation that this page has not written",
            expected="the hidden field as the page has it",
            do="begin a new conversation",
        ) from None
    _check(found, 0)
    return found


def _check(turns: Sequence[Turn], more: int) -> None:
    num_characters = more + sum(len(turn.content) for turn in turns)
    if len(turns) > MAX_TURNS or num_characters > MAX_CHARACTERS:
        raise RequestError(
            f"a conversation of {len(turns):,} turns and {num_characters:,} characters",
            expected=f"at most {MAX_TURNS} turns and {MAX_CHARACTERS:,} characters",
            do="begin a new conversation",
        )


def _number(settings: Mapping[str, str], name: str, low: float, high: float, *, is_whole: bool = False) -> float:
    text = settings[name].strip()
    try:
        found = float(int(text)) if is_whole else float(text)
    except (ValueError, OverflowError):
        found = float("nan")
    # No comparison is true of NaN, so a text that is no number is refused here, too.
    if not low <= found <= high:
        what = "a whole number" if is_whole else "a number"
        raise RequestError(
            f"{name.replace('_', ' ')} {text[:40]!r}", expected=f"{what} from {low:,} to {high:,}", do="correct it"
        )
    # From the text again: a float cannot hold every seed of 62 bits.
    return int(text) if is_whole else found


def _effort(text: str) -> str | None:
    if text not in EFFORTS:
        raise RequestError(f"thinking {text[:40]!r}", expected=f"one of {', '.join(EFFORTS)}", do="choose one of these")
    return text or None


def _stops(text: str) -> tuple[str, ...]:
    found = tuple(line for line in text.replace("\r", "").split("\n") if line)
    if len(found) > _MAX_STOPS or any(len(stop) > _MAX_STOP_CHARACTERS for stop in found):
        raise RequestError(
            f"{len(found)} texts to stop at",
            expected=f"at most {_MAX_STOPS}, one a line, of at most {_MAX_STOP_CHARACTERS:,} characters",
            do="leave some out",
        )
    return found
