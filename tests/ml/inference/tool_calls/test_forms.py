import json

import pytest
from tests.ml.inference.tool_calls.reading import ASK, WEATHER, asked, read
from tokenizers import AddedToken

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.stream import Ended, Piece, Sampling, TextRequest
from luthier.ml.inference.models.loading import load_model, load_tokenizer
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.models.templates.rendering import render_template
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.tool_calls.as_text import with_tools_as_text
from luthier.ml.inference.tool_calls.forms import HERMES, form_of
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.tiny import make_tiny_model

BARE_TAGS = "<tool_call>\n<function="


@pytest.mark.parametrize("width", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("template", "text", "told", "calls"),
    [
        ("<tool_call>", 'Let me see.\n<tool_call>\n{"name": "clock", "arguments": {"a": "}"}}\n</tool_call>',
         "Let me see.", [("clock", '{"a": "}"}')]),
        ("<tool_call>", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n<tool_call>{"name": "get_weather", '
         '"arguments": {"city": "C\\"}"}}</tool_call>\n', "", [("clock", "{}"), ("get_weather", '{"city": "C\\"}"}')]),
        ("<tool_call>", '<tool_call>{"arguments": {"a": 1}, "name": "clock"}</tool_call>', "", [("clock", '{"a": 1}')]),
        ("<tool_call>", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
         '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
        ("<tool_call>", "a < b and <tool", "a < b and <tool", []),
        ("<tool_call>", "<tool_call>no json</tool_call> and more", "<tool_call>no json</tool_call> and more", []),
        ("<tool_call>", 'cut <tool_call>{"name": "clo', 'cut <tool_call>{"name": "clo', []),
        ("<tool_call>", '<tool_call>{"name": "clock", "arguments": {"a": [1', "", [("clock", '{"a": [1')]),
        ("<call>", '<call>{"name": "clock", "arguments": {}}</call>', "", [("clock", "{}")]),
        ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {"a": 1}}]',
         "", [("clock", "{}"), ("clock", '{"a": 1}')]),
        ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "clock", "arguments": {}, "id": "a,}]3456789"}, {"name": "clock", '
         '"arguments": {"a": 1}, "id": "b12345678"}]', "", [("clock", "{}"), ("clock", '{"a": 1}')]),
        ("<tool_call>", 'Well. <tool_call>{"name": "clock", "arguments": {}, "id": "1"}</tool_call>\n<tool_call>{'
         '"name": "clock", "arguments": {"a": 1}}</tool_call>', "Well.", [("clock", "{}"), ("clock", '{"a": 1}')]),
        ("<tool_call>", '<tool_call>{"name": "clock", "arguments": {}}, as I said', ", as I said", [("clock", "{}")]),
        ("<tool_call>", '<tool_call>{"name": "clock", "arguments": {}, "id": "1', "", [("clock", "{}")]),
        ("[TOOL_CALLS]", '[TOOL_CALLS]clock[ARGS]{"a": "}"}[TOOL_CALLS]get_weather[CALL_ID]abcdefgh1[ARGS]{"days": 2}',
         "", [("clock", '{"a": "}"}'), ("get_weather", '{"days": 2}')]),
        ("[TOOL_CALLS]", 'I look. [TOOL_CALLS]clock[ARGS]{"a": [1', "I look.", [("clock", '{"a": [1')]),
        ("[TOOL_CALLS]", "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]rm[ARGS]{}", []),
        ("[TOOL_CALLS]", "[TOOL_CALLS]cloc", "[TOOL_CALLS]cloc", []),
        ("<|tool_call|>", '<|tool_call|>[{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {"a": 1}}]',
         "", [("clock", "{}"), ("clock", '{"a": 1}')]),
        ("<tool_call>", "Well.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nCremona\n</parameter>\n"
         "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n"
         "</tool_call>", "Well.", [("get_weather", '{"city": "Cremona", "days": 3}'), ("clock", "{}")]),
        ("<tool_call>", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Cremona</arg_value>\n<arg_key>days"
         "</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>", "",
         [("get_weather", '{"city": "Cremona", "days": 3}'), ("clock", "{}")]),
        ("<tool_call>", "<tool_call>\n<function=rm>\n</function>\n</tool_call>",
         "<tool_call>\n<function=rm>\n</function>\n</tool_call>", []),
        ("<tool_call>", "<tool_call><function=clock> or so</tool_call>",
         "<tool_call><function=clock> or so</tool_call>", []),
        ("<tool_call>", "<tool_call>\n<function=clock>\n<parameter=a",
         "<tool_call>\n<function=clock>\n<parameter=a", []),
        (BARE_TAGS, "I look.\n<function=get_weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
         "<function=clock>\n</function>\n</tool_call> So.", "I look. So.",
         [("get_weather", '{"days": 3}'), ("clock", "{}")]),
        (BARE_TAGS, "<tool_call>\n<function=clock>\n</function>\n</tool_call>\n<function=clock>\n</function>", "",
         [("clock", "{}"), ("clock", "{}")]),
        (BARE_TAGS, "<tool_call>\n<function=clock>\n</function>\n", "", [("clock", "{}")]),
        (BARE_TAGS, "It is <function=rm>\n</function>", "It is <function=rm>\n</function>", []),
        (BARE_TAGS, "It is\n<function=clock> or\n<function=clock> too</tool_call>",
         "It is\n<function=clock> or\n<function=clock> too</tool_call>", []),
        (BARE_TAGS, "Cut <function=clock>\n", "Cut <function=clock>\n", []),
        ("python_tag", '{"name": "clock", "parameters": {"a": 1}}', "", [("clock", '{"a": 1}')]),
        ("python_tag", '{"type": "function", "function": {"name": "clock", "parameters": {"a": 1}}}', "",
         [("clock", '{"a": 1}')]),
        ("python_tag", '{"type": "function", "function": {"name": "clock", "arguments": {}}}; '
         '{"type": "function", "function": "get_weather", "parameters": {"days": 2}}', "",
         [("clock", "{}"), ("get_weather", '{"days": 2}')]),
        ("python_tag", '{"type": "function", "function": {"name": "rm", "parameters": {}}}',
         '{"type": "function", "function": {"name": "rm", "parameters": {}}}', []),
        ("<tool_call>", 'So: <tool_call>{"type": "function", "function": {"name": "clock", "arguments": {}}}'
         "</tool_call>",
         "So:", [("clock", "{}")]),
        ("[TOOL_CALLS]", '[TOOL_CALLS][{"type": "function", "function": {"name": "clock", "arguments": {"a": 1}}}]', "",
         [("clock", '{"a": 1}')]),
        ("<TOOLCALL>", '<TOOLCALL>[{"type": "function", "function": {"name": "clock", "arguments": {}}}]'
         "</TOOLCALL>", "", [("clock", "{}")]),
        ("python_tag", '{"name": "clock", "parameters": {"a": "}"}}; {"name": "get_weather", "parameters": '
         '{"city": "C"}}', "", [("clock", '{"a": "}"}'), ("get_weather", '{"city": "C"}')]),
        ("python_tag", '{"name": "clock", "parameters": {}}\n{"parameters": {"a": 1}, "name": "clock"}\n',
         "", [("clock", "{}"), ("clock", '{"a": 1}')]),
        ("python_tag", '{"name": "clock", "parameters": {}}; {"name": "rm", "parameters": {}}', "", [("clock", "{}")]),
        ("python_tag", '{"name": "clock", "parameters": {}}; {"name": "clo', "", [("clock", "{}")]),
        ("python_tag", '{"name": "clock", "parameters": {}} is what I call.', "", [("clock", "{}")]),
        ("python_tag", "It is { late }.", "It is { late }.", []),
        ("python_tag", '{"answer": 42}', '{"answer": 42}', []),
    ],
)  # fmt: skip
def test_calls_are_told_from_text_however_it_is_cut(template, text, told, calls, width):
    assert read(text, template=template, width=width)[:2] == (told, calls)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("[TOOL_CALLS]", "[TOOL_CALLS]NAME[ARGS]{}"),
        ("<tool_call>", "<tool_call>\n<function=NAME>\n</function>\n</tool_call>"),
        ("<tool_call>", "<tool_call>NAME\n</tool_call>"),
        ("<|channel|>commentary", " to=functions.NAME<|channel|>commentary json<|message|>{}"),
    ],
)
def test_a_name_of_128_characters_is_read(template, text):
    name = "mcp__" + "a" * 123
    tool = {"type": "function", "function": {"name": name}}
    request = TextRequest(conversation=ASK.model_copy(update={"tools": (tool,)}))
    for width in (1, 1000):
        found = read(text.replace("NAME", name), template=template, width=width, request=request)
        assert found[:2] == ("", [(name, "{}")])


