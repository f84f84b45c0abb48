"""What can be read out of replies, and that nothing breaks the reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.synthesis.synthesis_prompts import Pair, Unparsable, parse_pair, parse_verdict

GOOD = '{"question": "Which wood?", "answer": "Spruce."}'


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"Sure! Here it is:\n```json\n{GOOD}\n```\nHope that helps {{}}.",
        f"[{GOOD}]",
        '{"pairs": [{"Question": "Which wood?", "ANSWER": "Spruce."}]}',
        '{"pair": {"q": " Which wood? ", "a": "Spruce.\\n"}}',
        f'<think>Maybe {{"question": "x", "answer": "y"}}?</think>\n{GOOD}',
        f"so the question is this.</think>\n{GOOD}",
        f'{{"broken": {GOOD}',
        f'{{"question": "No answer"}} {GOOD}',
        f'{{"question": "a", "question": "b", "answer": "c"}} {GOOD}',
        "Question: Which wood?\nAnswer: Spruce.\nQuestion: And?\nAnswer: Maple.",
        "**Q:** Which wood?\n\n**A:** Spruce.\n\nQ: More?",
        "1. Question 1: Which wood?\n   Answer: Spruce.\n2. Question 2: No?\n Answer: No",
        '{\n  "question": "Which wood?",\n  "answer": "Spruce."\n  "note": "no comma"\n Question: x',
    ],
)
def test_pairs_are_found_in_whatever_stands_around_them(reply: str) -> None:
    found = parse_pair(reply, "qa")
    assert isinstance(found, Pair)
    assert (found.prompt, found.completion.split("\n")[0].rstrip('",').removeprefix('"')) == ("Which wood?", "Spruce.")


def test_an_answer_that_only_the_end_closes_is_said_to_be_open() -> None:
    assert parse_pair("Q: Why?\nA: Because", "qa") == Pair("Why?", "Because", is_open=True)
    assert parse_pair('"question": "Why?",\n"answer": "Because"}\n```', "qa") == Pair("Why?", "Because", is_open=True)
    assert parse_pair(GOOD, "qa") == Pair("Which wood?", "Spruce.")


def test_instructions_have_their_own_names() -> None:
    expected = Pair("Name a wood.", "Use {x}.")
    assert parse_pair('{"instruction": "Name a wood.", "response": "Use {x}."}', "instruction") == expected
    assert parse_pair('{"instruction": "Name a wood.", "output": "Use {x}."}', "instruction") == expected
    assert parse_pair("Instruction: Name a wood.\nResponse: Use {x}.", "instruction") == Pair(
        expected.prompt, expected.completion, is_open=True
    )


def test_numbers_stay_as_they_were_written() -> None:
    assert parse_pair('{"question": "Price?", "answer": 1.50}', "qa") == Pair("Price?", "1.50")
    huge = "9" * 5000
    assert parse_pair(f'{{"question": "How many?", "answer": {huge}}}', "qa") == Pair("How many?", huge)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "the reply is empty"),
        (" \n", "the reply is empty"),
        ("<think>hm</think>", "the reply is empty"),
        ("<think>hm, so", "within its thoughts"),
        ("I cannot do that.", "neither a JSON object"),
        ('{"question": "Why?"}', "neither a JSON object"),
        ('{"question": "", "answer": "x"}', "the question is empty"),
        ('{"question": "Why?", "answer": ["a"]}', "the answer is a list where text is expected"),
        ('{"question": "Why?", "answer": null}', "the answer is null where text is expected"),
        ('{"question": "Why?", "answer": true}', "the answer is a boolean"),
        ('{"question": "Why?", "answer": "\\ud800"}', "surrogate"),
        ('{"question": "a", "question": "b", "answer": "c"}', "neither a JSON object"),
        ("Answer: Spruce.\nQuestion: Which?", "neither a JSON object"),
        ("Q:\nA: x", "the question is empty"),
        ('{"question": "...", "answer": "..."}', "the question is '...'"),
    ],
)
def test_what_is_no_pair_says_why(reply: str, reason: str) -> None:
    found = parse_pair(reply, "qa")
    assert isinstance(found, Unparsable)
    assert reason in found.reason


SIGNS = [*'{}[]":,x', '"question"', '"answer"', "Q:", "A:", "\n", "```", "<think>", "</think>", "1e9", "NaN", "**", " "]
PIECES = st.sampled_from([*SIGNS, "\\ud800", "\ud800"])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join)), st.sampled_from(["qa", "instruction"]))
def test_nothing_breaks_the_reader(reply: str, kind: str) -> None:
    found = parse_pair(reply, kind)  # type: ignore[arg-type]
    if isinstance(found, Pair):
        assert found.prompt.strip()
        assert found.completion.strip()
        json.dumps([found.prompt, found.completion], ensure_ascii=False).encode()
    parse_verdict(reply)


def test_deep_nesting_ends_soon() -> None:
    assert isinstance(parse_pair('{"a":' * 20_000, "qa"), Unparsable)
    assert isinstance(parse_pair("{" * 100_000, "qa"), Unparsable)


WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: text.strip() not in ("", "...", "\u2026")
)


@given(WORDS, WORDS, st.sampled_from(["{}", "```json\n{}\n```", "Well:\n{}\nDone.", "[{}]"]))
def test_every_json_pair_comes_back(question: str, answer: str, around: str) -> None:
    document = json.dumps({"question": question, "answer": answer})
    if "think" in document.lower() or "reasoning" in document.lower():
        return
    assert parse_pair(around.replace("{}", document), "qa") == Pair(question.strip(), answer.strip())


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**No**", False),
        ("No, the passage names Vienna.", False),
        ("<think>yes and no</think>yes", True),
        ("", None),
        ("Maybe", None),
        ("Unsure: yes", None),
        ("Yes and no", None),
        ("yesterday", None),
        ("noyes", None),
    ],
)
def test_a_verdict_is_one_clear_word(reply: str, verdict: bool | None) -> None:
    assert parse_verdict(reply) is verdict
