"""However an answer is cut into pieces, its text and its calls are the same, in the form of every family."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ml.inference.tool_calls.reading import asked, read_parts

from luthier.core.stream import TokenLikelihood, WrittenToken
from luthier.ml.inference.tool_calls.call_spans import CallSpans
from luthier.ml.inference.tool_calls.forms import form_of

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Written:
    """How a family writes calls, apart from what the project writes itself.

    Attributes:
        template: what its template is recognised by.
        write: calls as text.
        is_json: values of any kind, not texts alone.
        has_more: text and more calls may follow.
        is_alone: one call, and nothing before it.
    """

    template: str
    write: Callable[[Sequence[Call]], str]
    is_json: bool = True
    has_more: bool = True
    is_alone: bool = False


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _document(call: Call, key: str = "arguments") -> str:
    return _json({"name": call[0], key: call[1]})


def _tags(call: Call) -> str:
    pairs = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in call[1].items())
    return f"<tool_call>\n<function={call[0]}>\n{pairs}</function>\n</tool_call>"


def _arg_keys(call: Call) -> str:
    pairs = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>\n{v}\n</arg_value>\n" for k, v in call[1].items())
    return f"<tool_call>{call[0]}\n{pairs}</tool_call>"


def _kimi(calls: Sequence[Call]) -> str:
    inside = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{_json(one)}<|tool_call_end|>"
        for number, (name, one) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"


def _deepseek(calls: Sequence[Call], before: str, behind: str) -> str:
    inside = "".join(
        f"<｜tool▁call▁begin｜>{before.format(name)}{_json(one)}{behind}<｜tool▁call▁end｜>" for name, one in calls
    )
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"


def _python(value: Any) -> str:
    return repr(value) if not isinstance(value, dict) else _json(value)


def _lfm(calls: Sequence[Call]) -> str:
    listed = [f"{name}({', '.join(f'{key}={_python(one)}' for key, one in given.items())})" for name, given in calls]
    return f"<|tool_call_start|>[{', '.join(listed)}]<|tool_call_end|>"


def _gemma_value(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_gemma_value, value)) + "]"
    return str(value)


def _gemma(calls: Sequence[Call]) -> str:
    return "".join(f"<|tool_call>call:{name}{_gemma_value(given)}<tool_call|>" for name, given in calls)


def _channels(calls: Sequence[Call]) -> str:
    begin = "<|start|>assistant<|channel|>commentary to=functions."
    return "".join(f"{begin}{name} <|constrain|>json<|message|>{_json(given)}" for name, given in calls)


FAMILIES = {
    "hermes": Written(
        "<tool_call>", lambda calls: "\n".join(f"<tool_call>\n{_document(c)}\n</tool_call>" for c in calls)
    ),
    "tags": Written("<tool_call>", lambda calls: "\n".join(map(_tags, calls)), is_json=False),
    "arg_keys": Written("<tool_call>", lambda calls: "\n".join(map(_arg_keys, calls)), is_json=False),
    "tiny": Written("<call>", lambda calls: "".join(f"<call>{_document(call)}</call>" for call in calls)),
    "mistral": Written("[TOOL_CALLS]", lambda calls: f"[TOOL_CALLS][{', '.join(map(_document, calls))}]"),
    "mistral_bare": Written(
        "[TOOL_CALLS]", lambda calls: "".join(f"[TOOL_CALLS]{c[0]}[ARGS]{_json(c[1])}" for c in calls), has_more=False
    ),
    "granite": Written("<|tool_call|>", lambda calls: f"<|tool_call|>[{', '.join(map(_document, calls))}]"),
    "gpt_oss": Written("<|channel|>commentary", _channels, has_more=False),
    "llama": Written("python_tag", lambda calls: _document(calls[0], "parameters"), has_more=False, is_alone=True),
    "kimi": Written("<|tool_calls_section_begin|>", _kimi),
    "deepseek_v3": Written(
        "<｜tool▁call▁begin｜>",
        lambda calls: _deepseek(calls, "function<｜tool▁sep｜>{}\n```json\n", "\n```"),
    ),
    "deepseek_v31": Written("<｜tool▁call▁begin｜>", lambda calls: _deepseek(calls, "{}<｜tool▁sep｜>", "")),
    "lfm": Written("<|tool_call_start|>", _lfm),
    "lfm_json": Written(
        "<|tool_call_start|>", lambda calls: f"<|tool_call_start|>[{', '.join(map(_document, calls))}]<|tool_call_end|>"
    ),
    "gemma": Written("<|tool_call>call:", _gemma),
}  # fmt: skip

# Of a value of an argument: quotes, braces and backslashes, line ends, letters of other scripts, a character of two
# UTF-16 units. Without what begins a tag, which a value in tags cannot hold.
_PLAIN = "ab {}[]()\"'\\,:=`\n\tß日😀\u2028"
_VALUE_TEXT = st.text(alphabet=_PLAIN, max_size=12)
_KEYS = st.sampled_from(["a", "note", "größe"])
_VALUES = st.recursive(
    st.one_of(st.text(alphabet=_PLAIN + "<>/", max_size=12), st.integers(-999, 999), st.booleans(), st.none(),
              st.just(2.5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_KEYS, inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip
_SAID = st.lists(st.sampled_from(["Let", "me", "look:", "a < b", "日本", "😀", '"so"', "it's"]), max_size=4).map(
    " ".join
)


@st.composite
def _answers(draw: st.DrawFn, family: Written) -> tuple[str, str, list[Call]]:
    """An answer, its text without white space, and its calls."""
    values: st.SearchStrategy[Any] = _VALUES if family.is_json else _VALUE_TEXT
    one = st.tuples(st.just("clock"), st.dictionaries(_KEYS, values, max_size=3))
    num = 1 if family.is_alone else 3
    calls = draw(st.lists(one, min_size=1, max_size=num))
    said = "" if family.is_alone else draw(_SAID)
    answer = said + family.write(calls)
    if family.has_more:
        middle, more, last = draw(_SAID), draw(st.lists(one, min_size=1, max_size=2)), draw(_SAID)
        answer += f"\n{middle}\n{family.write(more)}\n{last}"
        calls, said = calls + more, said + middle + last
    return answer, "".join(said.split()), calls


def _bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_an_answer_has_the_same_text_and_calls_however_it_is_cut(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    answer, said, calls = data.draw(_answers(family))
    cuts = sorted({0, *data.draw(st.lists(st.integers(0, len(answer)), max_size=8)), len(answer)})
    whole, by_one, in_parts = (
        read_parts(parts, family.template)[:2]
        for parts in ([answer], list(answer), [answer[a:b] for a, b in pairwise(cuts)])
    )
    assert whole == by_one == in_parts
    assert _bare(whole[0]) == said
    assert [(tool, json.loads(arguments)) for tool, arguments in whole[1]] == calls


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_likelihoods_are_those_of_the_tokens_of_the_text(name: str, data: st.DataObject) -> None:
    family = FAMILIES[name]
    answer, said, _ = data.draw(_answers(family))
    places = CallSpans(form_of(family.template).reader(asked()))
    # Tokens of one character: what they are of is the text, but for white space beside calls.
    kept: list[WrittenToken] = []
    for place, character in enumerate(answer):
        places.add(character)
        likely = TokenLikelihood(token=character, log_probability=0.0)
        kept += places.text_tokens([WrittenToken(chosen=likely, offset=place + 7)], 7, is_last=False)
    places.end()
    kept += places.text_tokens([], 7, is_last=True)
    assert _bare("".join(token.chosen.token for token in kept)) == said


def test_a_token_that_reaches_into_a_call_is_of_the_text() -> None:
    places = CallSpans(form_of("<tool_call>").reader(asked()))
    tokens = ["Well", ".<tool", "_call>", '{"name": "clock", "arguments": {', "}}", "</tool_call>", " So", ".", ""]
    kept, offset = list[str](), 0
    for number, token in enumerate(tokens):
        places.add(token)
        is_last = number == len(tokens) - 1
        if is_last:
            places.end()
        written = WrittenToken(chosen=TokenLikelihood(token=token, log_probability=-1.0), offset=offset)
        kept += [one.chosen.token for one in places.text_tokens([written], 0, is_last=is_last)]
        offset += len(token)
    assert kept == ["Well", ".<tool", " So", ".", ""]
