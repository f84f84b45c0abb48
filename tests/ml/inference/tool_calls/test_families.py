"""Calls in the forms of Seed-OSS, MiniMax, DeepSeek V3.2 and V4, FunctionGemma, Olmo 3, Nemotron, Step-3 and others."""

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
from luthier.ml.inference.tool_calls.tagged import nested_calls
from luthier.testing.tiny import CHAT_TEMPLATE

# How a template of each family shows its form: in most, the mark is written out; DeepSeek's is put together.
SEED = '{%- set toolcall_begin_token = "<seed:tool_call>" -%}'
MINIMAX = "{%- set toolcall_begin_token = '<minimax:tool_call>' -%}"
V3_2, V4 = "{{ '<' + '｜DSML｜' + 'function_calls>' }}", "{{ '<' + '｜DSML｜' + 'tool_calls>' }}{{ m.tool_calls }}"
FUNCTION_GEMMA = "{{ '<start_function_call>call:' + name }}"
OLMO, NEMOTRON, JAMBA = "<function_calls>", "<TOOLCALL>", "<tool_calls>"
COMMAND, APERTUS = "<|START_ACTION|>", "<|tools_prefix|>"
COMMAND_R = "{{ 'Write Action: followed by a json-formatted list of actions that you want to perform' }}"
INTERN, GIGACHAT, GIGACHAT_3_1 = "<|action_start|><|plugin|>", "function call<|role_sep|>", "<|function_call|>"
STEP, MINIMAX_M3 = "<｜tool_calls_begin｜>", "{%- set mark = ']<]minimax[>[' -%}{{ mark + '<tool_call>' }}"
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
    COMMAND_R: 'Action: ```json\n[\n    {\n        "tool_name": "clock",\n        "parameters": {"a": "}"}\n    },\n'
    '    {\n        "tool_name": "get_weather",\n        "parameters": {"city": "Cremona", "days": 2}\n    }\n]\n```',
    INTERN: '<|action_start|><|plugin|>\n{"name": "clock", "parameters": {"a": "}"}}<|action_end|>'
    '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Cremona", "days": 2}}<|action_end|>',
    GIGACHAT: f"function call<|role_sep|>\n[{OBJECTS}]",
    GIGACHAT_3_1: f"<|function_call|>[{OBJECTS}]",
    STEP: "<｜tool_calls_begin｜>\n"
    + "\n".join(
        f"<｜tool_call_begin｜>function<｜tool_sep｜>{one}<｜tool_call_end｜>"
        for one in invoked("steptml:").replace("</steptml:invoke>\n<", "</steptml:invoke>|<").strip().split("|")
    )
    + "\n<｜tool_calls_end｜>",
    MINIMAX_M3: (
        '<tool_call>\n<invoke name="clock">\n<a>}</a>\n</invoke>\n<invoke name="get_weather">\n<city>Cremona</city>\n'
        "<days>2</days>\n</invoke>\n</tool_call>"
    ).replace("<", "]<]minimax[>[<"),
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
        forced.append(f"{native.begins[0]}{native.call}[{OBJECTS.split(', {')[0]}]{native.end}")
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


@pytest.mark.parametrize("width", [1, 9, 1000])
def test_each_message_of_gigachat_ends_with_a_mark_that_is_no_part_of_the_text(width: int) -> None:
    first, second = OBJECTS.split(', {"name": "get', 1)
    text = (
        f"I look.<|message_sep|>\n\nfunction call<|role_sep|>\n{first}<|message_sep|>\n\nfunction call<|role_sep|>\n"
        f'{{"name": "get{second}'
    )
    said, calls, _ = read(text, template=GIGACHAT, width=width)
    assert (said, [(name, json.loads(arguments)) for name, arguments in calls]) == ("I look.", TWO)
    assert read("It is noon.<|message_sep|>", template=GIGACHAT, width=width)[:2] == ("It is noon.", [])


ORDER = {
    "type": "object",
    "properties": {
        "customer": {"type": "integer"},
        "note": {"type": "string"},
        "lines": {"$ref": "#/$defs/lines"},
        "address": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "floor": {"type": ["integer", "null"]}},
        },
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "$defs": {
        "lines": {"type": "array", "items": {"type": "object", "properties": {"count": {"type": "integer"}}}},
    },
}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("<customer>42</customer>", {"customer": 42}),
        ("<note>a [b] c</note>", {"note": "a [b] c"}),
        (
            "<lines><item><count>3</count><sku>x-1</sku></item><item><count>4</count></item></lines>",
            {"lines": [{"count": 3, "sku": "x-1"}, {"count": 4}]},
        ),
        ("<address>\n<code>007</code>\n<floor>null</floor>\n</address>", {"address": {"code": "007", "floor": None}}),
        ("<tags></tags><address></address>", {"tags": [], "address": {}}),
        ("<tags><item>12</item></tags>", {"tags": ["12"]}),
        ("<other><item>x</item></other>", {"other": ["x"]}),
        ("", {}),
    ],
)
def test_values_of_minimax_m3_may_have_elements_of_their_own(written: str, value: object) -> None:
    text = f'<invoke name="order">\n{written}\n</invoke>\n'.replace("<", "]<]minimax[>[<")
    assert nested_calls(text, {"order": ORDER}, "]<]minimax[>[") == [("order", value)]


def test_tags_without_their_mark_belong_to_a_value() -> None:
    text = '<invoke name="order"><note>'.replace("<", "#<") + "<b>a</note> < b #</note>#</invoke>"
    assert nested_calls(text, {"order": ORDER}, "#") == [("order", {"note": "<b>a</note> < b "})]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "words",
        'words#<invoke name="order">#</invoke>',
        '#<invoke name="order">',
        '#<invoke name="order">#<note>a#</invoke>#</note>',
        '#<invoke name="order">#<note>a#</note> b#</invoke>',
        '#<invoke name="order">#<note>a#<b>c#</b>#</note>#</invoke>',
        "#<invoke>#</invoke>",
        '#<call name="order">#</call>',
        '#<invoke name="order">' + "#<a>" * 5_000 + "#</a>" * 5_000 + "#</invoke>",
    ],
    ids=range(10),
)
def test_elements_that_do_not_fit_together_make_no_call(text: str) -> None:
    assert nested_calls(text, {"order": ORDER}, "#") is None
