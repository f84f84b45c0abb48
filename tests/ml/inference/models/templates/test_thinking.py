from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.models.templates.thinking import TAGS, ThinkingFormat, thinking_format

CHANNELS = ThinkingFormat(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    prompt_opens=False,
    answer_start="<|channel|>final<|message|>",
    answer_frame="<|start|>assistant<|channel|>final<|message|>",
    next_start="<|start|>assistant<|channel|>analysis<|message|>",
)
FRAMED = ThinkingFormat("<think>", "</think>", prompt_opens=False, answer_frame="<answer>", answer_end="</answer>")
SIGNS = [
    "<think>", "</think>", "<", "/", "think>", "a", "b c", " ", "\n", "<|end|>", "<|channel|>analysis<|message|>",
    "<|start|>assistant", "<|channel|>final<|message|>", "<answer>", "</answer>", "</ans",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content", "is_closed"),
    [
        ("<think>\nso\n</think>\n\n4", False, "so", "4", True),
        ("so\n</think>\n\n4 ", True, "so", "4 ", True),
        ("  4\n", False, None, "  4\n", True),
        ("4 <think>so</think>", False, None, "4 <think>so</think>", True),
        ("<think>so and", False, "so and", "", False),
        ("so and </thi", True, "so and </thi", "", False),
        ("<think>\n\n</think>\n\n4", False, None, "4", True),
        ("<think>a</think>", False, "a", "", True),
        ("<thin", False, None, "<thin", True),
        ("", False, None, "", True),
        ("", True, None, "", False),
    ],
)
def test_a_text_is_taken_apart(text: str, is_open: bool, reasoning: str | None, content: str, is_closed: bool) -> None:
    found = TAGS.split(text, is_open=is_open)
    assert (found.reasoning, found.content, found.is_closed) == (reasoning, content, is_closed)


def test_channels_are_thoughts_and_answers() -> None:
    thought, final = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
    found = CHANNELS.split(f"{thought}so<|end|><|start|>assistant{final}4", is_open=False)
    assert (found.reasoning, found.content, found.is_closed) == ("so", "4", True)
    two = f"{thought}so<|end|><|start|>assistant{thought}then<|end|><|start|>assistant{final}4"
    assert CHANNELS.split(two, is_open=False).reasoning == "so\nthen"
    assert CHANNELS.split(f"{final}4", is_open=False).content == "4"
    call = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}"
    assert CHANNELS.split(f"{thought}so<|end|>{call}", is_open=False).content == call


def test_the_frame_of_an_answer_is_no_part_of_it() -> None:
    found = FRAMED.split("<think>so</think>\n<answer>\n4 </answer2> \n</answer>\n", is_open=False)
    assert (found.reasoning, found.content) == ("so", "\n4 </answer2>")
    assert FRAMED.split("</answer>", is_open=False).content == "</answer>"


@given(
    pieces=st.lists(st.sampled_from(SIGNS), max_size=14),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    form=st.sampled_from([TAGS, CHANNELS, FRAMED]),
    is_open=st.booleans(),
)
def test_pieces_make_no_difference(pieces: list[str], cuts: list[int], form: ThinkingFormat, is_open: bool) -> None:
    text = "".join(pieces)
    whole = form.split(text, is_open=is_open)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader, reasoning, content = form.reader(is_open=is_open), "", ""
    for start, end in itertools.pairwise(places):
        more = reader.add(text[start:end])
        reasoning, content = reasoning + more.reasoning, content + more.content
    last = reader.end()
    assert (reasoning + last.reasoning, content + last.content) == (whole.reasoning or "", whole.content)
    assert reader.is_closed == whole.is_closed


@given(text=st.text(st.sampled_from("ab<>/thinkT \n"), max_size=30))
def test_an_answer_without_a_thought_is_what_was_written(text: str) -> None:
    if not text.lstrip().startswith("<think>"):
        assert TAGS.split(text, is_open=False).content == text


def test_of_a_stream_only_what_may_be_a_delimiter_is_held_back() -> None:
    reader = TAGS.reader(is_open=False)
    pieces = ("<thi", "nk>\n", "so", " </", "b", "</think>", "\n", "4 ", "<think>")
    assert [tuple(reader.add(piece)) for piece in pieces] == [
        ("", ""), ("", ""), ("so", ""), ("", ""), (" </b", ""), ("", ""), ("", ""), ("", "4 "), ("", "<think>"),
    ]  # fmt: skip
    assert reader.end() == ("", "")


def test_whether_a_prompt_has_opened_the_thought_is_read_from_the_prompt() -> None:
    assert TAGS.is_open("<|im_start|>assistant\n<think>\n")
    assert not TAGS.is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not TAGS.is_open("<|im_start|>assistant\n")


def test_a_template_without_thoughts_has_no_format(tiny_model) -> None:  # type: ignore[no-untyped-def]
    assert thinking_format(ChatTemplate.load(tiny_model)) is None
    assert thinking_format(ChatTemplate.load(tiny_model, "plain")) is None