@pytest.mark.parametrize("width", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "told", "calls"),
    [
        ('<|start|>assistant<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{"a": "}"}',
         "", [("clock", '{"a": "}"}')]),
        (" to=functions.clock<|channel|>commentary json<|message|>{}", "", [("clock", "{}")]),
        ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
         'to=functions.get_weather <|constrain|>json<|message|>{"days": 2}', "I look.",
         [("get_weather", '{"days": 2}')]),
        ('<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{"a": [1', "",
         [("clock", '{"a": [1')]),
        ("<|channel|>commentary to=functions.rm json<|message|>{}",
         '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
        ("It is <b>late</b> to go to=functions", "It is <b>late</b> to go to=functions", []),
        ('<tool_call>{"name": "clock", "arguments": {}}</tool_call>', "", [("clock", "{}")]),
    ],
)  # fmt: skip
def test_calls_in_channels_are_told_from_text(text, told, calls, width):
    assert read(text, template="<|channel|>commentary", width=width)[:2] == (told, calls)


@pytest.mark.parametrize(
    "call",
    [
        '{"name": ["clock"], "arguments": {}}',
        '{"arguments": {}, "name": {"clock": 1}}',
        '{"name": "a\\q", "arguments": {}}',
        '{"name": "a\nb", "arguments": {}}',
        '{"x": ' + "[" * 20_000,
        '{"name": null, "arguments": {}}',
    ],
)
def test_a_call_that_no_client_could_have_meant_is_text(call):
    text = f"<tool_call>{call}</tool_call>"
    assert read(text, width=len(text))[:2] == (text, [])
    assert read(call, template="python_tag", width=len(call))[:2] == (call, [])


