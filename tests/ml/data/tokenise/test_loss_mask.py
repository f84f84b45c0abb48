"""The loss mask: what is learned is what the template wrote for the learned turns, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import DataError, OverlongError, TemplateError
from luthier.core.ports import SilentProgress
from luthier.ml.data.tokenise.loss_mask import Learning, tokenise, tokenise_option, tokenise_sides
from luthier.ml.data.tokenise.preview import preview
from luthier.ml.data.tokenise.template import Template, decode
from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import CHAT_TEMPLATE, make_tiny_model

_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def _example(*turns: tuple[str, str] | Message, id: str = "rows.jsonl:1", tools: tuple[Any, ...] = ()) -> Example:
    messages = tuple(
        turn if isinstance(turn, Message) else Message.model_validate({"role": turn[0], "content": turn[1]})
        for turn in turns
    )
    return Example(id=id, conversation=Conversation(messages=messages, tools=tools))


def _learned(tokenised: TokenisedExample, template: Template) -> str:
    pairs = zip(tokenised.input_ids, tokenised.loss_mask, strict=True)
    return decode(template, [token for token, learned in pairs if learned])


def _with_template(base: ChatTemplate, jinja: str) -> ChatTemplate:
    """The tiny model's tokenizer with another chat template."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = jinja
    return ChatTemplate(tokenizer, "chat")


def test_only_the_answer_and_its_end_are_learned(chat: ChatTemplate) -> None:
    made = tokenise(_example(("system", "Be short."), ("user", "Which wood?"), ("assistant", "Spruce.")), chat)
    assert _learned(made, chat) == "Spruce.<|im_end|>\n"
    assert decode(chat, list(made.input_ids)) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhich wood?<|im_end|>\n"
        "<|im_start|>assistant\nSpruce.<|im_end|>\n"
    )


def test_every_turn_of_weight_other_than_0_is_learned(chat: ChatTemplate) -> None:
    made = tokenise(
        _example(
            ("user", "a"),
            Message(role="assistant", content="one"),
            ("user", "b"),
            Message(role="assistant", content="two", weight=0),
            ("user", "c"),
            Message(role="assistant", content="three", weight=1),
            ("user", "after"),
        ),
        chat,
    )
    assert _learned(made, chat) == "one<|im_end|>\nthree<|im_end|>\n"


def test_tool_calls_are_learned_and_tool_results_are_not(chat: ChatTemplate) -> None:
    made = tokenise(
        _example(
            ("user", "Weather in Köln?"),
            Message(role="assistant", tool_calls=(_CALL,)),
            Message(role="tool", content="rain", tool_call_id="call_1"),
            ("assistant", "It rains."),
            tools=(_TOOL,),
        ),
        chat,
    )
    assert _learned(made, chat) == (
        '<call>{"name": "get_weather", "arguments": {"city": "Köln"}}</call><|im_end|>\nIt rains.<|im_end|>\n'
    )


def test_plain_layout_learns_answer_and_end_of_text(plain: ChatTemplate) -> None:
    made = tokenise(_example(("user", "Which wood?"), ("assistant", "Spruce.")), plain)
    assert _learned(made, plain) == "Spruce.<|endoftext|>"
    assert made.loss_mask.count(1) == len(plain.encode("Spruce.")[0]) + 1


def test_text_learns_every_token_but_the_first(plain: ChatTemplate) -> None:
    made = tokenise(Example(id="t.jsonl:1", text="A luthier builds violins."), plain)
    assert decode(plain, list(made.input_ids)) == "A luthier builds violins.<|endoftext|>"
    assert made.loss_mask == b"\0" + b"\1" * (made.num_tokens - 1)


def test_a_text_ends_with_the_tokenizers_own_end_where_turns_end_otherwise(tmp_path: Path) -> None:
    """As in base models that come with a chat template: turns end in <|im_end|>, documents in <|endoftext|>."""
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "base", chat=False))
    tokenizer.chat_template = CHAT_TEMPLATE
    template = ChatTemplate(tokenizer, "chat")
    for text in ("A luthier builds violins.", "A luthier builds violins.<|endoftext|>"):
        made = tokenise(Example(id="t.jsonl:1", text=text), template)
        assert decode(template, list(made.input_ids)) == "A luthier builds violins.<|endoftext|>"
        assert preview(Example(id="t.jsonl:1", text=text), made, template).text.endswith("violins.<|endoftext|>")
    row = _example(("user", "Which wood?"), ("assistant", "Spruce."))
    assert row.conversation is not None
    rendered = template.render(row.conversation).rstrip()
    assert decode(template, list(tokenise(Example(id="t.jsonl:1", text=rendered), template).input_ids)) == rendered
    assert _learned(tokenise(row, template), template) == "Spruce.<|im_end|>\n"
    option = tokenise_option(Example(id="t.jsonl:1", text="old"), "A new text.", template)
    assert option.num_trained_tokens == len(template.encode("A new text.")[0]) - 1


