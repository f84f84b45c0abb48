"""Calls in the forms of Kimi K2, DeepSeek, LFM2 and Gemma 4."""

import json

import pytest
from tests.ml.inference.tool_calls.reading import asked, read

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import TextRequest
from luthier.ml.inference.engine_prompts import ToolFormat
from luthier.ml.inference.models.templates.rendering import render_template
from luthier.ml.inference.tool_calls.as_text import with_tools_as_text
from luthier.ml.inference.tool_calls.forms import HERMES, form_of
from luthier.ml.inference.tool_calls.values import gemma_call, python_calls, python_text

KIMI, DEEPSEEK, LFM, GEMMA = (
    "<|tool_calls_section_begin|>", "<｜tool▁call▁begin｜>", "<|tool_call_start|>", "<|tool_call>call:"
)  # fmt: skip
SECTION, CALL, ARGUMENTS, END, CLOSE = (
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
)  # fmt: skip
D_SECTION, D_CALL, D_NAME, D_END, D_CLOSE = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"
)  # fmt: skip
TWO = [("clock", {"a": "}"}), ("get_weather", {"city": "Cremona", "days": 2})]


@pytest.mark.parametrize("width", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("template", "text", "said", "calls"),
    [
        (KIMI, f'I look. {SECTION}{CALL}functions.clock:0{ARGUMENTS}{{"a": "}}"}}{END}{CALL}functions.get_weather:1'
         f'{ARGUMENTS}{{"city": "Cremona", "days": 2}}{END}{CLOSE}', "I look.", TWO),
        (KIMI, f"{CALL}functions.clock:3{ARGUMENTS}{{}}{END}", "", [("clock", {})]),
        (KIMI, f"{SECTION}{CALL}functions.clock:0{ARGUMENTS}{END}{CLOSE} So.", " So.", [("clock", {})]),
        (DEEPSEEK, f'I look.{D_SECTION}{D_CALL}clock{D_NAME}{{"a": "}}"}}{D_END}{D_CALL}get_weather{D_NAME}'
         f'{{"city": "Cremona", "days": 2}}{D_END}{D_CLOSE}', "I look.", TWO),
        (DEEPSEEK, f'{D_SECTION}{D_CALL}function{D_NAME}clock\n```json\n{{"a": "}}"}}\n```{D_END}\n{D_CALL}function'
         f'{D_NAME}get_weather\n```json\n{{"city": "Cremona", "days": 2}}\n```{D_END}{D_CLOSE}', "", TWO),
        (DEEPSEEK, f"\n{D_CALL}function{D_NAME}clock\n```json\n{{}}\n```{D_END}{D_CLOSE}", "", [("clock", {})]),
        (LFM, "I look.<|tool_call_start|>[clock(a='}'), get_weather(city=\"Cremona\", days=2)]<|tool_call_end|>",
         "I look.", TWO),
        (LFM, '<|tool_call_start|>[{"name": "clock", "arguments": {"a": "}"}}, {"name": "get_weather", "arguments": '
         '{"city": "Cremona", "days": 2}}]<|tool_call_end|>', "", TWO),
        (LFM, "<|tool_call_start|>[clock()]", "", [("clock", {})]),
        (GEMMA, 'I look.\n<|tool_call>call:clock{a:<|"|>}<|"|>}<tool_call|><|tool_call>call:get_weather{city:<|"|>'
         'Cremona<|"|>,days:2}<tool_call|>', "I look.", TWO),
        (GEMMA, '<|tool_call>call:clock{"a": "}"}<tool_call|>', "", [("clock", {"a": "}"})]),
        (GEMMA, '<tool_call>{"name": "clock", "arguments": {"a": "}"}}</tool_call>', "", [("clock", {"a": "}"})]),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_form_of_their_family(template, text, said, calls, width):
    found = read(text, template=template, width=width)
    assert found[0] == said
    assert [(name, json.loads(arguments)) for name, arguments in found[1]] == calls


@pytest.mark.parametrize("width", [1, 5, 1000])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (KIMI, f"{SECTION}{CALL}functions.rm:0{ARGUMENTS}{{}}{END}{CLOSE}"),
        (KIMI, f"{SECTION} is a mark"),
        (KIMI, f"{SECTION}{CALL}functions.clo"),
        (KIMI, f"{CALL}{'x' * 300}{{}}"),
        (DEEPSEEK, f"{D_SECTION}{D_CALL}rm{D_NAME}{{}}{D_END}{D_CLOSE}"),
        (DEEPSEEK, "a <｜tool"),
        (LFM, "<|tool_call_start|>[rm(a=1)]<|tool_call_end|>"),
        (LFM, "<|tool_call_start|>[clock(a=1"),
        (LFM, "<|tool_call_start|>[clock(1)]<|tool_call_end|>"),
        (LFM, "<|tool_call_start|>[clock(a=1), rm()]<|tool_call_end|>"),
        (GEMMA, "<|tool_call>call:rm{a:1}<tool_call|>"),
        (GEMMA, "<|tool_call>call:clock{a:1"),
        (GEMMA, "<|tool_call>clock{a:1}<tool_call|>"),
    ],
)
def test_what_only_looks_like_a_call_stays_as_it_is(template, text, width):
    assert read(text, template=template, width=width)[:2] == (text, [])


