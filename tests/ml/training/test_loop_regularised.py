"""The loop with noise, smoothing and averages: what is validated, kept and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.ml.training.test_loop import KilledError, WholeRuns, run, weights
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone, ValidationDone, comparable_loss
from luthier.core.plan import AveragePlan, Plan
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.model import TrainableModel, collate

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
EMA = AveragePlan(kind="ema", decay=0.8)
UNIFORM = AveragePlan(kind="uniform", from_step=3, every_steps=1)
EACH: list[dict[str, Any]] = [
    {"neftune_alpha": 5.0},
    {"average": EMA},
    {"average": UNIFORM},
    {"neftune_alpha": 5.0, "average": EMA, "weight_decay": 0.1},
]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> WholeRuns:
    return WholeRuns(tmp_path_factory.mktemp("whole"))


def smoothed(plan: Plan) -> Plan:
    return plan.model_copy(update={"objective": plan.objective.model_copy(update={"label_smoothing": 0.1})})


def weighted_by_probability(plan: Plan) -> Plan:
    return plan.model_copy(update={"objective": plan.objective.model_copy(update={"loss_weighting": "dft"})})


def validation_loss(model: TrainableModel) -> float:
    rows = random_examples(6, seed=2)
    model.module.eval()
    with torch.no_grad():
        total, _ = model.loss_sum(collate(rows, model.pad_id, "cpu"))
    return float(total) / sum(row.num_trained_tokens for row in rows)


@pytest.mark.parametrize("training", EACH)
@pytest.mark.parametrize("kill_at", [1, 4, 6])
def test_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    whole_runs: WholeRuns,
    training: dict[str, Any],
    kill_at: int,
) -> None:
    plan = smoothed(make_plan(dropout=0.2, precision="bfloat16", **training))
    resumes_exactly(plan, make_model, examples, tmp_path, whole_runs, kill_at)


def test_dft_killed_and_resumed_ends_byte_for_byte_the_same(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    whole_runs: WholeRuns,
) -> None:
    plan = weighted_by_probability(make_plan(dropout=0.2, precision="bfloat16"))
    resumes_exactly(plan, make_model, examples, tmp_path, whole_runs, kill_at=4)


def resumes_exactly(
    plan: Plan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    folder: Path,
    whole_runs: WholeRuns,
    kill_at: int,
) -> None:
    whole = whole_runs.of(plan, make_model, examples)
    with pytest.raises(KilledError):
        run(plan, make_model(plan), folder, examples, kill_at=kill_at)
    resumed = make_model(plan)
    outcome, events = run(plan, resumed, folder, examples)
    for name, expected in nonempty(whole.weights.items()):
        assert torch.equal(weights(resumed)[name], expected), name
    state = whole.outcome.state.model_copy(update={"seconds": 0})
    assert outcome.state.model_copy(update={"seconds": 0}) == state
    later = [(e.step, e.loss, e.measures) for e in events if isinstance(e, StepDone)]
    assert later == [(e.step, e.loss, e.measures) for e in whole.events if isinstance(e, StepDone)][-len(later) :]
    for step in (4, 6):
        one, other = (CheckpointStore(side, 2).load(step) for side in (whole.folder, folder))
        assert one.method.keys() == other.method.keys()
        assert all(torch.equal(one.method[name], other.method[name]) for name in one.method)


@pytest.mark.parametrize("average", [EMA, UNIFORM])
def test_the_average_is_what_is_validated_and_kept_and_training_goes_on_beside_it(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, average: AveragePlan
) -> None:
    plain_plan = make_plan(learning_rate=0.05, schedule="constant", validate_every_steps=1)
    plan = make_plan(learning_rate=0.05, schedule="constant", validate_every_steps=1, average=average)
    plain, averaged = make_model(plain_plan), make_model(plan)
    _, plain_events = run(plain_plan, plain, tmp_path / "plain", examples)
    outcome, events = run(plan, averaged, tmp_path / "averaged", examples)
    steps = [[e.loss for e in found if isinstance(e, StepDone)] for found in (plain_events, events)]
    assert steps[0] == steps[1], "an average is looked at, never trained from"

    validations = {e.step: e.loss for e in events if isinstance(e, ValidationDone)}
    others = {e.step: e.loss for e in plain_events if isinstance(e, ValidationDone)}
    begun = 1 if average.kind == "ema" else average.from_step
    assert begun is not None
    assert validations[begun] == others[begun]
    assert all(nonempty(validations[step] != others[step] for step in range(begun + 1, 7)))
    best = outcome.state.early_stopping.best_step
    assert best == min(validations, key=lambda step: validations[step])
    assert validation_loss(averaged) == pytest.approx(validations[best], rel=1e-4)


def test_without_validation_the_average_of_the_last_step_is_kept(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    def trained(num_kept: int, average: AveragePlan | None) -> TrainableModel:
        plan = make_plan(validate_every_steps=0, checkpoint_every_steps=1, keep_checkpoints=num_kept, average=average)
        model = make_model(plan)
        run(plan, model, tmp_path / str(average), examples, with_validation=False)
        return model

    trained(6, None)
    checkpoints = CheckpointStore(tmp_path / "None", 6)
    by_step = [checkpoints.load(step).weights for step in (4, 5, 6)]
    found = weights(trained(2, AveragePlan(kind="uniform", from_step=4, every_steps=1)))
    for name, weight in found.items():
        torch.testing.assert_close(weight, torch.stack([kept[name] for kept in by_step]).mean(0))


def test_a_paused_run_keeps_its_own_weights(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    plan = make_plan(validate_every_steps=0, average=EMA)
    model = make_model(plan)
    run(plan, model, tmp_path, examples, pause_at=3, with_validation=False)
    kept = CheckpointStore(tmp_path, 2).load(3)
    assert all(nonempty(torch.equal(weight, kept.weights[name]) for name, weight in weights(model).items()))


@pytest.mark.parametrize("changed", [smoothed, weighted_by_probability])
def test_smoothing_and_dft_show_the_plain_loss_beside_theirs_and_validate_by_it(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    changed: Callable[[Plan], Plan],
) -> None:
    plan = changed(make_plan(learning_rate=1e-9))
    _, events = run(plan, make_model(plan), tmp_path / "a", examples)
    plain = make_plan(learning_rate=1e-9)
    _, others = run(plain, make_model(plain), tmp_path / "b", examples)
    smooth_steps, plain_steps = ([e for e in found if isinstance(e, StepDone)] for found in (events, others))
    for one, other in nonempty(zip(smooth_steps, plain_steps, strict=True)):
        assert one.measures["plain_loss"] == pytest.approx(other.loss, rel=1e-4)
        assert one.loss != pytest.approx(other.loss, rel=1e-4)
    one_check, other_check = ([e.loss for e in found if isinstance(e, ValidationDone)] for found in (events, others))
    assert one_check == pytest.approx(other_check, rel=1e-4)


def test_overfitting_is_judged_by_the_plain_loss(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    """The loss that DFT minimises rises with the probability of a token while that is below 1 / e."""
    plan = weighted_by_probability(make_plan(validate_every_steps=3))
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    last = [event for event in events if isinstance(event, StepDone)][3:]
    plain = sum(event.measures["plain_loss"] * event.num_trained_tokens for event in nonempty(last))
    found = outcome.state.early_stopping.last_train_loss
    assert found == pytest.approx(plain / sum(event.num_trained_tokens for event in last))
    assert found != pytest.approx(sum(event.loss for event in last) / 3, rel=0.1)


@pytest.mark.parametrize("changed", [smoothed, weighted_by_probability, lambda plan: plan])
def test_the_mean_loss_of_a_run_is_kept_with_and_without_regularisation(
    make_plan: MakePlan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    changed: Callable[[Plan], Plan],
) -> None:
    plan = changed(make_plan())
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path, examples, kill_at=3)
    # the first two steps are in the checkpoint, and the third is trained again
    outcome, events = run(plan, make_model(plan), tmp_path, examples)
    _, whole = run(plan, make_model(plan), tmp_path / "whole", examples)
    steps = [event for event in whole if isinstance(event, StepDone)]
    state, num = outcome.state, sum(event.num_trained_tokens for event in steps)
    assert len([e for e in events if isinstance(e, StepDone)]) == 4
    assert state.plain_loss_weight == state.loss_weight == num
    assert state.loss_sum == pytest.approx(sum(event.loss * event.num_trained_tokens for event in steps))
    plain = sum(comparable_loss(event) * event.num_trained_tokens for event in steps)
    assert state.plain_loss_sum == pytest.approx(plain)
    assert (state.plain_loss_sum == state.loss_sum) is (changed(plan) is plan)


def test_a_run_that_an_earlier_version_began_has_no_plain_mean(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    """Of the steps before the resume it is not known."""
    plan = make_plan()
    run(plan, make_model(plan), tmp_path, examples, pause_at=2)
    store = CheckpointStore(tmp_path, 2)
    kept = store.load(2)
    before = kept.state.model_copy(update={"plain_loss_sum": None, "plain_loss_weight": 0.0})
    store.save(before, kept.weights, kept.moments, kept.method)
    outcome, _ = run(plan, make_model(plan), tmp_path, examples)
    assert outcome.state.step == 6
    assert outcome.state.plain_loss_sum is None