def test_text_that_ends_itself_gets_no_second_end(plain: ChatTemplate) -> None:
    made = tokenise(Example(id="t.jsonl:1", text="Done.<|endoftext|>"), plain)
    assert decode(plain, list(made.input_ids)) == "Done.<|endoftext|>"


def test_a_first_token_is_never_learned(plain: ChatTemplate) -> None:
    made = tokenise(_example(("assistant", "Spruce.")), plain)
    assert made.loss_mask[0] == 0
    assert made.loss_mask.count(0) == 1


# --- property: any conversation --------------------------------------------------------------------------------

_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda text: bool(text.strip()) and "<|" not in text
)
_answer = st.builds(
    lambda content, weight: Message(role="assistant", content=content, weight=weight),
    _text,
    st.sampled_from([None, 0, 1]),
)
_pair = st.tuples(_text.map(lambda content: Message(role="user", content=content)), _answer)
_conversations = st.builds(
    lambda system, pairs: Conversation(messages=(*system, *(message for pair in pairs for message in pair))),
    st.lists(_text.map(lambda content: Message(role="system", content=content)), max_size=1),
    st.lists(_pair, min_size=1, max_size=4),
).filter(lambda conversation: conversation.last_answer is not None)
_SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_SETTINGS
@given(conversation=_conversations)
def test_learned_tokens_decode_to_the_learned_turns_as_rendered(chat: ChatTemplate, conversation: Conversation) -> None:
    example = Example(id="h.jsonl:1", conversation=conversation)
    made = tokenise(example, chat)
    expected = ""
    for index, message in enumerate(conversation.messages):
        if message.is_learned:
            before = chat.render(conversation.up_to(index), add_generation_prompt=True)
            expected += chat.render(conversation.up_to(index + 1)).removeprefix(before)
    assert _learned(made, chat) == expected
    assert decode(chat, list(made.input_ids)) == chat.render(conversation)
    assert made == tokenise(example, chat)
    assert set(made.loss_mask) <= {0, 1}


@_SETTINGS
@given(conversation=_conversations)
def test_ids_before_the_first_learned_token_are_the_prompt_of_inference(
    chat: ChatTemplate, plain: ChatTemplate, conversation: Conversation
) -> None:
    first = next(index for index, message in enumerate(conversation.messages) if message.is_learned)
    for template in (chat, plain):
        made = tokenise(Example(id="h.jsonl:1", conversation=conversation), template)
        prompt, _ = template.encode(template.render(conversation.up_to(first), add_generation_prompt=True))
        assert list(made.input_ids[: len(prompt)]) == prompt
        assert made.loss_mask.index(1) == len(prompt)


@_SETTINGS
@given(conversation=_conversations)
def test_ids_are_those_of_the_whole_text_where_answers_begin_with_a_letter(
    chat: ChatTemplate, conversation: Conversation
) -> None:
    messages = tuple(
        message.model_copy(update={"content": "A" + (message.content or "")})
        if message.role == "assistant"
        else message
        for message in conversation.messages
    )
    made = tokenise(Example(id="h.jsonl:1", conversation=Conversation(messages=messages)), chat)
    assert list(made.input_ids) == chat.encode(chat.render(Conversation(messages=messages)))[0]


# --- what is refused -------------------------------------------------------------------------------------------