TYPED = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "note": {"type": ["string", "null"]},
        "number": {"type": "number"},
        "flag": {"type": "boolean"},
        "gone": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"enum": ["1", 2]},
        "level": {"enum": [1, 2]},
        "spots": {"$ref": "#/$defs/spots"},
        "itself": {"$ref": "#"},
    },
    "$defs": {"spots": {"type": "array", "items": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("text", "3", "3"),
        ("text", " two lines,\nthe second ", " two lines,\nthe second "),
        ("text", "null", "null"),
        ("note", "null", None),
        ("note", "None of them", "None of them"),
        ("number", "2.50", 2.5),
        ("flag", "True", True),
        ("flag", "false", False),
        ("gone", "None", None),
        ("gone", "7", 7),
        ("either", "1", "1"),
        ("level", "2", 2),
        ("spots", "[1, 2]", [1, 2]),
        ("spots", "no list", "no list"),
        ("number", "NaN", "NaN"),
        ("number", "1e999", "1e999"),
        ("spots", "[" * 100_000, "[" * 100_000),
        ("itself", '{"text": "a"}', {"text": "a"}),
        ("itself", "{'text': \"it's\", 'flag': True, 'gone': None}", {"text": "it's", "flag": True, "gone": None}),
        ("itself", "{'text': 'a'", "{'text': 'a'"),
        ("spots", "(1, 2)", [1, 2]),
        ("spots", "[float('inf')]", "[float('inf')]"),
        ("unknown", "12", "12"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "<function=play>\n<parameter={}>\n{}\n</parameter>\n</function>",
        "play\n<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n",
    ],
)
def test_values_in_tags_have_the_types_of_the_schema(key, written, value, form):
    play = {"type": "function", "function": {"name": "play", "parameters": TYPED}}
    request = TextRequest(conversation=ASK.model_copy(update={"tools": (play,)}))
    text = f"<tool_call>{form.format(key, written)}</tool_call>"
    told, [(name, arguments)], _ = read(text, width=len(text), request=request)
    assert (told, name) == ("", "play")
    assert json.loads(arguments) == {key: value}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "openai-gpt-oss-120b",
        "Qwen3-Coder",
        "Qwen3.5-4B",
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "GLM-4.6",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "mistralai-Ministral-3-14B-Reasoning-2512",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
    ],
)
def test_a_call_is_read_as_the_template_of_its_model_writes_it(shared_data, name):
    template = (shared_data / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    question = {"role": "user", "content": "How is the weather?"}
    function = {"name": "get_weather", "arguments": {"city": "Cremona", "days": 2}}
    call = {"id": "abcdefgh1", "type": "function", "function": function}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    before = render_template(template, [question], tools=[WEATHER], values=tokens)
    whole = render_template(template, [question, turn], tools=[WEATHER], values=tokens)
    form = form_of(json.dumps(template))
    mark = " to=functions." if form.in_channels else form.begin
    # What the answer has from its call on: up to the token that ends the turn.
    answer = whole[whole.index(mark, len(before) - 1) :]
    for end in ("</s>", "<|im_end|>", "<|call|>"):
        answer = answer.removesuffix("\n").removesuffix(end)
    told, [(called, arguments)], _ = read(answer, template=json.dumps(template), width=5)
    assert (told, called) == ("", "get_weather")
    assert json.loads(arguments) == {"city": "Cremona", "days": 2}


def test_half_a_surrogate_pair_in_a_call_stays_an_escape():
    text = '<tool_call>{"arguments": {"a": "\\ud83d"}, "name": "clock"}</tool_call>'
    told, calls, _ = read(text, width=len(text))
    assert (told, calls) == ("", [("clock", '{"a": "\\ud83d"}')])
    text = '<tool_call>{"arguments": "\\ud83d", "name": "clock"}</tool_call>'
    assert read(text, width=len(text))[1] == [("clock", "\\ud83d")]


def test_arguments_are_told_as_they_grow():
    text = '<tool_call>{"name": "clock", "arguments": {"a": "a long text that takes many pieces"}}</tool_call>'
    assert read(text, width=4)[2] > 8


def test_after_the_only_call_nothing_is_told():
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>' * 2
    assert read(text, request=asked(calls_in_parallel=False))[:2] == ("", [("clock", "{}")])


def test_tools_are_told_in_words_where_the_template_knows_none():
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = (
        Message(role="system", content="Be short."),
        *ASK.messages,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="noon", tool_call_id="c"),
    )
    plain = with_tools_as_text(Conversation(messages=messages, tools=(WEATHER,)), HERMES)
    assert not plain.tools
    assert [message.role for message in plain.messages] == ["system", "user", "assistant", "user"]
    assert plain.messages[0].content.startswith("Be short.\n\nYou may call")
    assert json.dumps(WEATHER["function"]) in plain.messages[0].content
    assert plain.messages[2].content == '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert plain.messages[3].content == "<tool_response>noon</tool_response>"
    without = Conversation(messages=ASK.messages)
    assert with_tools_as_text(without, HERMES) == without


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture(scope="module", params=["knows tools", "knows none"])
def streaming(request, engine, tiny, tmp_path_factory):
    if request.param == "knows tools":
        return StreamingEngine(engine)
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "plain")
    simple = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(simple)
    template = ChatTemplate.load(folder)
    return StreamingEngine(TransformersEngine(load_model(tiny, dtype="float32", attention="sdpa"), template))


