"""The notes of a search for the base's best prompt are German on German pages, with both forms of their numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.ml.baselines.test_predict import example
from tests.vacuous import nonempty

from luthier.core.ports import SilentProgress
from luthier.features.evaluations.prompt_search import PromptSearch, _Search
from luthier.features.models.resolve import Candidate
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.prompting import reflection
from luthier.ml.prompting.reflection import Reflected
from luthier.ml.prompting.search import FoundPrompt
from luthier.platform.ui.i18n.environments import words

ROWS = tuple(example(n, f"Question {n}?", "yes") for n in range(1, 9))
BASE = Candidate("base", "tiny", "tiny", None, "chat", "float32", "cpu", 512)
FOUND = FoundPrompt(place=0, figure=0.75, num_rows=8, num_tried=6, num_tokens=1234, outputs=())
REFLECTED = Reflected(
    instruction="Name the label. The answer is one word.", figure=0.8, num_rows=8, num_tokens=600,
    num_writer_tokens=1, num_written=1, num_kept=1, stopped="a budget of 50 tokens for a search over prompts",
)  # fmt: skip
ENGLISH = re.compile(r"\b(?:the|of|and|are|with|wrote|rows?|was|were|is|has|search|instructions?|better|examples?)\b")


def work(feedback: int = 4) -> _Search:
    search = PromptSearch(
        budget_tokens=60_000, rows=ROWS, pool=ROWS, num_examples=4, seed=0, feedback=ROWS[:feedback],
        reflection_model="writer",
    )  # fmt: skip
    (metric,) = load_metrics(["label_accuracy"])
    return _Search(BASE, search, cast("Any", None), cast("Any", metric), SilentProgress())


def in_english(notes: tuple[str, ...]) -> list[str]:
    """Notes that are not German, each as a page shows it. A quoted instruction is a text of the model."""
    shown = {note: words("de").found(note) for note in nonempty(notes)}
    return [f"{note} -> {text}" for note, (text, known) in shown.items()
            if not known or ENGLISH.search(re.sub(r'"[^"]*"', "", text))]  # fmt: skip


@pytest.mark.parametrize(
    "best",
    [
        BASE,
        replace(BASE, instruction="Answer in one word. Use no other words, and give no reasons."),
        replace(BASE, shots=ROWS[:1]),
        replace(BASE, shots=ROWS[:4], instruction="Answer."),
        replace(BASE, nearest_from=ROWS, num_nearest=1),
        replace(BASE, nearest_from=ROWS, num_nearest=4),
    ],
)
def test_what_a_search_has_found(best: Candidate) -> None:
    assert in_english(work().outcome(best, FOUND)[1]) == []


def test_the_best_prompt_in_german() -> None:
    _, notes = work().outcome(replace(BASE, shots=ROWS[:4]), FOUND)
    assert [words("de")(note) for note in notes] == [
        "Eine Suche über 6 Prompts auf 8 Zeilen, die nicht evaluiert werden, hat 1.234 von 60.000 Tokens gelesen und "
        "geschrieben. Der beste von vielen sieht auf diesen Zeilen besser aus, als er ist.",
        "Der beste Prompt hat 4 zufällige Beispiele.",
        "Label-Genauigkeit auf 8 Zeilen der Suche: 0,75.",
    ]


@pytest.mark.parametrize("change", [{}, {"num_written": 3, "num_writer_tokens": 1200, "num_kept": 0}, {"stopped": ""}])
def test_what_a_reflection_model_has_done(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(reflection, "reflect", lambda *_args, **_named: replace(REFLECTED, **change))
    one = work()
    monkeypatch.setattr(_Search, "_instructed", lambda _self, _own: cast("Any", "rows"))
    _, notes = one.reflect("writer", cast("Callable[[str], Any]", lambda _: None), BASE, FOUND)
    assert in_english(notes) == []
    assert len(notes) == (3 if change.get("stopped") == "" else 4)


def test_why_a_reflection_model_has_written_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for left in (1, 2):
        assert in_english(work(left).reflect("writer", cast("Any", None), BASE, FOUND)[1]) == []
    monkeypatch.setattr(_Search, "_instructed", lambda _self, _own: None)
    assert in_english(work().reflect("writer", cast("Any", None), BASE, FOUND)[1]) == []
