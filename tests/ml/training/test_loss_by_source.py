"""The loss of replayed rows apart: by hand, and in the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import FixedSchedule
from tests.ml.training.test_loop import run
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone
from luthier.core.plan import Plan, ReplayPlan
from luthier.ml.training.losses.replay_loss import split_loss_by_source, with_source_loss
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import Losses


def test_two_means_by_hand(examples: list[TokenisedExample]) -> None:
    task, general = (examples[0],), (replace(examples[1], is_replayed=True),)
    one = with_source_loss(Losses(torch.tensor(6.0)), [task], 3.0)
    two = with_source_loss(Losses(torch.tensor(10.0)), [general], 2.0)
    sums = {name: float(one.measures[name] + two.measures[name]) / 5 for name in one.measures}
    found = split_loss_by_source(sums, 16 / 5)
    assert found == {"task_loss": pytest.approx(2.0), "replay_loss": pytest.approx(5.0)}


def test_both_are_plain_where_the_loss_is_smoothed(examples: list[TokenisedExample]) -> None:
    losses = Losses(torch.tensor(9.0), {"plain_loss": torch.tensor(6.0)})
    found = with_source_loss(losses, [(examples[0],)], 3.0)
    means = split_loss_by_source({name: float(value) / 3 for name, value in found.measures.items()}, 3.0)
    assert means == {"plain_loss": pytest.approx(2.0), "task_loss": pytest.approx(2.0)}


def test_the_loop_reports_both_losses(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    examples: list[TokenisedExample],
    tmp_path: Path,
) -> None:
    """Micro-batches of three and one: every fourth row is a replayed one."""
    plan = make_plan(learning_rate=1e-9)
    data = plan.data.model_copy(update={"replay": ReplayPlan(num_per_step=1, fraction=0.25)})
    mixed = [replace(e, is_replayed=i % 4 == 3) for i, e in enumerate(examples)]
    model = make_model(plan)
    _, events = run(plan.model_copy(update={"data": data}), model, tmp_path, mixed)

    def mean(rows: list[TokenisedExample]) -> float:
        with torch.no_grad():
            total, _ = model.loss_sum(collate(rows, model.pad_id, "cpu"))
        return float(total) / sum(row.num_trained_tokens for row in rows)

    for event in nonempty(e for e in events if isinstance(e, StepDone)):
        rows = [mixed[i] for batch in FixedSchedule(len(mixed), 4, 3).step(event.step - 1) for i in batch]
        assert event.measures["task_loss"] == pytest.approx(mean(rows[:3]), rel=1e-4)
        assert event.measures["replay_loss"] == pytest.approx(mean(rows[3:]), rel=1e-4)
        assert event.loss == pytest.approx(mean(rows), rel=1e-4)


def test_overfitting_is_judged_by_the_rows_of_the_task(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    examples: list[TokenisedExample],
    tmp_path: Path,
) -> None:
    """As a validation is, which has no general rows."""
    plan = make_plan(learning_rate=1e-9)
    data = plan.data.model_copy(update={"replay": ReplayPlan(num_per_step=1, fraction=0.25)})
    mixed = [replace(e, is_replayed=i % 4 == 3) for i, e in enumerate(examples)]
    model = make_model(plan)
    outcome, _ = run(plan.model_copy(update={"data": data}), model, tmp_path, mixed)
    schedule = FixedSchedule(len(mixed), 4, 3)
    last = [mixed[i] for step in (4, 5) for batch in schedule.step(step) for i in batch]
    rows = [row for row in last if not row.is_replayed]
    with torch.no_grad():
        total, _ = model.loss_sum(collate(rows, model.pad_id, "cpu"))
    mean = float(total) / sum(row.num_trained_tokens for row in rows)
    assert outcome.state.early_stopping.last_train_loss == pytest.approx(mean, rel=1e-4)
