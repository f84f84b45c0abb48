"""The recorder of a run: its events in the store, what the machine does beside them, and its log."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import event
from tests.fixtures.service import write_recipe
from tests.fixtures.statements import statements

from luthier.core.events import (
    CheckpointUploaded,
    MachineSampled,
    RunEnded,
    RunStarted,
    SamplesAnswered,
    WarningRaised,
    event_adapter,
)
from luthier.core.system import machine_usage
from luthier.features.recipes.service import load_recipe
from luthier.features.training.recorder import RunLog, event_text, recorder
from luthier.features.training.service import train
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record, make_step


@pytest.fixture
def run_id(context: Context) -> str:
    context.settings.run_folder(RUN_ID).mkdir(parents=True)
    context.runs.create(make_record(), make_plan())
    return RUN_ID


def test_a_sample_of_the_machine_is_stored_after_the_first_step_and_survives_a_resume(
    context: Context, run_id: str
) -> None:
    emit = recorder(context, run_id, [])
    emit(RunStarted(from_step=0, num_steps=10))
    for step in (1, 2, 3):
        emit(make_step(step))
    found = [event for event in context.runs.events(run_id) if isinstance(event, MachineSampled)]
    assert [event.step for event in found] == [1], "the next one is due in five seconds"
    assert found[0].run_memory_bytes > 0
    again = recorder(context, run_id, [])
    again(RunStarted(from_step=2, num_steps=10))
    again(make_step(3))
    found = [event for event in context.runs.events(run_id) if isinstance(event, MachineSampled)]
    assert [event.step for event in found] == [1, 3]


def test_a_step_takes_one_transaction_that_reads_nothing(context: Context, run_id: str) -> None:
    emit = recorder(context, run_id, [])
    emit(make_step(1))  # with a sample of the machine
    commits: list[object] = []
    note = commits.append  # the same object for both
    event.listen(context.database._engine, "commit", note)
    with statements(context) as seen:
        emit(make_step(2))
    event.remove(context.database._engine, "commit", note)
    verbs = [statement.split()[0] for statement in seen]
    assert [verb for verb in verbs if verb not in ("BEGIN", "PRAGMA")] == ["DELETE", "INSERT", "UPDATE"]
    assert len(commits) == 1
    assert context.runs.get(run_id).step == 2


def test_gpus_are_asked_where_the_run_trains_on_one(
    context: Context, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(machine_usage.Nvml, "open", lambda: asked.append(True))
    recorder(context, run_id, [])(make_step(1))
    assert asked == []
    recorder(context, run_id, [], device="cuda")(make_step(2))
    assert asked == [True]


def test_the_log_has_a_line_an_event_over_all_starts(context: Context, run_id: str) -> None:
    warnings: list[str] = []
    for start in (0, 1):
        emit = recorder(context, run_id, warnings)
        emit(RunStarted(from_step=start, num_steps=10))
        emit(make_step(start + 1))
        emit(make_step(start + 2))
        emit(WarningRaised(step=start + 2, code="x", message="two\nlines"))
        emit(RunEnded(step=start + 2, status="paused", reason="of the loop"))
    lines = (context.settings.run_folder(run_id) / "log.txt").read_text(encoding="utf-8").splitlines()
    said = [line.partition("  ")[2] for line in lines]
    assert said[0] == "started, 10 steps in all"
    assert said[2] == "step 2  warning: two lines"
    assert said[3] == "resumed after step 1, 10 steps in all"
    assert len(said) == 6, "of steps one a second, and the end where the record is closed"
    assert warnings == ["two\nlines"] * 2


def test_a_run_with_sample_prompts_trains_the_same_adapter(tmp_path: Path, tiny_model: Path) -> None:
    digests, found = [], []
    for number in (0, 2):
        recipe = write_recipe(
            tmp_path / f"work-{number}",
            tiny_model,
            data={"train": "train.jsonl", "validation": "valid.jsonl"},
            evaluation={"sample_prompts": number, "max_new_tokens": 4},
        )
        with Context.open(tmp_path / f"home-{number}") as context:
            outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
            events = context.runs.events(outcome.record.run_id)
            found.append([event for event in events if isinstance(event, SamplesAnswered)])
            assert any(isinstance(event, MachineSampled) for event in events)
        digests.append(outcome.as_json()["adapter_sha256"])
    assert digests[0] == digests[1]
    assert found[0] == []
    assert {0, 2, 4, 10} <= {event.step for event in found[1]}
    first = found[1][0].answers
    assert len({answer.prompt for answer in first}) == len(first) == 2
    assert all(answer.reference for answer in first)


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    RunLog(tmp_path / "missing").write(make_step(1))


def test_a_step_of_rows_of_unknown_number_has_no_epoch() -> None:
    step = make_step(3)
    assert event_text(step).startswith("step 3  epoch 0.60  loss ")
    unknown = step.model_copy(update={"epoch": None})
    assert event_text(unknown).startswith("step 3  loss ")
    assert event_adapter.validate_json(unknown.model_dump_json()) == unknown


def test_an_upload_is_a_line_of_the_log() -> None:
    event = CheckpointUploaded(step=40, num_bytes=4_200_000, seconds=1.25)
    text = event_text(event)
    assert text.startswith("step 40  checkpoint uploaded to object storage (")
    assert text.endswith(" in 1.2 s)")
    assert event_adapter.validate_json(event.model_dump_json()) == event
