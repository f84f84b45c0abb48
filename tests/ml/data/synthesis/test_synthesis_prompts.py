"""What a teacher and a judge are asked."""

from __future__ import annotations

import pytest

from luthier.core.records.support import support
from luthier.ml.data.rows.answer_prompts import leans_on_passage
from luthier.ml.data.synthesis.synthesis_prompts import Kind, Pair, judge_prompt, pair_prompt, parse_pair


def test_a_teacher_sees_the_passage_its_place_and_the_form_of_the_reply() -> None:
    provenance = {"file": "a.md", "section": "Wood > Front"}
    text = pair_prompt("qa", "Spruce is light.", provenance=provenance).messages[-1].content or ""
    assert text.startswith("Passage (from a.md, Wood > Front):\n<<<\nSpruce is light.\n>>>")
    assert text.endswith('{"question": "...", "answer": "..."}')
    other = pair_prompt("instruction", "Spruce is light.").messages[-1].content or ""
    assert other.startswith("Passage:\n<<<")
    assert other.endswith('{"instruction": "...", "response": "..."}')


@pytest.mark.parametrize("kind", ["qa", "instruction"])
def test_the_worked_example_keeps_its_own_rules(kind: Kind) -> None:
    request, reply, _ = pair_prompt(kind, "Spruce is light.").messages
    found = parse_pair(reply.content or "", kind)
    assert isinstance(found, Pair)
    passage = (request.content or "").split("<<<\n")[1].split("\n>>>")[0]
    for text in (found.prompt, found.completion):
        assert leans_on_passage(text) is None
        assert not (support(text, passage).unsupported_names + support(text, passage).unsupported_numbers)
    assert support(found.completion, passage).fraction == 1.0


def test_what_changes_from_round_to_round_comes_after_the_passage() -> None:
    first, second = (pair_prompt("qa", "P" * 100, earlier=e) for e in ((), ("Why?", "How?")))
    assert first.messages[:2] == second.messages[:2]
    one, other = (c.messages[-1].content or "" for c in (first, second))
    shared = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert shared > 100
    assert "than these: Why? | How?" in other


def test_a_judge_is_asked_for_yes_or_no() -> None:
    (message,) = judge_prompt("Spruce is light.", "Is it?", "It is.").messages
    assert "Question: Is it?\nAnswer: It is." in (message.content or "")
    assert (message.content or "").endswith("yes or no.")