def test_a_cut_call_stays_as_it_was_streamed():
    assert read(f'{D_CALL}clock{D_NAME}{{"a": [1', template=DEEPSEEK)[:2] == ("", [("clock", '{"a": [1')])
    long = f'{D_CALL}clock{D_NAME}{{"a": "a long text that takes many pieces"}}{D_END}'
    assert read(long, template=DEEPSEEK, width=4)[2] > 8


def test_only_the_first_call_is_read_where_one_is_allowed():
    text = "<|tool_call_start|>[clock(a=1), clock(a=2)]<|tool_call_end|>"
    found = read(text, template=LFM, request=asked(calls_in_parallel=False))
    assert found[:2] == ("", [("clock", '{"a": 1}')])


def test_ids_of_calls_are_never_given_twice_whatever_a_model_writes():
    one = f"{CALL}functions.clock:4{ARGUMENTS}{{}}{END}"
    reader = form_of(KIMI).reader(asked())
    _, calls = reader.add(f"{SECTION}{one}{one}{CLOSE}")
    ids = [call.call_id for call in calls if call.call_id is not None]
    assert len(ids) == len(set(ids)) == 2


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'It's late'", "It's late"),
        ("'a \\'b\\' \\n\\u00e9'", "a 'b' \né"),
        ('"""two\nlines "x" """', 'two\nlines "x" '),
        ("[1, -2.5, 'x', ]", [1, -2.5, "x"]),
        ("(True, None)", [True, None]),
        ('{"a": true, "b": [null]}', {"a": True, "b": [None]}),
        ("'\\ud83d\\ude00'", "😀"),
        ("''", ""),
    ],
)
def test_values_of_lfm_are_those_of_python(written, value):
    assert python_calls(f"[f(key={written}, other=1)]") == [("f", {"key": value, "other": 1})]


@pytest.mark.parametrize("written", ["1e999", "nan", "'open", "[1", "{1}", "key", "1_x", "'\\ud83d'x"])
def test_values_that_python_or_json_do_not_have_make_no_call(written):
    assert python_calls(f"[f(key={written})]") is None


def test_calls_are_written_as_lfm_reads_them():
    arguments = {"a": 'It\'s "late",\n(or) \\ so', "b": {"c": [1, 2.5, None, True]}, "größe": "x"}
    assert python_calls(f"[{python_text('f', arguments)}]") == [("f", arguments)]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("{}", {}),
        ('{a:<|"|>x, {y}: "z"<|"|>,b:true,c:None,d:-2.5}', {"a": 'x, {y}: "z"', "b": True, "c": None, "d": -2.5}),
        ('{a:{b:[1,<|"|>x<|"|>,{}]},<|"|>c d<|"|>:[]}', {"a": {"b": [1, "x", {}]}, "c d": []}),
        ("{a:Cremona del Garda}", {"a": "Cremona del Garda"}),
        ('{a:"x"}', {"a": "x"}),
    ],
)
def test_arguments_of_gemma_have_its_own_quotation_mark(written, arguments):
    assert gemma_call(f"call:f{written}") == [("f", arguments)]