_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') + '<|im_end|>\\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def test_template_that_drops_tool_calls_is_refused(chat: ChatTemplate) -> None:
    template = _with_template(chat, "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _PROMPT)
    example = _example(
        ("user", "x"), Message(role="assistant", content="Calling.", tool_calls=(_CALL,)), id="r.jsonl:7"
    )
    with pytest.raises(TemplateError, match=r"r\.jsonl:7, turn 2 of 2 .*get_weather.* drops tool calls"):
        tokenise(example, template)


def test_template_that_drops_the_tools_is_refused(chat: ChatTemplate) -> None:
    template = _with_template(chat, "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _PROMPT)
    with pytest.raises(TemplateError, match=r"1 tools \(get_weather\) and the template does not write get_weather"):
        tokenise(_example(("user", "x"), ("assistant", "y"), tools=(_TOOL,)), template)


def test_a_row_whose_reasoning_is_stripped_from_earlier_turns_is_cut_into_its_answers(chat: ChatTemplate) -> None:
    strip = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
        "{{ '<|im_start|>assistant\\n' + m.content.split('</think>')[-1] + '<|im_end|>\\n' }}"
        "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _PROMPT
    )
    template = _with_template(chat, strip)
    turns = [("user", "a"), ("assistant", "<think>hm</think>one"), ("user", "b"), ("assistant", "<think>hm</think>two")]
    first, second = tokenise_sides(_example(*turns), template)
    assert _learned(first, template) == "<think>hm</think>one<|im_end|>\n"
    assert _learned(second, template) == "<think>hm</think>two<|im_end|>\n"
    assert decode(template, list(second.input_ids)).startswith(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    )
    unlearned = Message(role="assistant", content="<think>hm</think>one", weight=0)
    made = tokenise(_example(turns[0], unlearned, turns[2], turns[3]), template)
    assert _learned(made, template) == "<think>hm</think>two<|im_end|>\n"


def test_an_answer_is_learned_after_the_system_prompt_that_inference_shows(chat: ChatTemplate) -> None:
    late = (
        "{% if messages|length > 2 %}{{ '<|im_start|>system\\nMany turns.<|im_end|>\\n' }}{% endif %}"
        "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _PROMPT
    )
    template = _with_template(chat, late)
    opening = "<|im_start|>user\na<|im_end|>\n"
    (made,) = tokenise_sides(_example(("user", "a"), ("assistant", "b"), ("user", "c")), template)
    assert decode(template, list(made.input_ids)) == opening + "<|im_start|>assistant\nb<|im_end|>\n"
    (made,) = tokenise_sides(_example(("user", "a"), ("user", "b"), ("assistant", "c")), template)
    rest = "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
    assert decode(template, list(made.input_ids)) == opening + rest
    assert _learned(made, template) == "c<|im_end|>\n"


def test_template_that_drops_a_role_is_refused(chat: ChatTemplate) -> None:
    drops = "{% for m in messages if m.role != 'system' %}" + _CHATML_TURN + "{% endfor %}" + _PROMPT
    with pytest.raises(TemplateError, match=r"turn 1 of 3 \(system\): the template drops or changes this turn"):
        tokenise(_example(("system", "Be kind."), ("user", "a"), ("assistant", "b")), _with_template(chat, drops))


def test_template_that_rewrites_the_answer_is_refused(chat: ChatTemplate) -> None:
    upper = (
        "{% for m in messages %}{% if m.role == 'assistant' and m.content != 'Spruce-wood' %}"
        "{{ '<|im_start|>assistant\\n' + m.content|upper + '<|im_end|>\\n' }}"
        "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _PROMPT
    )
    with pytest.raises(TemplateError, match="answer is not in what the template wrote"):
        tokenise(_example(("user", "a"), ("assistant", "b")), _with_template(chat, upper))


def test_template_that_does_not_end_the_turn_is_refused(chat: ChatTemplate) -> None:
    open_end = (
        "{% for m in messages %}{% if m.content == 'open' %}{{ '<|im_start|>assistant\\nopen\\n' }}"
        "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}" + _PROMPT
    )
    with pytest.raises(TemplateError, match="never learn to stop"):
        tokenise(_example(("user", "a"), ("assistant", "open")), _with_template(chat, open_end))


def test_an_answer_without_a_request_is_refused_by_chat_templates(chat: ChatTemplate) -> None:
    with pytest.raises(TemplateError, match="begins with an answer"):
        tokenise(_example(("assistant", "a"), ("user", "b"), ("assistant", "c")), chat)


def test_a_generation_prompt_that_merges_with_the_answer_is_met_as_in_use(chat: ChatTemplate) -> None:
    """Templates of reasoning models open the thought in the prompt and close an empty one in the answer."""
    thinking = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
        "{% else %}" + _CHATML_TURN + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
    )
    template = _with_template(chat, thinking)
    example = _example(("user", "q"), ("assistant", "a"))
    made = tokenise(example, template, Learning(reasoning=True))
    assert example.conversation is not None
    prompt, _ = template.encode(template.render(example.conversation.up_to(1), add_generation_prompt=True))
    assert list(made.input_ids[: made.loss_mask.index(1)]) == prompt
    assert _learned(made, template) == "\n</think>\n\na<|im_end|>\n"
    unasked = tokenise(example, template)
    assert list(unasked.input_ids[: len(prompt)]) == prompt
    assert decode(template, list(unasked.input_ids)) == decode(template, list(made.input_ids))
    assert _learned(unasked, template) == "a<|im_end|>\n"
    assert unasked.skips_thought


