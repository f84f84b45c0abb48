"""Ollama's Modelfile: where the weights lie, how turns are written, and where an answer ends.

Ollama writes turns by a Go template of its own and does not run the one in the GGUF file. Ours is found by asking the
real template: where every turn is written as a fixed text, the content and a fixed text, that is what the Modelfile
says. Where it is not (turns depend on each other), it omits turns, and Ollama uses the template in the
file, where it recognises it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.core.opted_turns import AS_THEY_ARE
from luthier.ml.export.exporters.companions import Turns
from luthier.ml.export.exporters.exported_template import what_to_do
from luthier.ml.inference.models.chat_template import ChatTemplate

_MARK: Final = "\u2063content\u2063"
_ROLES: Final = ("system", "user", "assistant")
_PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def modelfile(weights: str, turns: Turns) -> str:
    """The text of a Modelfile.

    Of the generation config only settings of sampling are taken over. The token that a text begins with is left out:
    Ollama puts it there itself.

    Args:
        weights: name of the GGUF file beside it.
        turns: how the export writes and ends turns.
    """
    lines = [f"FROM ./{weights}"]
    if (written := _turns(turns.template, turns.beginning)) is not None:
        go, system = written
        lines.append(f'TEMPLATE """{go}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
    else:
        lines.append("# The chat template in the file cannot be said in Ollama's language: see chat_template.jinja.")
    lines += [f"# {note[:1].upper()}{note[1:]}." for note in by_hand_in_ollama(turns)]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in turns.stops]
    sampling = {own: turns.settings.get(name) for name, own in _PARAMETERS.items()}
    lines += [f"PARAMETER {name} {value}" for name, value in sampling.items() if _is_number(value)]
    return "\n".join(lines) + "\n"


def by_hand_in_ollama(turns: Turns) -> list[str]:
    """What users of Ollama must do, which does not run the chat template in the file."""
    if turns.opted == AS_THEY_ARE:
        return []
    return [
        "Ollama does not run the chat template in the file, so its users must do what it does: "
        + what_to_do(turns.template, turns.opted)
    ]


def _turns(template: ChatTemplate, beginning: str) -> tuple[str, str] | None:
    """The Go template, and the system text that is written where a conversation has none; None: cannot be said."""
    try:
        around = _around_each_role(template)
        if around is None:
            return None
        frames, opening = around
        system = _default_system(template, frames)
        if system is None:
            return None
    except TemplateError:
        return None
    texts = [opening, system, *(text for frame in frames.values() for text in frame)]
    # Go would read these as its own syntax; such a text is left to the template in the file.
    if any(word in text for text in texts for word in ("{{", "}}", '"""')):
        return None
    go = "".join(
        '{{ if eq .Role "' + role + '" }}' + before.removeprefix(beginning) + "{{ .Content }}" + after + "{{ end }}"
        for role, (before, after) in frames.items()
    )
    return "{{ range .Messages }}" + go + "{{ end }}" + opening, system


def _around_each_role(template: ChatTemplate) -> tuple[dict[str, tuple[str, str]], str] | None:
    """The text before and after the content of each role, and what opens the answer; None where that depends."""
    whole = _render(template, _ROLES)
    opening = _render(template, ("system", "user"), opens=True).removeprefix(_render(template, ("system", "user")))
    frames, written = {}, ""
    for position, role in enumerate(_ROLES):
        now = _render(template, _ROLES[: position + 1])
        # Each turn must append exactly its frame and content, and change nothing before.
        if not now.startswith(written) or now.count(_MARK) != position + 1:
            return None
        before, _, after = now.removeprefix(written).partition(_MARK)
        frames[role], written = (before, after), now
    # A second round: a template that writes later turns otherwise than the first shows here.
    again = ("system", "user", "assistant", "user", "assistant", "user")
    expected = "".join(frames[role][0] + _MARK + frames[role][1] for role in again)
    if written != whole or _render(template, again, opens=True) != expected + opening:
        return None
    return frames, opening


def _default_system(template: ChatTemplate, frames: Mapping[str, tuple[str, str]]) -> str | None:
    """The system text that the template writes by itself: often empty. None where it writes something else."""
    alone = _render(template, ("user",))
    before, after = frames["user"]
    own = alone.removesuffix(before + _MARK + after)
    if own == "":
        return ""
    before, after = frames["system"]
    if not (own.startswith(before) and own.endswith(after)) or own == alone:
        return None
    return own[len(before) : len(own) - len(after)]


def _render(template: ChatTemplate, roles: Sequence[str], *, opens: bool = False) -> str:
    messages = tuple(Message.model_validate({"role": role, "content": _MARK}) for role in roles)
    return template.render(Conversation(messages=messages), add_generation_prompt=opens)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
