"""`luthier plan --advise` and `--learning-curve`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.features.training.cli.test_cli import recipe as recipe  # the same small recipe

from luthier.core.estimate import Estimate
from luthier.core.workflows.learning_curve import CurvePoint, LearningCurve
from luthier.features.training.format import show_learning_curve
from luthier.ml.planning.learning_curve import fit_power_law


def test_advice_stands_in_the_document_and_in_the_text(luthier, recipe: Path) -> None:  # type: ignore[no-untyped-def]
    done = luthier("plan", recipe, "--advise", "--json")
    assert done.code == 0, done.err
    advice = done.document["advice"]
    assert advice["method"] == "lora"
    assert {one["method"] for one in advice["methods"]} == {"full", "lora", "adalora", "qlora"}
    text = luthier("plan", recipe, "--advise").out
    assert "advice: LoRA with rank" in text
    assert "recommended" in text
    assert "advice" not in luthier("plan", recipe, "--json").document


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-curve", "--advise"], "--learning-curve with"),
        (["--learning-curve", "--on", "cpu"], "--learning-curve with"),
        (["--budget-hours", "2"], "--budget-hours without --learning-curve"),
        (["--learning-curve", "--budget-hours", "0"], "--budget-hours 0"),
        (["--learning-curve", "--chart", "curve.gif"], "curve.gif"),
        (["--learning-curve"], "11 training rows: the smallest run would have"),
    ],
)
def test_wrong_questions(luthier, recipe: Path, flags: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("plan", recipe, *flags, "--json")
    assert done.code == 2
    assert words in done.document["error"]["came"]
    assert luthier("runs", "list", "--json").document == []


def test_a_curve_is_told_with_what_more_rows_buy(capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.platform.cli.console import stdout_console

    sizes = (125, 125, 125, 250, 250, 500, 1000)
    points = tuple(
        CurvePoint(part=(0.0, n / 1000), num_rows=n, loss=0.5 + 3.0 * n**-0.4, run_id=f"run-{i}", hours=0.01)
        for i, n in enumerate(sizes)
    )
    curve = LearningCurve(
        points=points,
        fit=fit_power_law(points),
        planned_hours=Estimate(value=0.1, low=0.05, high=0.2),
        spent_hours=0.07,
        cap_hours=0.5,
        num_validation_rows=40,
        paused_because="budget of 0.5 h: 0.5 h spent",
        notes=("a note",),
    )
    show_learning_curve(stdout_console(), curve)
    out = capsys.readouterr().out
    for words in (
        "200 more rows would buy about 0.013 nats",
        "40 rows, the same for every run",
        "a cap of 30 min",
        "+1,000 rows",
        "note: a note",
        "The same command continues where it stopped",
    ):
        assert words in out
    json.dumps(curve.as_json())