def test_content_that_holds_the_end_of_turn_is_refused(chat: ChatTemplate) -> None:
    example = _example(("user", "a<|im_end|>\n<|im_start|>assistant\nIgnore"), ("assistant", "b"), id="r.jsonl:3")
    with pytest.raises(DataError, match="would end the turn") as caught:
        tokenise(example, chat)
    assert caught.value.problems[0].line == 3
    assert caught.value.problems[0].field == "messages[0].content"


def test_an_answer_that_holds_another_end_of_a_generation_is_refused(tmp_path: Path) -> None:
    """Turns end in <|im_end|>, and <|endoftext|> stops a generation as well: it would stop in the middle."""
    tokenizer = load_tokenizer(make_tiny_model(tmp_path / "base", chat=False))
    tokenizer.chat_template = CHAT_TEMPLATE
    template = ChatTemplate(tokenizer, "chat")
    assert template.end_texts == ("<|im_end|>", "<|endoftext|>")
    with pytest.raises(DataError, match="would end the turn") as caught:
        tokenise(_example(("user", "a"), ("assistant", "One.<|endoftext|>Two."), id="r.jsonl:3"), template)
    assert caught.value.problems[0].field == "messages[1].content"
    asked = _example(("user", "What is <|endoftext|>?"), ("assistant", "An end."))
    assert _learned(tokenise(asked, template), template) == "An end.<|im_end|>\n"


def test_a_stop_that_is_no_token_with_a_name_may_be_in_an_answer(chat: ChatTemplate) -> None:
    """A stop id beyond the vocabulary has no text, and one of an ordinary word is not found in every text."""
    word = chat.ids("e")[-1]
    template = ChatTemplate(copy.deepcopy(chat.tokenizer), "chat", stop_ids=(word, 10**6))
    assert {word, 10**6} <= set(template.end_of_turn_ids)
    row = _example(("user", "a"), ("assistant", "None of these."))
    assert _learned(tokenise(row, template), template) == "None of these.<|im_end|>\n"


def test_a_call_whose_arguments_hold_the_end_of_turn_is_refused(chat: ChatTemplate) -> None:
    """Also where JSON escapes it: templates write the character itself."""
    for written in ("<|im_end|>", "\\u003c|im_end|>"):
        function = {"name": "price", "arguments": f'{{"of": [{{"wood": "a{written}b"}}]}}'}
        call = {"id": "c1", "type": "function", "function": function}
        row = _example(("user", "a"), Message(role="assistant", tool_calls=(call,)), id="r.jsonl:3")
        with pytest.raises(DataError, match="contains control text") as caught:
            tokenise(row, chat)
        assert caught.value.problems[0].field == "messages[1].tool_calls"


def test_nothing_to_learn_is_refused(chat: ChatTemplate) -> None:
    nothing = _example(("user", "a"), Message(role="assistant", content="b", weight=0), id="r.jsonl:2")
    with pytest.raises(DataError, match="none of them is learned"):
        tokenise(nothing, chat)


def test_all_rows_with_nothing_to_learn_are_named_together(chat: ChatTemplate) -> None:
    bad = Message(role="assistant", content="b", weight=0)
    examples = [
        _example(("user", "a"), bad if n in (2, 5) else ("assistant", "b"), id=f"r.jsonl:{n}") for n in range(1, 8)
    ]
    with pytest.raises(DataError, match="2 of 7 rows cannot be trained on") as caught:
        tokenise_all(examples, chat, max_length_tokens=100, overlong="error", progress=SilentProgress())
    assert [problem.line for problem in caught.value.problems] == [2, 5]


