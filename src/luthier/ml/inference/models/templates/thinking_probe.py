"""Detects how a chat template marks reasoning, by rendering probes rather than by model family.

    reasoning_content    an answer with separate reasoning is rendered: the text before and after the reasoning (with
                         text, with a tool call, as a content block)
    content              text before one of the template's own tags disappears: the tag ends reasoning
    instructions         an option adds a system text that mentions a pair of tags
    generation prompt    whether it ends inside reasoning, or after empty reasoning

The header of an assistant turn is the common prefix of all its renderings and of the generation prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import jinja2
from jinja2 import meta, nodes

from luthier.core.errors import RequestError
from luthier.core.recipe import TemplateOption
from luthier.ml.inference.models.templates.jinja_sandbox import BoundedEnvironment
from luthier.ml.inference.models.templates.rendering import render_template
from luthier.ml.inference.models.templates.thinking import ThinkingFormat

# Made-up words, so that a match in a rendering can only be the probe.
_QUESTION, _THOUGHT, _ANSWER, _NEXT = "Qxprobe", "Txprobe", "Axprobe", "Nxprobe"
_USER: Final[dict[str, Any]] = {"role": "user", "content": _QUESTION}
_FOLLOWING: Final[dict[str, Any]] = {"role": "user", "content": _NEXT}
_LATER: Final[dict[str, Any]] = {"role": "assistant", "content": "Zxprobe"}
_CALL: Final[dict[str, Any]] = {
    "type": "function",
    "id": "call12345",
    "function": {"name": "fxprobe", "arguments": {"a": "1"}},
}
_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "fxprobe",
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "A."}}},
    },
}
_TAG: Final = re.compile(
    r"</?[A-Za-z][\w.:-]*>|\[/?[A-Z][A-Z_]*\]|<[|｜][^<>|｜\n]{1,40}[|｜]?>|<[^<>|｜\n]{1,40}[|｜]>"
)
_LISTED: Final = re.compile(r"""["']type["']: *["']text""")
_MAX_TAGS: Final = 48
_THINKS: Final = re.compile(r"think|reason", re.IGNORECASE)
_EFFORT: Final = re.compile(r"effort", re.IGNORECASE)
_GIVEN: Final = ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now")
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_WORDS: Final = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_RENDER_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip
Options = Mapping[str, Any]


def measured_format(
    template: str, special_tokens: Mapping[str, Any], options: Options | None = None
) -> ThinkingFormat | None:
    """The reasoning format of a template; None if it does not support reasoning.

    Args:
        template: Text of the template.
        special_tokens: What templates know by name, such as `eos_token`.
        options: What the template is rendered with besides the conversation, such as `enable_thinking`.
    """
    tokens = {name: str(token) for name, token in special_tokens.items() if isinstance(token, str)}
    return _measured(template, json.dumps(tokens, sort_keys=True), json.dumps(dict(options or {}), sort_keys=True))


def thinking_options(template: str, special_tokens: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the boolean options that change the prompt and so turn reasoning on and off."""
    tokens = {name: str(token) for name, token in special_tokens.items() if isinstance(token, str)}
    return _switches(template, json.dumps(tokens, sort_keys=True))


def default_switches(template: str, special_tokens: Mapping[str, Any]) -> dict[str, bool]:
    """Options that turn reasoning on and off, with the template's default values.

    A runtime that sets such an option itself, as llama.cpp does, gets this value instead.
    """
    tokens = json.dumps({name: str(token) for name, token in special_tokens.items() if isinstance(token, str)})
    unset = _Probe(template, tokens, "{}").prompt
    values = {
        name: [value for value in (True, False) if _Probe(template, tokens, json.dumps({name: value})).prompt == unset]
        for name in thinking_options(template, special_tokens)
    }
    return {name: found[0] for name, found in values.items() if found}


def effort_options(template: str) -> tuple[str, ...]:
    """Names of the options for the amount of reasoning, such as `reasoning_effort`: their value is a word."""
    return tuple(name for name in _option_names(template) if _EFFORT.search(name))


def option_names(template: str) -> tuple[str, ...]:
    """The options of a template: names that it reads, except those of conversations and special tokens."""
    return _option_names(template)


