"""Answers that are a list of calls as Python writes it, as Llama 4 does."""

from __future__ import annotations

import json

import pytest
from tests.ml.inference.tool_calls.reading import asked, read

from luthier.ml.inference.tool_calls.call_spans import CallSpans
from luthier.ml.inference.tool_calls.forms import form_of

JSON_CALLS = "<|python_start|>{{ name }} {{ '\"parameters\": ' }}"
AS_PYTHON = "You MUST put it in the format of [func_name1(params_name1=params_value1, ...), func_name2(params)]"


@pytest.mark.parametrize("width", [1, 6, 1000])
@pytest.mark.parametrize("template", ["python_tag", JSON_CALLS, AS_PYTHON], ids=["3", "4", "asked"])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[get_weather(city='Cremona', days=2)]", [("get_weather", {"city": "Cremona", "days": 2})]),
        ('\n[ clock(), get_weather(city="It\'s [so]") ]\n', [("clock", {}), ("get_weather", {"city": "It's [so]"})]),
        ('{"name": "clock", "parameters": {"a": 1}}', [("clock", {"a": 1})]),
    ],
)
def test_an_answer_that_is_a_list_of_calls_is_read(template: str, text: str, calls: list[object], width: int) -> None:
    said, found, _ = read(text, template=template, width=width)
    assert (said, [(name, json.loads(arguments)) for name, arguments in found]) == ("", calls)


@pytest.mark.parametrize("width", [1, 6, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "[get_weather] is a tool.",
        "[1, 2]",
        "[]",
        "[",
        "[clock(1)]",
        "[clock()",
        "[clock()] and more",
        "[clock(), rm()]",
        "[rm()]",
        "So: [clock()]",
        '[{"name": "clock", "parameters": {}}]',
    ],
)
def test_what_only_looks_like_a_list_of_calls_stays_text(text: str, width: int) -> None:
    assert read(text, template=AS_PYTHON, width=width)[:2] == (text, [])


def test_text_that_begins_with_a_bracket_is_not_held_back() -> None:
    reader = form_of(AS_PYTHON).reader(asked())
    assert [reader.add(part)[0] for part in ("[", "see", " below", "]")] == ["", "", "[see below", "]"]


def test_only_the_first_call_is_read_where_one_is_allowed() -> None:
    found = read("[clock(a=1), clock(a=2)]", template=AS_PYTHON, request=asked(calls_in_parallel=False))
    assert found[:2] == ("", [("clock", '{"a": 1}')])


def test_no_character_of_a_list_of_calls_is_of_the_text() -> None:
    spans = CallSpans(form_of(AS_PYTHON).reader(asked()))
    text = "[clock(a=1)]"
    assert spans.add(text) == ("", [])
    said, (call,) = spans.end()
    assert (said, call.name, spans.kinds(0)) == ("", "clock", bytes(len(text)))