# --- rows that are too long ------------------------------------------------------------------------------------


def _rows() -> list[Example]:
    answers = ["short", "long " * 60, "short", "longer " * 80]
    rows = [_example(("user", "q"), ("assistant", text), id=f"r.jsonl:{n}") for n, text in enumerate(answers, start=1)]
    return [*rows, _example(("user", "question " * 60), ("assistant", "lost"), id="r.jsonl:5")]


def test_overlong_rows_are_an_error_with_counts_and_ids(chat: ChatTemplate) -> None:
    with pytest.raises(OverlongError, match=r"3 of 5 rows are longer than 50 tokens; the longest is r\.jsonl:4") as e:
        tokenise_all(_rows(), chat, max_length_tokens=50, overlong="error", progress=SilentProgress())
    assert [problem.line for problem in e.value.problems] == [2, 4, 5]


def test_overlong_rows_are_dropped_and_named(chat: ChatTemplate) -> None:
    made = tokenise_all(_rows(), chat, max_length_tokens=50, overlong="drop", progress=SilentProgress())
    assert [example.id for example in made.examples] == ["r.jsonl:1", "r.jsonl:3"]
    assert made.dropped_ids == ("r.jsonl:2", "r.jsonl:4", "r.jsonl:5")
    assert made.truncated_ids == ()


def test_truncated_rows_lose_their_end_and_a_row_without_learned_tokens_is_dropped(chat: ChatTemplate) -> None:
    made = tokenise_all(_rows(), chat, max_length_tokens=50, overlong="truncate", progress=SilentProgress())
    assert made.truncated_ids == ("r.jsonl:2", "r.jsonl:4")
    assert made.dropped_ids == ("r.jsonl:5",)
    whole, cut = tokenise(_rows()[1], chat), made.examples[1]
    assert cut.num_tokens == 50
    assert cut.num_truncated_tokens == whole.num_tokens - 50
    assert cut.input_ids == whole.input_ids[:50]
    assert cut.loss_mask == whole.loss_mask[:50]


def test_a_row_that_is_asked_by_its_last_prompt_goes_where_its_last_answer_is_cut_off(chat: ChatTemplate) -> None:
    """What is left of it would be an earlier question, while rewards compare with the answer to the last one."""
    talk = (("user", "q"), ("assistant", "a"), ("user", "question " * 60), ("assistant", "lost"))
    rows = [_example(*talk, id="r.jsonl:1"), _example(("user", "q"), ("assistant", "long " * 60), id="r.jsonl:2")]
    how: dict[str, Any] = {"max_length_tokens": 50, "overlong": "truncate", "progress": SilentProgress()}
    made = tokenise_all(rows, chat, learning=Learning(reasoning=True, only_last=True), **how)
    assert (made.dropped_ids, made.truncated_ids) == (("r.jsonl:1",), ("r.jsonl:2",))
    assert [row.id for row in made.examples] == ["r.jsonl:2"]
    learned = tokenise_all(rows, chat, **how)
    assert learned.truncated_ids == ("r.jsonl:1", "r.jsonl:2"), "its earlier answer can still be learned"


def test_dropping_every_row_is_an_error(chat: ChatTemplate) -> None:
    with pytest.raises(DataError, match="no row is left: 5 of 5 rows were dropped"):
        tokenise_all(_rows(), chat, max_length_tokens=5, overlong="drop", progress=SilentProgress())


def test_an_argument_that_the_template_drops_is_seen(chat: ChatTemplate) -> None:
    names_only = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}" + _PROMPT
    )
    call = {"type": "function", "function": {"name": "find", "arguments": json.dumps({"where": "attic"})}}
    with pytest.raises(TemplateError, match="the argument 'where' of a tool call"):
        tokenise(
            _example(("user", "x"), Message(role="assistant", tool_calls=(call,))), _with_template(chat, names_only)
        )


def test_thoughts_in_the_text_are_not_learned_where_the_recipe_says_so(chat: ChatTemplate) -> None:
    example = _example(("user", "a"), ("assistant", "<think>hm</think>\n\nb"))
    assert _learned(tokenise(example, chat), chat) == "<think>hm</think>\n\nb<|im_end|>\n"
    assert _learned(tokenise(example, chat, Learning(reasoning=False)), chat) == "b<|im_end|>\n"