def options_of(
    template: str, special_tokens: Mapping[str, Any], options: Mapping[str, TemplateOption], effort: str | None
) -> dict[str, TemplateOption]:
    """The template options of a request, including those for its reasoning effort.

    An effort is passed to the word option (`reasoning_effort`) and to the options that turn reasoning on and off:
    `none` turns them off, any other value on. A template with only the word option gets `low` for `none` and `minimal`,
    and `high` for anything above it. Options that are set by name take precedence.

    Args:
        template: Text of the template; empty for none.
        special_tokens: What templates know by name.
        options: By name, as requested.
        effort: One of `EFFORTS`; None for the default.

    Raises:
        RequestError: the template never reads an option, or has no option for an effort.
    """
    known = option_names(template)
    if unread := next((name for name in options if name not in known), None):
        raise RequestError(
            f"the template option {unread!r}",
            expected=f"options that this model's chat template reads: {', '.join(known) or 'it reads none'}",
            do="leave it out, or correct its name",
        )
    if effort is None:
        return dict(options)
    words, switches = effort_options(template), thinking_options(template, special_tokens)
    if not words and not switches and effort != "none":
        raise RequestError(
            f"reasoning_effort {effort!r}",
            expected="a model whose chat template has an option for it; this one has none",
            do="leave reasoning_effort out, or choose a model that thinks",
        )
    found: dict[str, TemplateOption] = dict.fromkeys(switches, effort != "none")
    found |= {name: _WORDS.get(effort, effort) for name in words}
    return found | dict(options)


def thinking_switches(
    template: str, special_tokens: Mapping[str, Any], *, thinks: bool | None, is_known: bool
) -> dict[str, TemplateOption]:
    """The options that turn thinking on or off for a request; an effort of the same request takes precedence.

    Args:
        template: Text of the template; empty for none.
        special_tokens: What templates know by name.
        thinks: Whether the model is to think; None leaves it to the template.
        is_known: Whether the template is known to have a place for thoughts.

    Raises:
        RequestError: thinking is requested of a template without a switch for it, an effort, or a place for thoughts.
    """
    if thinks is None:
        return {}
    switches = thinking_options(template, special_tokens)
    if thinks and not switches and not is_known and not effort_options(template):
        raise RequestError(
            "thinking, of a model whose chat template has no place for thoughts",
            expected="a model that thinks, or a request without thinking",
            do="leave thinking out, or choose a model that thinks",
        )
    return dict.fromkeys(switches, thinks)


def tags_in(texts: Sequence[str]) -> tuple[str, ...]:
    """The tags in delimiters: each may be a special token of a vocabulary."""
    return tuple(dict.fromkeys(tag for text in texts for tag in _TAG.findall(text)))


@lru_cache(maxsize=256)
def _option_names(template: str) -> tuple[str, ...]:
    # Parsed and never rendered here: names are read off the syntax tree.
    environment = BoundedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        # `{% generation %}` is a tag of transformers' own
        tree = environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template))
    except jinja2.TemplateError:
        return ()
    own = {one.name for one in tree.find_all(nodes.Name) if one.ctx in ("store", "param")}
    # an option with a default (`set x = x if x is defined else y`) is both read and assigned
    names = (meta.find_undeclared_variables(tree) - own) | _defaulted(tree)
    names -= {*_GIVEN, *environment.globals}
    return tuple(sorted(name for name in names if not name.endswith("_token")))


def _defaulted(tree: nodes.Template) -> set[str]:
    """Names that are tested for being defined, or have a default filter."""
    tested = {
        test.node.name
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
    }
    filtered = {
        one.node.name
        for one in tree.find_all(nodes.Filter)
        if one.name in ("default", "d") and isinstance(one.node, nodes.Name)
    }
    return tested | filtered


@lru_cache(maxsize=256)
def _switches(template: str, tokens: str) -> tuple[str, ...]:
    found = []
    for name in _option_names(template):
        if _THINKS.search(name) and not _EFFORT.search(name):
            on, off = (_Probe(template, tokens, json.dumps({name: value})).prompt for value in (True, False))
            if on is not None and off is not None and on != off:
                found.append(name)
    return tuple(found)


@lru_cache(maxsize=256)
def _measured(template: str, tokens: str, options: str) -> ThinkingFormat | None:
    probe = _Probe(template, tokens, options)
    if probe.prompt is None:
        return None
    # The most reliable evidence first: a field that a template reads says more than tags that merely occur in it.
    pair = _of_fields(probe) or _of_contents(probe) or _of_prompts(probe) or _of_instructions(probe)
    if pair is None:
        return None
    start, between, header = pair
    start, (end, frame) = start.strip(), _end_and_frame(between)
    answer_start = probe.answer_start(header, start)
    tail = probe.tail
    # The last opening tag in the generation prompt: an earlier one may belong to an instruction.
    place = tail.rfind(start) if start else -1
    opens = place >= 0 and end not in tail[place + len(start) :]
    return ThinkingFormat(
        start=start,
        end=end,
        prompt_opens=opens,
        prompt_closes=place >= 0 and not opens,
        answer_start=answer_start,
        answer_frame=frame,
        answer_end=probe.answer_end(frame or answer_start),
        next_start=header.strip() + start if frame.startswith(header.strip() or " ") else "",
    )


