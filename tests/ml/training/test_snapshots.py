"""What a run was after each epoch: whole, kept for the last few, the same bytes after a kill, and no other outcome."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ml.training.conftest import FixedSchedule, random_examples
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.events import CheckpointSaved, Event, SnapshotSaved, StepDone, ValidationDone
from luthier.core.ids import sha256_file
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.training.checkpoint import CheckpointStore, Snapshots, save_model
from luthier.ml.training.loop import train
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


def run(
    plan: Plan,
    model: TrainableModel,
    folder: Path,
    examples: list[TokenisedExample],
    *,
    num_kept: int = 3,
    kill_after: type[Event] | None = None,  # type: ignore[valid-type]
    at: int = 0,
) -> list[Event]:
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if kill_after is not None and isinstance(event, kill_after) and event.step == at:
            raise KilledError

    train(
        plan,
        model,
        load_objective(plan.objective),
        [(e,) for e in examples],
        [([(e,) for e in random_examples(6, seed=2)], 0)],
        FixedSchedule(len(examples), 4, 3),
        CheckpointStore(folder / "checkpoints", plan.training.keep_checkpoints),
        emit=emit,
        stop_requested=lambda: None,
        progress=SilentProgress(),
        snapshot=Snapshots(Path(plan.base_model.path), folder, num_kept).save if num_kept else None,
    )
    save_model(model, Path(plan.base_model.path), folder)
    return events


def files_of(folder: Path) -> dict[str, str]:
    """Every file of the snapshots and of the outcome, by its place."""
    found = [path for name in ("snapshots", "adapter", "model") for path in (folder / name).rglob("*")]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in found if path.is_file()}


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    """Four epochs of two steps and half of a fifth; checkpoints lie elsewhere."""
    return make_plan(num_steps=9, num_steps_per_epoch=2, checkpoint_every_steps=3, validate_every_steps=4)


def test_the_last_epochs_are_kept_and_told_before_their_checkpoint(
    plan: Plan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    events = run(plan, make_model(plan), tmp_path, examples)
    saved = [event for event in events if isinstance(event, SnapshotSaved)]
    assert [event.step for event in saved] == [2, 4, 6, 8, 9]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        "step-00000006",
        "step-00000008",
        "step-00000009",
    ]
    steps = {event.step: event for event in events if isinstance(event, StepDone)}
    checks = {event.step: event for event in events if isinstance(event, ValidationDone)}
    assert saved[0].metrics == {
        "train_loss": steps[2].loss,
        "train_token_accuracy": steps[2].measures["token_accuracy"],
    }
    assert saved[1].metrics["valid_loss"] == checks[4].loss
    for event in saved:
        later = [other.step for other in events[: events.index(event)] if isinstance(other, CheckpointSaved)]
        assert [step for step in later if step >= event.step] == []


@pytest.mark.parametrize("method", ["full", "pissa", "adalora"])
def test_it_changes_nothing_of_the_run(
    make_plan: MakePlan, make_model: MakeModel, examples: list[TokenisedExample], tmp_path: Path, method: str
) -> None:
    plan = make_plan(method, num_steps=9, num_steps_per_epoch=2, checkpoint_every_steps=3, validate_every_steps=4)
    run(plan, make_model(plan), tmp_path / "with", examples)
    run(plan, make_model(plan), tmp_path / "without", examples, num_kept=0)
    with_them, without = files_of(tmp_path / "with"), files_of(tmp_path / "without")
    assert without
    assert {name: digest for name, digest in with_them.items() if not name.startswith("snapshots")} == without


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[Event]]:
    """The events of the run that is not killed, by its folder, once it was made."""
    return {tmp_path_factory.mktemp("plain"): []}


@pytest.fixture
def undisturbed(
    plan: Plan, make_model: MakeModel, examples: list[TokenisedExample], kept: dict[Path, list[Event]]
) -> tuple[Path, list[Event]]:
    ((folder, events),) = kept.items()
    if not events:
        events += run(plan, make_model(plan), folder, examples)
    return folder, events


@pytest.mark.parametrize(
    ("kill_after", "at"), [(SnapshotSaved, 6), (CheckpointSaved, 6), (StepDone, 7), (ValidationDone, 8)]
)
def test_killed_anywhere_it_makes_the_same_bytes(
    plan: Plan,
    make_model: MakeModel,
    examples: list[TokenisedExample],
    tmp_path: Path,
    undisturbed: tuple[Path, list[Event]],
    kill_after: type[Event],  # type: ignore[valid-type]
    at: int,
) -> None:
    with pytest.raises(KilledError):
        run(plan, make_model(plan), tmp_path, examples, kill_after=kill_after, at=at)
    again = run(plan, make_model(plan), tmp_path, examples)
    assert files_of(tmp_path) == files_of(undisturbed[0])
    told = {event.step: event.metrics for event in undisturbed[1] if isinstance(event, SnapshotSaved)}
    assert all(nonempty(told[event.step] == event.metrics for event in again if isinstance(event, SnapshotSaved)))


def test_an_older_one_done_over_again_takes_no_newer_ones_place(
    plan: Plan, make_model: MakeModel, tmp_path: Path
) -> None:
    model, snapshots = make_model(plan), Snapshots(Path(plan.base_model.path), tmp_path, 2)
    for step in (2, 4, 6):
        snapshots.save(model, step)
    snapshots.save(model, 2)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == ["step-00000004", "step-00000006"]


def test_one_that_is_used_stays_beside_the_newest(plan: Plan, make_model: MakeModel, tmp_path: Path) -> None:
    used = {2}
    model = make_model(plan)
    snapshots = Snapshots(Path(plan.base_model.path), tmp_path, 2, used.__contains__)
    for step in (2, 4, 6, 8):
        snapshots.save(model, step)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == [
        "step-00000002", "step-00000006", "step-00000008"
    ]  # fmt: skip
    used.clear()
    snapshots.save(model, 10)
    assert sorted(path.name for path in snapshots.folder.iterdir()) == ["step-00000008", "step-00000010"]