def write(streaming, request):
    assert streaming.ask("a", request, None)
    text, calls, end = "", {}, None
    while streaming.keys:
        for _, event in streaming.poll(0):
            if isinstance(event, Piece):
                text += event.text
                for piece in event.calls:
                    if piece.name is not None:
                        calls[piece.index] = [piece.name, ""]
                    calls[piece.index][1] += piece.arguments
            elif isinstance(event, Ended):
                end = event
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()], end


def test_a_call_that_is_required_is_made_and_keeps_to_its_schema(streaming):
    request = asked(tool_choice="required", tool_name="get_weather", max_new_tokens=300)
    text, [(name, arguments)], end = write(streaming, request)
    assert (text, name, end.reason) == ("", "get_weather", "stop")
    assert arguments["city"] in ("Cremona", "Mittenwald")
    assert set(arguments) <= {"city", "days"}


def test_a_call_is_read_where_its_marks_are_special_tokens_of_the_vocabulary(tiny):
    """As those of Hermes 3, which decoding leaves out of a text."""
    model, tokenizer = load_model(tiny, dtype="float32", attention="sdpa"), load_tokenizer(tiny)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("<call>", "</call>")], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    marked = StreamingEngine(TransformersEngine(model, ChatTemplate(tokenizer, "chat")))
    text, [(name, arguments)], end = write(
        marked, asked(tool_choice="required", tool_name="get_weather", max_new_tokens=300)
    )
    assert (text, name, end.reason) == ("", "get_weather", "stop")
    assert arguments["city"] in ("Cremona", "Mittenwald")