class _Probe:
    """Renders conversations with one template; None for conversations that it rejects."""

    def __init__(self, template: str, tokens: str, options: str) -> None:
        self.template, self._tokens, self.options = template, json.loads(tokens), json.loads(options)
        self._asked = (template, tokens)
        self.prompt = self.render([_USER], prompts=True)

    @property
    def switches(self) -> tuple[str, ...]:
        """Options that turn reasoning on and off."""
        return _switches(*self._asked)

    def with_option(self, name: str, value: bool) -> _Probe:
        """The same template with one option changed."""
        return _Probe(*self._asked, json.dumps(self.options | {name: value}))

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: bool = False, prompts: bool = False
    ) -> str | None:
        """The conversation as text."""
        try:
            return render_template(
                self.template,
                messages,
                tools=[_TOOL] if tools else None,
                add_generation_prompt=prompts,
                values=self._tokens | self.options,
            )
        except _RENDER_ERRORS:
            return None

    @property
    def tail(self) -> str:
        """What the generation prompt adds to the conversation."""
        return self._tail(self.prompt)

    def tails(self) -> Iterator[str]:
        """What the generation prompt adds, with reasoning on and off if the template has options for it."""
        yield self.tail
        for name in self.switches:
            for value in (True, False):
                yield self.with_option(name, value).tail

    def _tail(self, prompt: str | None) -> str:
        """What follows the question's turn."""
        asked = self.render([_USER])
        if prompt is None:
            return ""
        if asked is not None and prompt.startswith(asked):
            return prompt[len(asked) :]
        return prompt[prompt.rfind(_QUESTION) + len(_QUESTION) :]

    def behind_question(self, rendered: str | None) -> str:
        """What follows the question's turn in a rendering, if the end of that turn is known."""
        if rendered is None or self.prompt is None:
            return ""
        # Cut at the same position if the renderings agree; templates that rewrite earlier turns do not.
        start = len(self.prompt) - len(self.tail)
        return rendered[start:] if rendered[:start] == self.prompt[:start] else _behind(rendered, _QUESTION)

    def header(self, *rendered: str) -> str:
        """What assistant turns begin with: common to all renderings of one."""
        plain = [self.render([_USER, _answer()]), self.render([_USER, _answer(), _FOLLOWING])]
        known = [self.behind_question(one) for one in (*plain, *rendered) if one is not None]
        return _common([*known, *self.tails()])

    def answer_start(self, header: str, start: str) -> str:
        """The text between the header and an answer without reasoning; empty if it is an empty reasoning block."""
        plain = self.behind_question(self.render([_USER, _answer()]))
        frame = plain.partition(_ANSWER)[0]
        if not frame.startswith(header) or _ANSWER not in plain:
            return ""
        frame = frame[len(header) :].strip()
        return "" if not frame or (start and start in frame) else frame

    def answer_end(self, frame: str) -> str:
        """What closes the frame of an answer, such as `</answer>`; empty if nothing does."""
        closing = next((made for tag in _TAG.findall(frame) if (made := _closing(tag))), "")
        rendered = self.render([_USER, _answer(reasoning_content=_THOUGHT)]) or ""
        behind = _behind(rendered, _ANSWER) if _ANSWER in rendered else ""
        return closing if closing and (closing in behind or closing in (self.prompt or "")) else ""


def _answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": _ANSWER, **fields}


def _common(texts: Sequence[str]) -> str:
    """The common prefix of all texts."""
    # All texts share what the first and the last one in lexicographic order share.
    first, last = min(texts), max(texts)
    num = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:num]


def _behind(text: str, mark: str) -> str:
    return text[text.rfind(mark) + len(mark) :]


def _of_fields(probe: _Probe) -> tuple[str, str, str] | None:
    """Delimiters around reasoning in a separate message field, as (start, text after it, header)."""
    blocks = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
    for message in (_answer(reasoning_content=_THOUGHT), _answer() | {"content": blocks}):
        rendered = probe.render([_USER, message])
        # a template without block support writes the list itself
        if rendered is None or rendered.count(_THOUGHT) != 1 or _LISTED.search(rendered):
            continue
        if _ANSWER in _behind(rendered, _THOUGHT):
            between = _behind(rendered, _THOUGHT).partition(_ANSWER)[0]
            if between.strip():
                return _started(probe, rendered, between, [rendered])
    called = _answer() | {"content": "", "tool_calls": [_CALL]}
    rendered = probe.render([_USER, called | {"reasoning_content": _THOUGHT}], tools=True)
    plain = probe.render([_USER, called], tools=True)
    if rendered is None or plain is None or rendered.count(_THOUGHT) != 1:
        return None
    behind = _behind(rendered, _THOUGHT)
    # Compared from the end: the common suffix of both renderings is the call; the rest closes the reasoning.
    between = behind[: len(behind) - len(_common([behind[::-1], plain[::-1]]))]
    return _started(probe, rendered, between, []) if between.strip() else None


