"""Detects how a chat template accepts an assistant's reasoning: the field name, and the text around it.

Measured by rendering, never by model name. Probe reasoning is passed as a message field (`reasoning_content`,
`reasoning`, `thinking`, or another that the template reads), as a content block, and as tagged text in the content,
each in an answer and in a tool call; the first way that appears in the rendered text is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Render = Callable[[list[dict[str, Any]], bool], str | None]
"""Renders message objects, with or without a generation prompt; None if the template rejects them."""
Way = Literal["field", "blocks", "content"]
PromptState = Literal["none", "open", "closed"]

FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
"""Field names of reasoning in rows and templates."""
TAGS: Final = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"),
)  # fmt: skip
"""How reasoning is written in the text of an answer."""
_OTHER_FIELD: Final = re.compile(r"^[a-z_]*(?:reason|think|thought)[a-z_]*$")
_LAST_TAG: Final = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")
_QUESTION, _THOUGHT, _ANSWER, _NEXT = "Which wood?", "Grain-first", "Spruce-wood", "Which glue?"


@dataclass(frozen=True, slots=True)
class ThoughtWriting:
    """How reasoning is written with its answer: `before`, reasoning, `between`, answer.

    Attributes:
        way: where the template reads it: the message field `field`, a content block, or the content text.
        before: the text before the reasoning.
        between: the text between reasoning and answer.
        field: name of the field; empty for the other ways.
    """

    way: Way
    before: str
    between: str
    field: str = ""

    @property
    def start(self) -> str:
        """The text that opens reasoning, without surrounding white space."""
        return self.before.strip()

    @property
    def end(self) -> str:
        """The text that closes reasoning, without surrounding white space."""
        return self.between.strip()

    def state_of(self, prompt: str) -> tuple[PromptState, int]:
        """The state of reasoning after a generation prompt, and the number of characters before it.

        `open`: it ends inside reasoning. `closed`: it ends after empty reasoning. `none`: neither.
        """
        bare = prompt.rstrip()
        if bare.endswith(self.start):
            return "open", len(bare) - len(self.start)
        if bare.endswith(self.end):
            inside = bare[: len(bare) - len(self.end)].rstrip()
            if inside.endswith(self.start):
                return "closed", len(inside) - len(self.start)
        return "none", len(prompt)

    def length_of_empty(self, text: str, state: PromptState) -> int:
        """The number of leading characters that are empty reasoning, or close reasoning that the prompt opened."""
        rest = text.lstrip()
        if state != "open":
            if not rest.startswith(self.start):
                return 0
            rest = rest[len(self.start) :].lstrip()
        if not rest.startswith(self.end):
            return 0
        return len(text) - len(rest[len(self.end) :].lstrip())


def split_thought(content: str, writing: ThoughtWriting) -> tuple[str | None, str]:
    """Reasoning and answer of content that begins with tagged reasoning; otherwise None and the content."""
    text = content.lstrip()
    for start, end in ((writing.start, writing.end), *TAGS):
        # An opening tag that is never closed is part of the answer.
        if text.startswith(start) and (at := text.find(end, len(start))) >= 0:
            return text[len(start) : at].strip() or None, text[at + len(end) :].lstrip()
    return None, content


def length_of_tagged(text: str) -> int:
    """The number of leading characters that are tagged reasoning and the white space after it."""
    bare = text.lstrip()
    for start, end in TAGS:
        if bare.startswith(start) and (at := bare.find(end)) >= 0:
            return len(text) - len(bare[at + len(end) :].lstrip())
    return 0


def measure_writing(render: Render, fields: Iterable[str], calls: list[dict[str, Any]]) -> ThoughtWriting | None:
    """How a template accepts reasoning; None if no way appears in the rendered text.

    Args:
        render: renders messages with the template.
        fields: the names that the template reads (`template_names`).
        calls: tool calls for a turn that calls one.
    """
    headers = list(_headers(render))
    if not headers:
        return None
    for way, name, message in _candidates(frozenset(fields), calls):
        found = _written(render, message, headers, way, name)
        if found is not None:
            return found
    return _tagged(render, headers)


def tags_of_prompts(prompts: Iterable[str]) -> ThoughtWriting | None:
    """Reasoning as tagged text of the content, if one of these generation prompts opens or closes it."""
    for prompt in prompts:
        for start, end in TAGS:
            writing = _tagged_text(start, end)
            if writing.state_of(prompt)[0] != "none":
                return writing
    return None


def _tagged_text(start: str, end: str) -> ThoughtWriting:
    return ThoughtWriting("content", f"{start}\n", f"\n{end}\n\n")


def _candidates(names: frozenset[str], calls: list[dict[str, Any]]) -> Iterator[tuple[Way, str, dict[str, Any]]]:
    others = sorted(name for name in names if _OTHER_FIELD.match(name) and name not in FIELDS)
    turn = {"role": "assistant", "content": _ANSWER}
    for extra in ({}, {"tool_calls": calls}):
        for name in (*(field for field in FIELDS if field in names), *others):
            yield "field", name, turn | extra | {name: _THOUGHT}
            if extra:
                yield "field", name, turn | extra | {name: _THOUGHT, "content": ""}
        if not extra:
            blocks = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
            yield "blocks", "", turn | {"content": blocks}


def _headers(render: Render) -> Iterator[str]:
    """The possible texts between a question and an answer without reasoning."""
    question = {"role": "user", "content": _QUESTION}
    prompt = render([question], True)
    if prompt is not None and _QUESTION in prompt:
        # rpartition: a template may repeat the question, as in a summary before the turns.
        yield prompt.rpartition(_QUESTION)[2]
    earlier = [question, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    text = render(earlier, False)
    if text is not None and _QUESTION in text and _ANSWER in text:
        yield text.rpartition(_ANSWER)[0].rpartition(_QUESTION)[2]


def _written(render: Render, message: dict[str, Any], headers: list[str], way: Way, name: str) -> ThoughtWriting | None:
    text = render([{"role": "user", "content": _QUESTION}, message], False)
    if text is None or _THOUGHT not in text or _QUESTION not in text:
        return None
    # The last occurrence, as a template may also list reasoning in a system text.
    head, _, tail = text.rpartition(_THOUGHT)
    ahead = head.rpartition(_QUESTION)[2]
    if way == "blocks" and ("'type'" in head or '"type"' in head):
        return None  # the repr of the list itself
    # The shortest: a header that contains the opening tag must not hide it.
    common = min(_common(ahead, header) for header in headers)
    # Another tag may begin as the one that opens the thought does: `</think>` in a prompt beside `<think>` in a turn.
    opened, closed = (max(ahead.rfind(mark, 0, common) for mark in marks) for marks in ("<[", ">]"))
    common = opened if opened > closed else common
    before = ahead[common:]
    if not before.strip():
        tag = _LAST_TAG.search(ahead)
        before = tag.group() if tag else ""
    # templates differ in whether content or calls come first
    between = _closing_of(tail) if message.get("tool_calls") else tail.partition(_ANSWER)[0]
    return ThoughtWriting(way, before, between, name) if before.strip() and between.strip() else None


def _closing_of(tail: str) -> str:
    """The end of reasoning before a call: the first tag, with the white space around it."""
    found = re.match(r"\s*(?:<[^<>\s]+>|\[[^\[\]\s]+\])\s*", tail)
    return found.group() if found else ""


def _tagged(render: Render, headers: list[str]) -> ThoughtWriting | None:
    """Reasoning as text of the content: if a prompt opens it, or earlier turns lose theirs."""
    question, following = {"role": "user", "content": _QUESTION}, {"role": "user", "content": _NEXT}
    for start, end in TAGS:
        writing = _tagged_text(start, end)
        if writing.state_of(headers[0])[0] != "none":
            return writing
        content = f"{writing.before}{_THOUGHT}{writing.between}{_ANSWER}"
        answer = {"role": "assistant", "content": content}
        # Many templates remove reasoning from earlier turns alone: the turn is probed in the middle and at the end.
        for turns in ([question, answer, following, answer | {"content": _NEXT}], [question, answer]):
            text = render(turns, False)
            if text is not None and _ANSWER in text and _THOUGHT not in text:
                return writing
    return None


def _common(one: str, other: str) -> int:
    """The length of the common prefix of two texts."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