def test_one_of_the_tools_is_called_where_any_is_required(streaming):
    request = asked(tool_choice="required", calls_in_parallel=False, max_new_tokens=400)
    only = request.model_copy(
        update={"conversation": ASK.model_copy(update={"tools": (WEATHER,)})}
    )  # the clock takes any object, which a model of random weights never closes
    text, calls, end = write(streaming, only)
    assert (text, [name for name, _ in calls], end.reason) == ("", ["get_weather"], "tool_calls")


def test_tools_that_may_not_be_called_are_as_if_not_there(streaming):
    greedy = {"sampling": Sampling(temperature=0), "max_new_tokens": 12}
    without = TextRequest(conversation=Conversation(messages=ASK.messages), **greedy)
    assert write(streaming, asked(tool_choice="none", **greedy)) == write(streaming, without)


def test_with_a_schema_an_answer_calls_or_keeps_to_it(streaming):
    schema = {"type": "object", "properties": {"wood": {"enum": ["maple"]}}, "required": ["wood"],
              "additionalProperties": False}  # fmt: skip
    tools = ASK.model_copy(update={"tools": (WEATHER,)})
    kinds = set()
    for seed in range(8):
        request = TextRequest(
            conversation=tools, json_schema=schema, max_new_tokens=300, sampling=Sampling(temperature=1.5, seed=seed)
        )
        text, calls, end = write(streaming, request)
        assert end.reason == ("tool_calls" if calls else "stop")
        assert calls or json.loads(text) == {"wood": "maple"}
        kinds.add(bool(calls))
    assert kinds == {True, False}


GOOD = '{"name": "get_weather", "arguments": {"city": "Cremona", "days": 2}}'
BAD = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
FREE = '{"name": "clock", "arguments": {"zone": [1, 2]}}'
AS_PARAMETERS = GOOD.replace("arguments", "parameters"), BAD.replace("arguments", "parameters")


@pytest.mark.parametrize(
    ("template", "text", "is_right"),
    [
        ("<call>", "Let me see, 1 < 2.", True),
        ("<call>", "", True),
        ("<call>", f"Let me see.<call>{GOOD}</call>", True),
        ("<call>", f"<call>\n{GOOD}\n</call>\n<call>{FREE}</call> done", True),
        ("<call>", f"Let me see.<call>{BAD}</call>", False),
        ("<call>", '<call>{"name": "rm", "arguments": {}}</call>', False),
        ("<call>", f"<call>{GOOD}</call><call>{BAD}</call>", False),
        ("<tool_call>", f"So: <tool_call>{GOOD}</tool_call>", True),
        ("<tool_call>", f"So: <tool_call>{BAD}</tool_call>", False),
        ("[TOOL_CALLS]", f"[TOOL_CALLS][{GOOD}, {FREE}]", True),
        ("[TOOL_CALLS]", f"[TOOL_CALLS][{BAD}]", False),
        ("python_tag", AS_PARAMETERS[0], True),
        ("python_tag", AS_PARAMETERS[1], False),
        ("python_tag", "It is { late }.", True),
        ("python_tag", "[see below] it is", True),
        ("python_tag", "[see (below)]", False),
        ("python_tag", "[get_weather(city='Paris')]", False),
    ],
)
def test_calls_of_strict_tools_match_their_schema_wherever_they_are(engine, streaming, template, text, is_right):
    form, requests = form_of(template), streaming._reader
    grammar = form.strict_grammar(asked(strict_tools=("get_weather",)), requests._token_id)
    constraint = requests._constraints.of_grammar(grammar)()
    ids = [*engine.template.tokenizer.encode(text, add_special_tokens=False), engine.template.end_of_turn_ids[0]]

    def follow():
        for one in ids:
            constraint.take(one)

    if is_right:
        follow()
    else:
        with pytest.raises(RequestError, match="left its form"):
            follow()


