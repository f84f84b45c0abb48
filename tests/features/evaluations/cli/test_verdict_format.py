"""The verdict on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from luthier.core.evaluation import Evaluation
from luthier.features.evaluations.verdict_format import show_evaluation
from luthier.testing.records import make_evaluation


def shown(evaluation: Evaluation) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_evaluation(console, evaluation)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_headline_its_figures_and_caveats_are_shown_and_the_other_metrics_are_left_to_the_tables() -> None:
    evaluation = make_evaluation()
    assert evaluation.verdict is not None
    verdict = evaluation.verdict.model_copy(
        update={"details": ("against the base", "against 4 examples", "by BLEU"), "num_primary_details": 2}
    )
    text = shown(evaluation.model_copy(update={"verdict": verdict}))
    parts = ["Verdict: not distinguishable", "Cannot tell.", "against the base", "against 4 examples", "Note: few rows"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "by BLEU" not in text


@pytest.mark.parametrize("has_verdict", [True, False])
def test_cut_off_outputs_are_told_by_the_caveats_or_else_in_a_line(has_verdict: bool) -> None:
    evaluation = make_evaluation()
    cut = evaluation.systems[0].model_copy(update={"num_cut_off": 1})
    changes = {"systems": (cut, *evaluation.systems[1:])} | ({} if has_verdict else {"verdict": None})
    told = "base: 1 of 1 outputs were cut off at the token limit" in shown(evaluation.model_copy(update=changes))
    assert told is not has_verdict


def test_the_recommended_action_follows_the_verdict_with_its_reason() -> None:
    text = " ".join(shown(make_evaluation()).split())
    end = text[text.index("few rows") :]
    assert "The tuned model answers" in end
    assert "Recommended: Evaluate on about 400 held-out rows" not in end, "400 rows are more than 20 times one row"
    assert "Recommended: " in end
    without = shown(make_evaluation().model_copy(update={"verdict": None}))
    assert "Recommended" not in without
