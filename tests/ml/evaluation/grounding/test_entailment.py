"""What a judge says of claims, and what is no answer."""

from __future__ import annotations

import pytest

from luthier.core.ports import Prompt
from luthier.ml.evaluation.grounding.corpus import Corpus
from luthier.ml.evaluation.grounding.entailment import Entailment, verdict_in
from luthier.ml.inference.fake import FakeEngine

CORPUS = Corpus(
    {"a": "W.C.A. § 21-4-12. The employee tells the employer within thirty days."}, forms=("state_statute",)
)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ('{"supported": true}', True),
        ('```json\n{"supported" : False}\n```', False),
        ("Well, {'supported': true}, I think.", True),
        ("supported=false", False),
        ('{"supported": true} or {"supported": false}', None),
        ('{"supported": "maybe"}', None),
        ('{"unsupported_": 1}', None),
        ("Yes, it is supported.", None),
        ("I cannot help with that.", None),
        ("", None),
    ],
)
def test_only_one_clear_verdict_counts(reply: str, said: bool | None) -> None:
    assert verdict_in(reply) is said


def test_each_claim_is_asked_once_with_its_passages() -> None:
    asked: list[str] = []

    def answer(prompt: Prompt) -> str:
        assert prompt.conversation is not None
        asked.append(prompt.conversation.messages[0].content or "")
        return '{"supported": true}' if "within thirty days" in asked[-1].partition("Claim:")[2] else "no idea"

    judge = Entailment(FakeEngine(answer, name="fake-judge"), CORPUS)
    first, second = "The employee tells the employer within thirty days.", "The employer tells the employee nothing."
    assert judge.verdicts([f"{first} {second}", first, ""]) == [[True, None], [True], []]
    assert judge.verdicts([second]) == [[None]]
    assert len(asked) == 2
    assert all("[1] W.C.A. § 21-4-12." in one for one in asked)
    assert judge.judge_name == "fake-judge"


def test_what_shares_no_word_with_the_corpus_is_unsupported_unasked() -> None:
    def nobody(prompt: Prompt) -> str:
        raise AssertionError(prompt)

    assert Entailment(FakeEngine(nobody), CORPUS).verdicts(["Cats sleep on warm roofs."]) == [[False]]