PART = {"type": "object", "properties": {"wood": {"enum": ["maple"]}}, "required": ["wood"],
        "additionalProperties": False}  # fmt: skip
NESTED = {
    "type": "object",
    "properties": {"part": {"$ref": "#/$defs/part"}, "inside": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["part", "inside"],
    "additionalProperties": False,
    "$defs": {"part": PART},
}
MAPLE, OAK = {"part": {"wood": "maple"}, "inside": None}, {"part": {"wood": "oak"}, "inside": None}


@pytest.mark.parametrize("template", ["<call>", "[TOOL_CALLS]", "python_tag"])
@pytest.mark.parametrize("is_required", [True, False])
def test_references_of_a_schema_name_its_own_parts(engine, streaming, template, is_required):
    form, requests = form_of(template), streaming._reader
    plan = {"type": "function", "function": {"name": "plan", "parameters": NESTED}}
    tools = ASK.model_copy(update={"tools": (WEATHER, plan)})
    request = TextRequest(conversation=tools, tool_choice="required" if is_required else "auto", strict_tools=("plan",))
    write = form.grammar if is_required else form.strict_grammar
    make = requests._constraints.of_grammar(write(request, requests._token_id))
    call = {"name": "plan", form.key: MAPLE}
    for arguments, is_right in (
        (MAPLE, True),
        (MAPLE | {"inside": MAPLE}, True),
        (OAK, False),
        (MAPLE | {"inside": OAK}, False),
        (MAPLE | {"inside": call}, False),
    ):
        text = form.written("plan", json.dumps(arguments))
        ids = [*engine.template.tokenizer.encode(text, add_special_tokens=False), engine.template.end_of_turn_ids[0]]
        if is_right:
            follow(make(), ids)
        else:
            with pytest.raises(RequestError, match="left its form"):
                follow(make(), ids)


def follow(constraint, ids):
    for one in ids:
        constraint.take(one)


def test_the_model_decides_whether_it_calls_a_strict_tool(streaming):
    strict = {"strict_tools": ("get_weather",)}
    assert streaming._reader.prepare(asked(**strict)).constraint is not None
    assert streaming._reader.prepare(asked()).constraint is None
    assert streaming._reader.prepare(asked(tool_choice="none", **strict)).constraint is None
    text, calls, end = write(streaming, asked(sampling=Sampling(temperature=0), max_new_tokens=12, **strict))
    assert (bool(text), calls, end.reason) == (True, [], "length")


def test_tokens_of_a_call_are_none_of_those_with_likelihoods(streaming):
    def tokens(request):
        assert streaming.ask("a", request, None)
        events = []
        while streaming.keys:
            events += [event for _, event in streaming.poll(0)]
        found = [token for event in events if isinstance(event, Piece) for token in event.tokens]
        return found, next(event for event in events if isinstance(event, Ended))

    found, end = tokens(asked(tool_choice="required", tool_name="get_weather", max_new_tokens=300, num_top=1))
    assert (found, end.num_new_tokens > 5) == ([], True)
    found, end = tokens(asked(sampling=Sampling(temperature=0), max_new_tokens=12, num_top=1))
    assert (len(found), end.num_new_tokens) == (12, 12)