def _started(probe: _Probe, rendered: str, between: str, beside: Sequence[str]) -> tuple[str, str, str]:
    """Add the opening delimiter: the counterpart of the closing one, or everything after the header."""
    header = probe.header(*beside)
    before = rendered[: rendered.index(_THOUGHT)]
    # `</x>` is opened by `<x>`: more reliable than the header, which may contain the opening.
    mirrored = _mirrored(_end_and_frame(between)[0])
    if mirrored and before.rstrip().endswith(mirrored):
        return mirrored, between, header.removesuffix(mirrored)
    place = before.rfind(header) if header else -1
    return (before[place + len(header) :] if place >= 0 else _last_tag(before)), between, header


def _of_contents(probe: _Probe) -> tuple[str, str, str] | None:
    """A tag of the template that ends reasoning within the content: the text before it disappears."""
    # Without a tag the text must survive: otherwise its loss would prove nothing about tags.
    kept = probe.render([_USER, _answer() | {"content": f"{_THOUGHT} {_ANSWER}"}, _FOLLOWING, _LATER])
    if kept is None or _THOUGHT not in kept:
        return None
    for tag in _tags(probe.template):
        for opening in dict.fromkeys(("", _mirrored(tag))):
            content = f"{opening}{_THOUGHT}{tag}{_ANSWER}"
            for turns in ([_FOLLOWING], [_FOLLOWING, _LATER], []):
                rendered = probe.render([_USER, _answer() | {"content": content}, *turns])
                if rendered is not None and _ANSWER in rendered and _THOUGHT not in rendered:
                    header = probe.header()
                    mirrored = _mirrored(tag)
                    return mirrored or _last_tag(probe.tail), tag, header.removesuffix(mirrored or " ")
    return None


def _of_prompts(probe: _Probe) -> tuple[str, str, str] | None:
    """A pair of tags: the generation prompt ends with both, empty, or with the first."""
    header = probe.header()
    for tail in probe.tails():
        for found in _TAG.finditer(tail):
            closing = _closing(found.group())
            if closing and tail[found.end() :].strip() == closing:
                return found.group(), closing, header
        opened = _last_tag(tail[len(header) :])
        if opened and _closing(opened) and _closing(opened) in probe.template:
            return opened, _closing(opened), header
    return None


def _of_instructions(probe: _Probe) -> tuple[str, str, str] | None:
    """A pair of tags that the system text mentions only if reasoning is turned on."""
    for name in probe.switches:
        if not probe.options.get(name):
            continue
        off = probe.with_option(name, False).prompt or ""
        added = [tag for tag in _TAG.findall(probe.prompt or "") if tag not in off]
        pairs = [tag for tag in dict.fromkeys(added) if _closing(tag) in added]
        if pairs:
            return pairs[0], "".join([_closing(pairs[0]), *pairs[1:2]]), probe.tail
    return None


def _end_and_frame(between: str) -> tuple[str, str]:
    """The end of reasoning and the beginning of the answer: the first tag, and the rest."""
    found = _TAG.search(between)
    if found is None or between[: found.start()].strip():
        return between.strip(), ""
    return found.group(), between[found.end() :].strip()


def _tags(template: str) -> list[str]:
    return list(dict.fromkeys(_TAG.findall(template)))[:_MAX_TAGS]


def _last_tag(text: str) -> str:
    found = list(_TAG.finditer(text.rstrip()))
    return found[-1].group() if found and found[-1].end() == len(text.rstrip()) else ""


def _mirrored(closing: str) -> str:
    """The opening counterpart: `<x>` for `</x>`, `[X]` for `[/X]`; empty for other forms."""
    found = re.fullmatch(r"(<|\[|<\|)/([^/]+)", closing)
    return f"{found[1]}{found[2]}" if found else ""


def _closing(opening: str) -> str:
    found = re.fullmatch(r"(<\||<|\[)([A-Za-z].*)", opening)
    return f"{found[1]}/{found[2]}" if found else ""
