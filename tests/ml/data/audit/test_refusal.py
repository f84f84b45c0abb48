"""Boilerplate refusals in five languages; answers that only use such words are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.ml.data.audit.base import AuditRequest, Skipped
from luthier.ml.data.audit.refusal import check


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot give medical advice.",
        "Well, as an AI, I don't have feelings.",
        "I’m sorry, but I can’t help with that.",
        "I'm sorry, I cannot assist you.",
        "Sorry, I am unable to provide this.",
        "I cannot fulfill this request.",
        "Unfortunately, I can't answer this.",
        "Als KI-Sprachmodell habe ich keine Meinung.",
        "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
        "En tant qu'intelligence artificielle, je n'ai pas d'avis.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Mi dispiace, ma non posso aiutarti.",
        "In quanto modello linguistico non ho opinioni.",
    ],
)
def test_refusals_are_found(pairs: Callable[..., AuditRequest], text: str) -> None:
    found = check(pairs("A real answer.", text))
    assert not isinstance(found, Skipped)
    assert [finding.lines for finding in found] == [(2,)]
    assert found[0].examples[0].note


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. You can return it within 30 days.",
        "I can't believe how well this works!",
        "The tool is sold as an AI assistant for teachers.",
        "You can say: I'm sorry, but I can't help you.",
        "Sorry, I misread that: the answer is 12.",
        "Unfortunately, the shop is closed on Sundays.",
        "Como siempre, no puedo decirlo mejor.",
        "Leider kann der Zug nicht fahren.",
    ],
)
def test_other_answers_are_not(pairs: Callable[..., AuditRequest], text: str) -> None:
    assert check(pairs("A real answer.", text)) == []


def test_rows_without_completions_are_not_looked_at(audited: Callable[..., AuditRequest]) -> None:
    assert isinstance(check(audited({"text": "As an AI, I cannot."})), Skipped)
