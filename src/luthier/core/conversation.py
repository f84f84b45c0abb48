"""Conversations in OpenAI's chat format, and how a reply of a model is read.

A conversation is checked once and then trusted everywhere. `OptedTurns` are the turns that a recipe has rewritten for
templates that have no place for them. A reply is read without its thoughts, and for the JSON objects that are in it;
people see it with its calls of tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.frozen_model import FrozenModel, SparseModel
from luthier.core.json_limits import json_text, json_utf8

if TYPE_CHECKING:
    from luthier.core.plan import DataPlan
    from luthier.core.recipe import DataRecipe

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(SparseModel):
    """One turn.

    Attributes:
        role: Who speaks.
        content: The text; None for an answer of tool calls alone.
        name: The name of the speaker or of the function, as OpenAI's format has it.
        tool_calls: OpenAI's objects as they came: `{"id", "type": "function", "function": {"name", "arguments"}}`, with
            `arguments` a JSON string.
        tool_call_id: Of a tool's turn: the call that it answers.
        weight: Of an assistant's turn: 0 means "context, do not learn", 1 or None "learn".
        reasoning: What the assistant thought before its answer, separate from the answer.
        learn_reasoning: Whether this turn's thought is learned; None leaves it to the recipe.
    """

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    reasoning: str | None = None
    learn_reasoning: bool | None = None
    later_fields = ("reasoning", "learn_reasoning")

    @property
    def is_learned(self) -> bool:
        """Whether training should learn this turn."""
        return self.role == "assistant" and self.weight != 0


class Conversation(FrozenModel):
    """Turns in order, and the tools the assistant may call (OpenAI's `tools` objects).

    Attributes:
        messages: the turns, in order.
        tools: the tools that the assistant may call, as OpenAI's `tools` objects.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def up_to(self, num_messages: int) -> Conversation:
        """The conversation cut before message `num_messages` (counted from 0)."""
        return Conversation(messages=self.messages[:num_messages], tools=self.tools)

    @property
    def last_answer(self) -> int | None:
        """Index of the last assistant turn that is learned, or None."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].is_learned:
                return index
        return None


class OptedTurns(FrozenModel):
    """What is written in another way, in training and in every use of the model (`ml/inference/engine_prompts.py`).

    Attributes:
        folds_system: whether a system turn becomes part of the first user turn.
        tools_as_text: whether tools and calls are written as text.
        reasoning: whether thoughts are written as text or left out; None leaves them to the template.
    """

    folds_system: bool = False
    tools_as_text: bool = False
    reasoning: Literal["as_text", "drop"] | None = None

    @classmethod
    def of(cls, data: DataRecipe | DataPlan) -> OptedTurns:
        """As requested in a recipe, or as in the plan of a run."""
        return cls(folds_system=data.system == "fold", tools_as_text=data.tools == "as_text", reasoning=data.reasoning)


AS_THEY_ARE = OptedTurns()
"""Nothing is written in another way."""


# Each "{" may begin an object, and each is tried; replies are short, so that more are rubbish.
_MAX_BRACES: Final = 64
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
# Some templates write the opening tag themselves, so that a reply has the closing one alone.
_REST_OF_THOUGHT = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_LEADING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_OPEN_THOUGHT = re.compile(r"<(think|thinking|reasoning)>", re.IGNORECASE)


class _DuplicateKeyError(ValueError):
    pass


def without_thoughts(reply: str) -> str:
    """The reply without what is in <think> tags, and without space around it."""
    # Whole thoughts first: what is left of a closing tag then belongs to a thought without an opening one.
    return _REST_OF_THOUGHT.sub("", _THOUGHT.sub("", reply)).strip()


def split_tags(answer: str) -> tuple[str | None, str]:
    """The thought in `<think>` tags that an answer of a row begins with, and the rest; None and all of it without."""
    found = _LEADING.match(answer)
    return (None, answer) if found is None else (found[1].strip() or None, answer[found.end() :])


def ends_in_thoughts(text: str) -> bool:
    """Whether a text that `without_thoughts` has given still has thoughts, which then never ended."""
    return _OPEN_THOUGHT.search(text) is not None


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, in fences or with prose around them, and those one level down in them.

    Numbers come as the text that they were written as: 1.50 is no 1.5 in a price. Line breaks inside of strings are
    taken; an object with a key that occurs twice is passed over, since only one of the values could be kept.
    """
    decoder = json.JSONDecoder(
        # strict=False takes line breaks inside of strings, which models write. Numbers stay text.
        strict=False,
        object_pairs_hook=_without_duplicates,
        parse_float=str,
        parse_int=str,
        parse_constant=_no_constant,
    )
    position, num_tried = text.find("{"), 0
    while position >= 0 and num_tried < _MAX_BRACES:
        num_tried += 1
        try:
            document, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            # No object begins here: continue after this brace. After an object the search continues at its end.
            end = position + 1
        else:
            if isinstance(document, dict):
                yield document
                yield from _inner(document)
        position = text.find("{", end)


def _inner(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects one level down: {"pair": {...}}, {"pairs": [{...}]}."""
    for value in document.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield inner


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    # The hook sees the pairs before a dict swallows duplicates.
    if len(made) != len(pairs):
        raise _DuplicateKeyError("a key appears twice, and only one value can be kept")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def text_with_calls(text: str, calls: Iterable[Mapping[str, Any]]) -> str:
    """An answer with its tool calls as text, for people and judges who compare answers.

    Equal calls are equal texts, in whatever order and with whatever spaces a model has written their arguments.

    Args:
        text: The answer without its calls.
        calls: In OpenAI's format; what has no function is left out.
    """
    functions = [one for call in calls if isinstance(one := call.get("function"), dict)]
    named = [(json_text(str(one.get("name"))), _in_order(one.get("arguments"))) for one in functions]
    written = [f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>' for name, arguments in named]
    return "\n".join([*([text] if text else ()), *written])


def _in_order(arguments: Any) -> str:
    """Arguments with their keys in alphabetical order; as they are where they are no JSON, as of a cut answer."""
    try:
        found = json.loads(arguments or "{}") if isinstance(arguments, str) or not arguments else arguments
        return json_utf8(found, sort_keys=True).decode()
    except (ValueError, TypeError, RecursionError):
        return str(arguments)
