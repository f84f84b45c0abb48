"""Calls in the forms of Seed-OSS, MiniMax M2, DeepSeek V3.2 and V4, FunctionGemma, Olmo 3, Nemotron and others."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tests.ml.inference.tool_calls.reading import ASK, asked, read

from luthier.ml.inference.engine_prompts import ToolFormat
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.thoughts import Thoughts
from luthier.ml.inference.tool_calls.as_text import with_tools_as_text
from luthier.ml.inference.tool_calls.forms import HERMES, form_of
from luthier.testing.tiny import CHAT_TEMPLATE

# How a template of each family shows its form: in most, the mark is written out; DeepSeek's is put together.
SEED = '{%- set toolcall_begin_token = "<seed:tool_call>" -%}'
MINIMAX = "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}"
V3_2, V4 = "{{ '<' + '｜DSML｜' + 'function_calls>' }}", "{{ '<' + '｜DSML｜' + 'tool_calls>' }}{{ m.tool_calls }}"
FUNCTION_GEMMA = "{{ '<start_function_call>call:' + name }}"
OLMO, NEMOTRON, JAMBA = "<function_calls>", "<TOOLCALL>", "<tool_calls>"
COMMAND, APERTUS = "<|START_ACTION|>", "<|tools_prefix|>"
TWO = [("clock", {"a": "}"}), ("get_weather", {"city": "Cremona", "days": 2})]
OBJECTS = (
    '{"name": "clock", "arguments": {"a": "}"}}, {"name": "get_weather", "arguments": {"city": "Cremona", "days": 2}}'
)


def invoked(mark: str = "", types: tuple[str, str] = ("", "")) -> str:
    text, other = types
    return (
        f'\n<{mark}invoke name="clock">\n<{mark}parameter name="a"{text}>}}</{mark}parameter>\n</{mark}invoke>\n'
        f'<{mark}invoke name="get_weather">\n<{mark}parameter name="city"{text}>Cremona</{mark}parameter>\n'
        f'<{mark}parameter name="days"{other}>2</{mark}parameter>\n</{mark}invoke>\n'
    )


def dsml(name: str) -> str:
    body = invoked("｜DSML｜", (' string="true"', ' string="false"'))
    return f"<｜DSML｜{name}>{body}</｜DSML｜{name}>"


TEXTS = {
    SEED: "<seed:tool_call>\n<function=clock>\n<parameter=a>}</parameter>\n</function>\n</seed:tool_call>\n"
    "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Cremona</parameter>\n<parameter=days>2</parameter>\n"
    "</function>\n</seed:tool_call>",
    MINIMAX: f"<minimax:tool_call>{invoked()}</minimax:tool_call>",
    V3_2: dsml("function_calls"),
    V4: dsml("tool_calls"),
    FUNCTION_GEMMA: "<start_function_call>call:clock{a:<escape>}<escape>}<end_function_call>"
    "<start_function_call>call:get_weather{city:<escape>Cremona<escape>,days:2}<end_function_call>",
    OLMO: '<function_calls>clock(a="}")\nget_weather(city="Cremona", days=2)</function_calls>',
    NEMOTRON: f"<TOOLCALL>[{OBJECTS}]</TOOLCALL>",
    JAMBA: f"<tool_calls>[\n{OBJECTS}\n]</tool_calls>",
    COMMAND: '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "clock", "parameters": {"a": "}"}},\n'
    '    {"tool_call_id": "1", "tool_name": "get_weather", "parameters": {"city": "Cremona", "days": 2}}\n'
    "]<|END_ACTION|>",
    APERTUS: '<|tools_prefix|>[{"clock": {"a": "}"}}, {"get_weather": {"city": "Cremona", "days": 2}}]<|tools_suffix|>',
}


@pytest.mark.parametrize("width", [1, 7, 1000])
@pytest.mark.parametrize("template", TEXTS, ids=str)
def test_two_calls_are_read_in_the_form_of_each_family(template: str, width: int) -> None:
    said, calls, _ = read(f"I look.\n{TEXTS[template]}", template=template, width=width)
    assert said.strip() == "I look."
    assert [(name, json.loads(arguments)) for name, arguments in calls] == TWO


@pytest.mark.parametrize("width", [1, 1000])
@pytest.mark.parametrize("template", TEXTS, ids=str)
def test_calls_of_a_tool_that_was_not_offered_stay_text(template: str, width: int) -> None:
    text = TEXTS[template].replace("clock", "format_disk").replace("get_weather", "format_disk")
    assert read(text, template=template, width=width)[:2] == (text, [])


@pytest.mark.parametrize("template", TEXTS, ids=str)
def test_an_answer_without_calls_is_its_text(template: str) -> None:
    for text in ("It is sunny. <b>So</b> [it] is {it}.", TEXTS[template][:20], "<"):
        assert read(text, template=template)[:2] == (text, [])


@pytest.mark.parametrize("template", TEXTS, ids=str)
def test_calls_that_a_grammar_has_forced_are_read_too(template: str) -> None:
    """Required calls are JSON between the marks of Hermes, strict ones JSON between those of the family."""
    native = form_of(template).native
    assert native is not None
    forced = [f"<tool_call>{OBJECTS.split(', {')[0]}</tool_call>"]
    if not native.leads:
        forced.append(f"{native.begins[0]}[{OBJECTS.split(', {')[0]}]{native.end}")
    for text in forced:
        said, calls, _ = read(text, template=template)
        assert (said, [(name, json.loads(arguments)) for name, arguments in calls]) == ("", TWO[:1])


def test_tools_as_text_are_described_as_before_for_all_of_these_families() -> None:
    """Rows that were trained as text stay as they are."""
    for template in TEXTS:
        assert with_tools_as_text(ASK, form_of(template)) == with_tools_as_text(ASK, HERMES)


def test_only_the_first_call_is_read_where_one_is_allowed() -> None:
    for template, text in TEXTS.items():
        found = read(text, template=template, request=asked(calls_in_parallel=False))[1]
        assert [name for name, _ in found] == ["clock"], template


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('name="days">2', 2),  # an integer by its schema
        ('name="city">2', "2"),  # an enum of texts
        ('name="city">\nCremona\n', "Cremona"),
        ('name="days" string="true">2', "2"),
        ('name="other" string="false">[1, {"a": null}]', [1, {"a": None}]),
        ('name="other" string="false">no JSON', "no JSON"),
        ('name="other">', ""),
    ],
)
def test_values_in_tags_have_the_type_that_tag_or_schema_says(written: str, value: object) -> None:
    call = f'<invoke name="get_weather"><parameter {written}</parameter></invoke>'
    text = f"<minimax:tool_call>{call}</minimax:tool_call>"
    _, ((name, arguments),), _ = read(text, template=MINIMAX)
    assert name == "get_weather"
    assert list(json.loads(arguments).values()) == [value]


@pytest.mark.parametrize(
    "text",
    [
        '<minimax:tool_call><invoke name="clock"></minimax:tool_call>',
        '<minimax:tool_call><invoke name="clock"><parameter name="a">1</invoke></minimax:tool_call>',
        '<minimax:tool_call>prose<invoke name="clock"></invoke></minimax:tool_call>',
        "<minimax:tool_call></minimax:tool_call>",
    ],
)
def test_tags_that_do_not_fit_together_stay_text(text: str) -> None:
    assert read(text, template=MINIMAX)[:2] == (text, [])


def test_special_tokens_around_text_stay_hidden_where_those_of_calls_are_shown(tiny_model: Path) -> None:
    """Cohere's models frame every answer, so that a request with tools must not show the frame."""
    tokenizer = copy.deepcopy(ChatTemplate.load(tiny_model).tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<call>", "<|START_ACTION|>").replace("</call>", "<|END_ACTION|>")
    frame = ["<|START_TEXT|>", "<|END_TEXT|>"]
    tokenizer.add_tokens([*frame, "<|START_ACTION|>", "<|END_ACTION|>"], special_tokens=True)
    template = ChatTemplate(tokenizer, "chat")
    tools = ToolFormat.of(template)
    form = tools.form(asked())
    assert form is not None
    assert tools.has_special_marks(form)
    assert tools.conversation(asked()) == ASK
    call = '<|START_ACTION|>[{"tool_name": "clock", "parameters": {}}]<|END_ACTION|>'
    ids = tokenizer.encode(f"{frame[0]}I look.{frame[1]}{call}", add_special_tokens=False)
    assert Thoughts(template).decoder(form.marks)(ids) == f"I look.{call}"
    assert "START" not in Thoughts(template).decode(ids)
