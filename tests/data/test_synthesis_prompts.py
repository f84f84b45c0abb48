"""What a teacher and a judge are asked."""

from __future__ import annotations

from luthier.data.synthesis_prompts import judge_prompt, pair_prompt


def test_a_teacher_sees_the_passage_its_place_and_the_form_of_the_reply() -> None:
    (message,) = pair_prompt("qa", "Spruce is light.", provenance={"file": "a.md", "section": "Wood > Front"}).messages
    text = message.content or ""
    assert text.startswith("Passage (from a.md, Wood > Front):\n<<<\nSpruce is light.\n>>>")
    assert text.endswith('{"question": "...", "answer": "..."}')
    (other,) = pair_prompt("instruction", "Spruce is light.").messages
    assert (other.content or "").startswith("Passage:\n<<<")
    assert (other.content or "").endswith('{"instruction": "...", "response": "..."}')


def test_what_changes_from_round_to_round_comes_after_the_passage() -> None:
    first, second = (pair_prompt("qa", "P" * 100, earlier=e).messages[0].content or "" for e in ((), ("Why?", "How?")))
    shared = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert shared > 100
    assert "than these: Why? | How?" in second


def test_a_judge_is_asked_for_yes_or_no() -> None:
    (message,) = judge_prompt("Spruce is light.", "Is it?", "It is.").messages
    assert "Question: Is it?\nAnswer: It is." in (message.content or "")
    assert (message.content or "").endswith("yes or no.")
