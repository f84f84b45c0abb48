"""Rows that say which of two completions is better, or whether one is good, become conversations.

Sources: TRL's dataset formats (explicit and implicit prompt; unpaired preference); LLaMA-Factory's preference rows in
the ShareGPT format (each side one turn); OpenAI's guide to direct preference optimisation (input, preferred_output,
non_preferred_output; an earlier reference has preferred_completion); the dialogues of Bai et al., 2022, "Training a
Helpful and Harmless Assistant", arXiv:2204.05862, which are one text with turns that begin with "\\n\\nHuman: " and
"\\n\\nAssistant: ".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, EmptyAnswerError, check_text, name_of_type
from luthier.ml.data.files.untrusted_input import StrictJsonError, strict_loads
from luthier.ml.data.rows.chat_rows import (
    as_context,
    check_learnable,
    completion_of,
    judged_of,
    parse_messages,
    prompt_of,
    turns_in_text,
    with_system,
)
from luthier.ml.data.rows.row_tools import parse_tools, tools_of
from luthier.ml.data.rows.sharegpt_rows import openai_turns
from luthier.ml.inference.models.templates.thought_writing import FIELDS

CHOSEN: Final = ("chosen", "preferred_output", "preferred_completion")
REJECTED: Final = ("rejected", "non_preferred_output", "non_preferred_completion")
_TURN: Final = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}


def preference_sides(fields: dict[str, Any]) -> tuple[Conversation, Conversation]:
    """The conversation that ends with the chosen completion and the one that ends with the rejected one.

    Both have the same prompt: the row's own, or all turns that both sides begin with.

    Raises:
        BadFieldError: a side is absent or empty, both say the same, or they answer different prompts.
    """
    names = _name(fields, CHOSEN), _name(fields, REJECTED)
    fields = fields | {name: _as_messages(name, fields[name]) for name in ("prompt", *names) if name in fields}
    tools = tools_of(fields)
    if isinstance(fields.get("input"), dict) and fields.get("prompt") is None:
        given: dict[str, Any] = fields["input"]
        prompt = _context("input.messages", given.get("messages"))
        tools = tools or tools_of(given, "input.")
        sides = [_completion(name, fields[name]) for name in names]
    elif fields.get("prompt") is not None:
        # As tables have them: both sides may repeat the prompt, which is compared turn by turn.
        written = {name: turns_in_text(name, fields[name]) for name in ("prompt", *names)}
        fields = {**fields, **written}
        prompt = prompt_of(fields)
        sides = [_completion(name, _after_prompt(name, fields[name], fields["prompt"])) for name in names]
    else:
        prompt, sides = _implicit(names, [_turns(name, fields[name]) for name in names])
    if _said(sides[0]) == _said(sides[1]):
        raise BadFieldError(names[1], fields[names[1]], f"says the same as {names[0]}: there is nothing to prefer")
    chosen, rejected = (
        Conversation(messages=with_system((*prompt, *side), fields.get("system")), tools=tools) for side in sides
    )
    return chosen, rejected


def unpaired_conversation(fields: dict[str, Any]) -> tuple[Conversation, bool]:
    """The conversation of a row of prompt, completion and label, and whether its completion is desired.

    Raises:
        BadFieldError: a field is absent or wrong, or the label is neither true nor false.
    """
    fields = fields | {name: _as_messages(name, fields[name]) for name in ("prompt", "completion") if name in fields}
    messages = with_system((*prompt_of(fields), *completion_of(fields, "completion")), fields.get("system"))
    check_learnable("completion", messages)
    return Conversation(messages=messages, tools=parse_tools("tools", fields.get("tools"))), _label(fields)


def _as_messages(field: str, value: Any) -> Any:
    """Turns of ShareGPT (`from` and `value`) as messages, and a side that is one turn as a list; others unchanged."""
    turns = [value] if isinstance(value, dict) and not value.keys().isdisjoint(("from", "role")) else value
    if isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns):
        return openai_turns(field, turns)
    return turns


def has_sides(fields: Mapping[str, Any]) -> bool:
    """Whether a row has both completions of a preference, by any of their names."""
    return all(any(fields.get(name) is not None for name in names) for names in (CHOSEN, REJECTED))


def lacks_prompt(fields: Mapping[str, Any]) -> bool:
    """Whether both completions of a preference are answers alone, and the row has no field `prompt`."""
    if fields.get("prompt") is not None or isinstance(fields.get("input"), dict):
        return False
    sides = [
        next((fields[name] for name in names if fields.get(name) is not None), None) for names in (CHOSEN, REJECTED)
    ]
    return all(
        isinstance(side, str) and _TURN.match(side) is None and not side.lstrip().startswith("[") for side in sides
    )


def _name(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    found = next((name for name in names if fields.get(name) is not None), None)
    if found is None:
        raise BadFieldError(names[0], ABSENT, f"is absent or null (also looked for: {', '.join(names[1:])})")
    return found


def _label(fields: Mapping[str, Any]) -> bool:
    """True or false; also the numbers and words that `judged_of` knows."""
    value = fields.get("label", ABSENT)
    if (wanted := judged_of(value)) is not None:
        return wanted
    raise BadFieldError("label", value, "is not true or false, which says whether the completion is a good one")


def _completion(field: str, value: Any) -> tuple[Message, ...]:
    """The turns of one side after the prompt: answers of the assistant, with turns of tools between them."""
    messages = completion_of({field: value}, field)
    if not messages:
        raise EmptyAnswerError(field, value)
    # Each turn with the one before it; None before the first.
    for index, (message, before) in enumerate(zip(messages, (None, *messages), strict=False)):
        if message.role == "assistant" and before is not None and before.role == "assistant":
            raise BadFieldError(f"{field}[{index}]", message.content, "is a second answer in a row: one is preferred")
    check_learnable(field, messages)
    return messages


def _context(field: str, value: Any) -> tuple[Message, ...]:
    messages = parse_messages(field, as_context(_listed(field, value)))
    if not messages or messages[-1].role == "assistant":
        raise BadFieldError(field, ABSENT, "ends with no turn that could be answered")
    return messages


def _listed(field: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = strict_loads(value)
        except StrictJsonError as error:
            raise BadFieldError(field, value, f"is text that is not a list of messages: {error.reason}") from error
    if not isinstance(value, list):
        raise BadFieldError(field, ABSENT if value is None else value, f"is {name_of_type(value)}, not a list of turns")
    return value


def _after_prompt(field: str, side: Any, prompt: Any) -> Any:
    """A side without the prompt, where it is a list that repeats it before the completion."""
    if not isinstance(side, list) or not side or not isinstance(side[0], dict):
        return side
    if side[0].get("role") in ("assistant", "tool"):
        return side
    # TRL's explicit prompt may come with sides that repeat it: compare turn by turn before cutting it off.
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if [_plain(turn) for turn in side[: len(before)]] != [_plain(turn) for turn in before]:
        raise BadFieldError(field, _plain(side[0])[1], "answers another prompt than the row's")
    return side[len(before) :]


def _implicit(
    names: Sequence[str], sides: Sequence[list[Any]]
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The turns that both sides begin with, and what follows in each."""
    num = 0
    # The common beginning is the prompt; the first differing turn must be an answer on both sides.
    while num < min(map(len, sides)) and _plain(sides[0][num]) == _plain(sides[1][num]):
        num += 1
    first_answers = [_plain(side[num])[0] if num < len(side) else "nothing" for side in sides]
    if num and first_answers == ["nothing", "nothing"]:
        raise BadFieldError(names[1], ABSENT, f"says the same as {names[0]}: there is nothing to prefer")
    if num == 0 or any(role != "assistant" for role in first_answers):
        place = " and ".join(f"{name} with {role}" for name, role in zip(names, first_answers, strict=True))
        reason = f"answers another prompt than {names[0]}: after {num} common turns {place} continues"
        raise BadFieldError(names[1], ABSENT, reason)
    prompt = _context(names[0], sides[0][:num])
    return prompt, [_completion(name, side[num:]) for name, side in zip(names, sides, strict=True)]


