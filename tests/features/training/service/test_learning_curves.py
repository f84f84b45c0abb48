"""The learning curve of a recipe: runs that are kept, found again, paused at a cap and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.workflows.learning_curve import LearningCurve
from luthier.features.recipes.service import load_recipe
from luthier.features.training import repeated_runs
from luthier.features.training.repeated_runs import PARTS, learning_curve
from luthier.ml.planning import defaults
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Path:
    training = {"epochs": 1, "global_batch_size": 16, "learning_rate": 0.01, "precision": "float32", "num_threads": 1}
    path = make_recipe(training=training)
    write_rows(path.parent / "train.jsonl", [chat_row(n) for n in range(1000, 1130)])
    return path


def curve_of(context: Context, recipe: Path, *overrides: str, **settings: Any) -> LearningCurve:
    return learning_curve(context, load_recipe(recipe, overrides), base_dir=recipe.parent, **settings)


def test_runs_on_shares_are_made_kept_and_found_again(
    context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = pause_after(context, recipe, 2, monkeypatch)
    assert [point.part for point in stopped.points] == list(PARTS[:2])
    assert stopped.fit is None
    assert any("no curve is fitted: 2 points" in note for note in stopped.notes)
    assert stopped.paused_because == "budget of 1 h for the learning curve is spent"
    assert len(context.runs.list()) == 2

    curve = curve_of(context, recipe)
    assert [point.part for point in curve.points] == list(PARTS)
    assert [point.num_rows for point in curve.points] == [16, 16, 17, 32, 33, 65, 130]
    kept = [(point.run_id, point.loss) for point in stopped.points]
    assert [(point.run_id, point.loss) for point in curve.points[:2]] == kept, "what was trained is not trained again"
    assert len(context.runs.list()) == 7
    assert curve.paused_because is None
    assert curve.fit is not None
    assert curve.num_validation_rows == 8
    assert json.loads(json.dumps(curve.as_json())) == curve.as_json()
    for record in context.runs.list():
        plan = context.runs.plan(record.run_id)
        assert plan.data.validation is not None
        assert plan.data.validation.num_examples == 8
        assert record.evaluation_id is None, "held-out rows judge once, at the end, and not here"
        assert plan.training.validate_every_steps == -(-plan.training.num_steps // 4)

    monkeypatch.setattr(repeated_runs, "train_prepared", lambda *_, **__: pytest.fail("all is trained"))
    monkeypatch.setattr(repeated_runs, "resume", lambda *_, **__: pytest.fail("all is trained"))
    assert curve_of(context, recipe).points == curve.points


def test_all_runs_have_the_batch_size_for_all_rows(
    context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With 16 rows a step, few rows would make fewer steps than the usual batch size is for.
    monkeypatch.setattr(defaults, "FEW_STEPS", 5)
    sizes = list[int]()

    def note(_context: Context, prepared: Any, *_: Any) -> None:
        sizes.append(prepared.plan.training.global_batch_size)

    monkeypatch.setattr(repeated_runs, "_train", note)
    assert curve_of(context, recipe, "training.global_batch_size=").points == ()
    assert sizes == [defaults.GLOBAL_BATCH_SIZE[0]] * len(PARTS)


def pause_after(context: Context, recipe: Path, num_runs: int, monkeypatch: pytest.MonkeyPatch) -> LearningCurve:
    """The curve of one whose hours are spent after so many runs."""
    real = repeated_runs._spent_seconds

    def spent(context: Context, record: Any) -> float:
        done = record is not None and len(context.runs.list()) >= num_runs
        return 4000.0 if done else real(context, record)

    with monkeypatch.context() as patched:
        patched.setattr(repeated_runs, "_spent_seconds", spent)
        return curve_of(context, recipe, hours=1.0)


def test_a_run_that_a_cap_has_paused_is_gone_on_with(
    context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.training.budget import Meter

    real, refused = Meter.refuses, [0]

    def refuses(self: Meter, action: Any, tokens: int = 0, *, num_checkpoints: int = 0) -> str | None:
        refused[0] += action == "step"
        if refused[0] == 2:
            return "budget of 1 h: 1 h spent"
        return real(self, action, tokens, num_checkpoints=num_checkpoints)

    monkeypatch.setattr(repeated_runs, "PARTS", ((0.0, 0.25), (0.0, 1.0)))
    with monkeypatch.context() as patched:
        patched.setattr(Meter, "refuses", refuses)
        stopped = curve_of(context, recipe, hours=1.0)
    assert stopped.points == ()
    assert stopped.paused_because == "budget of 1 h: 1 h spent"
    paused = context.runs.list()[0]
    assert (paused.status, paused.step) == ("paused", 1)
    curve = curve_of(context, recipe, hours=2.0)
    assert curve.points[0].run_id == paused.run_id
    assert len(curve.points) == 2


def test_without_validation_rows_some_are_taken_and_that_is_said(context: Context, recipe: Path) -> None:
    asked = load_recipe(recipe, ["data.validation=", "budget.hours=5"])
    ready, notes = repeated_runs._ready(asked)
    assert ready.data.validation == 0.1
    assert ready.budget is None
    assert [note.split(":")[0] for note in notes] == [
        "the recipe names no validation rows",
        "the recipe's budget is for the run itself",
    ]
    with pytest.raises(RequestError, match=r"data.subset \[0.0, 0.5\][\s\S]*remove data.subset"):
        curve_of(context, recipe, "data.subset=[0, 0.5]")


def test_few_hours_halve_the_largest_share_and_too_few_are_refused() -> None:
    planned = Estimate(value=4.0, low=3.0, high=5.0)
    assert repeated_runs._share(planned, None, 1000) == 1
    assert repeated_runs._share(planned, 4.0, 1000) == 1
    assert repeated_runs._share(planned, 3.9, 1000) == 0.5
    assert repeated_runs._share(planned, 1.0, 1000) == 0.25
    with pytest.raises(RequestError, match=r"0.1 hours[\s\S]*would have 2 rows[\s\S]*about 0.51 hours \[0.38, 0.64\]"):
        repeated_runs._share(planned, 0.1, 1000)
    with pytest.raises(RequestError, match=r"127 training rows[\s\S]*collect more rows"):
        repeated_runs._share(planned, None, 127)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_hours_that_are_none_are_refused(hours: float) -> None:
    with pytest.raises(RequestError, match="--budget-hours"):
        repeated_runs._share(Estimate(value=1.0, low=1.0, high=1.0), hours, 1000)


def test_parts_are_nested_and_repeats_share_no_row() -> None:
    nested = [part for part in PARTS if part[0] == 0.0]
    assert [end for _, end in nested] == [0.125, 0.25, 0.5, 1.0]
    for size in (0.125, 0.25):
        alike = sorted(part for part in PARTS if part[1] - part[0] == size)
        assert all(nonempty(one[1] <= other[0] for one, other in pairwise(alike)))


def test_a_limit_of_steps_holds_for_all_rows_and_shares_have_their_share_of_them(
    context: Context, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 130 rows, 16 a step, 9 steps are one pass; 18 are two, and so they are over each share of the rows."""
    steps = list[tuple[int, int]]()

    def note(_context: Context, prepared: Any, *_: Any) -> None:
        plan = prepared.plan
        steps.append((plan.data.train.num_examples, plan.training.num_steps))

    monkeypatch.setattr(repeated_runs, "_train", note)
    curve_of(context, recipe, "training.epochs=", "training.max_steps=18")
    assert steps == [(16, 2), (16, 2), (17, 4), (32, 4), (33, 6), (65, 10), (130, 18)]