DEEP = "[" * 50_000


def test_arguments_that_are_nested_too_deeply_make_no_call():
    assert python_calls(f"[f(a={DEEP})]") is None
    assert gemma_call(f"call:f{{a:{DEEP}}}") is None


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("deepseek-ai-DeepSeek-V3.1", D_SECTION),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", D_SECTION),
        ("google-gemma-4-31B-it", "<|tool_call>"),
    ],
)
def test_calls_are_read_as_the_template_of_their_model_writes_them(shared_data, name, mark):
    template = (shared_data / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    arguments = {"city": "Cremona", "days": 2, "note": 'It\'s "fine" {really}', "spots": ["a", {"b": None}]}
    calls = [
        {"id": f"functions.{tool}:{number}", "type": "function", "function": {"name": tool, "arguments": arguments}}
        for number, tool in enumerate(("get_weather", "clock"))
    ]
    question = {"role": "user", "content": "How is the weather?"}
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    values = {"bos_token": "<s>", "eos_token": "</s>"}
    tools = list(asked().tools) if "gemma" not in name else None  # of which each needs a description
    whole = render_template(template, [question, turn], tools=tools, values=values)
    answer = whole[whole.rindex(mark) if whole.count(mark) == 1 else whole.index(mark) :]
    for end in ("<|im_end|>", "<｜end▁of▁sentence｜>", "<|tool_response>"):
        answer = answer.rstrip().removesuffix(end)
    said, found, _ = read(answer, template=template, width=5)
    assert said.strip() == ""
    assert [(name, json.loads(one)) for name, one in found] == [("get_weather", arguments), ("clock", arguments)]


def test_tools_as_text_are_described_as_before_for_all_of_these_families():
    """Rows that were trained as text stay as they are, and so do exported templates."""
    conversation = Conversation(messages=(Message(role="user", content="Hi"),), tools=asked().tools)
    for template in (KIMI, DEEPSEEK, LFM, GEMMA):
        assert with_tools_as_text(conversation, form_of(template)) == with_tools_as_text(conversation, HERMES)


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("List of tools: [ {{ tools }}", '<|tool_call_start|>[clock(a="x"), clock()]<|tool_call_end|>'),
        ("<|tool_call|> {{ tools }}",
         '\n<|tool_call|>[{"name": "clock", "arguments": {"a": "x"}}, {"name": "clock", "arguments": {}}]'),
        ("tool_declare<|im_middle|>{{ tools }}",
         f'{SECTION}{CALL}functions.clock:0{ARGUMENTS}{{"a": "x"}}{END}{CALL}functions.clock:1{ARGUMENTS}{{}}{END}'
         f"{CLOSE}"),
        ("{{ tools }}", '\n<tool_call>{"name": "clock", "arguments": {"a": "x"}}</tool_call>\n<tool_call>{"name": '
         '"clock", "arguments": {}}</tool_call>'),
    ],
)  # fmt: skip
def test_earlier_calls_are_in_the_prompt_where_the_template_writes_tools_and_no_calls(template, written):
    calls = tuple(
        {"id": f"c{number}", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        for number, arguments in enumerate(('{"a": "x"}', "{}"))
    )
    messages = (
        Message(role="user", content="When?"),
        Message(role="assistant", content="I look.", tool_calls=calls),
        Message(role="tool", content="noon", tool_call_id="c0"),
    )
    request = TextRequest(conversation=Conversation(messages=messages, tools=asked().tools))
    made = ToolFormat(template).conversation(request)
    assert made.messages[1].content == f"I look.{written}"
    assert not made.messages[1].tool_calls
    assert made.messages[2] == messages[2]
    assert made.tools == request.tools
    # and they are read back as calls
    assert [name for name, _ in read(written, template=template)[1]] == ["clock", "clock"]
    assert ToolFormat(template + "{{ m.tool_calls }}").conversation(request) == request.conversation