def _turns(field: str, value: Any) -> list[Any]:
    """A whole conversation as a list of message objects."""
    if not isinstance(value, str):
        return _listed(field, value)
    found = list(_TURN.finditer(check_text(field, value)))
    # Text before the first speaker belongs to no turn, and would be lost.
    if found and not value[: found[0].start()].strip():
        ends = [match.start() for match in found[1:]] + [len(value)]
        return [
            {"role": _ROLES[match.group(1)], "content": value[match.end() : end].strip()}
            for match, end in zip(found, ends, strict=True)
        ]
    if value.lstrip().startswith("["):
        return _listed(field, value)
    reason = (
        "is one text, of which the prompt is not known: give the row a prompt, or write both sides as lists of "
        "messages, or as turns that begin with Human: and Assistant: after a blank line"
    )
    raise BadFieldError(field, value, reason)


def _plain(turn: Any) -> tuple[Any, ...]:
    """What makes two raw turns the same."""
    if not isinstance(turn, dict):
        return ("no turn", turn)
    content = turn.get("content")
    text = content.strip() if isinstance(content, str) else content
    thoughts = tuple(turn.get(name) for name in FIELDS)
    return (turn.get("role"), text, turn.get("tool_calls"), turn.get("tool_call_id"), *thoughts)


def _said(messages: Sequence[Message]) -> list[Any]:
    return [(m.role, (m.content or "").strip(), m.tool_calls, (m.reasoning or "").strip()) for m in messages]
