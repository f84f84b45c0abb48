"""Steps of a streamed run: full batches, exact counts, and the same rows after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.stream.test_reading import opener

from luthier.core.dataset import Overlong
from luthier.core.errors import DataError, OverlongError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.recipe import OrderName
from luthier.core.task_head import TaskHead
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.stream.reading import RecordStream, Shard
from luthier.ml.data.stream.rows import RowTokeniser, SourceShape
from luthier.ml.data.stream.schedule import StreamSchedule
from luthier.ml.data.text.normalise import content_key, prompt_key
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.data.tokenise.loss_mask import PLAIN, Learning
from luthier.ml.data.tokenise.token_store import Units
from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

SIZE = 4
QUESTIONS = SourceShape("prompt_completion", "its fields are prompt and completion", {})


def row(number: int) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "completion": "one " * (1 + number % 9)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Fifty rows, of one to nine words."""
    return write(tmp_path / "rows.jsonl", [row(n) for n in range(50)])


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def divide(units: Units) -> StepSchedule:
    return StepSchedule(units.longest, global_batch_size=len(units), micro_batch_tokens=60, order="as_given", seed=0)


def schedule_of(
    file: Path,
    chat: ChatTemplate,
    *,
    num_steps: int = 20,
    order: OrderName = "by_length",
    overlong: Overlong = "drop",
    most: int = 1000,
    left_out: frozenset[str] = frozenset(),
    folder: Path | None = None,
    shape: SourceShape = QUESTIONS,
    head: TaskHead | None = None,
    prompts: Mapping[str, Sequence[int]] | None = None,
) -> StreamSchedule:
    records = RecordStream(
        [(Shard(0, file.name, opener(file)),)],
        None,
        seed=1,
        buffer_size=1 if order == "as_given" else 8,
        memory_bytes=1 << 24,
    )
    tokeniser = RowTokeniser(
        [shape],
        chat,
        learning=PLAIN if head is None else Learning(task_head=head.kind),
        rewrite=None,
        max_length_tokens=most,
        overlong=overlong,
        vocabulary_size=1 << 20,
        left_out=left_out,
        prompts=prompts or {},
        head=head,
    )
    return StreamSchedule(
        records,
        tokeniser,
        num_steps=num_steps,
        num_steps_per_epoch=13,
        global_batch_size=SIZE,
        order=order,
        seed=1,
        divide=divide,
        folder=folder,
    )


def ids_of(schedule: StreamSchedule, step: int) -> list[str]:
    return [schedule.units[number][0].id for batch in schedule.step(step) for number in batch]


@pytest.mark.parametrize("order", ["by_length", "shuffled", "as_given"])
def test_steps_are_full_and_an_epoch_ends_in_the_middle_of_one(
    file: Path, chat: ChatTemplate, order: OrderName
) -> None:
    schedule = schedule_of(file, chat, order=order, num_steps=25)
    steps = [ids_of(schedule, step) for step in range(25)]
    assert {len(step) for step in steps} == {SIZE}
    found = [row_id for step in steps for row_id in step]
    # Two epochs of fifty rows: windows by length reach across the end of an epoch.
    assert sorted(found) == sorted(f"rows.jsonl:{n}" for n in [*range(1, 51), *range(1, 51)])
    assert (schedule.counts(25).num_epochs, schedule.counts(25).num_waiting) == (2, 0)
    assert schedule.epoch_of(13) == 1
    # Where nothing says how many rows there are, 13 are but those of the first rows.
    schedule._has_epochs = False
    assert schedule.epoch_of(13) is None
    given = [f"rows.jsonl:{n}" for n in range(1, 5)]
    assert (sorted(steps[0]) == sorted(given)) is (order == "as_given")


def test_rows_of_a_batch_are_of_like_length_and_numbered_by_their_step(file: Path, chat: ChatTemplate) -> None:
    schedule = schedule_of(file, chat)
    spreads = []
    for step in range(16):
        numbers = [number for batch in schedule.step(step) for number in batch]
        assert sorted(numbers) == list(range(step * SIZE, (step + 1) * SIZE))
        lengths = [schedule.units[number][0].num_tokens for number in numbers]
        spreads.append(max(lengths) - min(lengths))
    assert sum(spreads) / len(spreads) <= 1.5
    whole = [ids_of(schedule, 3), [schedule.shared_tokens(batch) for batch in schedule.step(3)]]
    parts = [number for rank in range(2) for batch in schedule.share(3, rank, 2) for number in batch]
    assert sorted(schedule.units[number][0].id for number in parts) == sorted(whole[0])
    assert set(whole[1]) == {()}
    assert len(schedule.units) == 20 * SIZE


@pytest.mark.parametrize(("order", "step"), [("by_length", 16), ("by_length", 18), ("shuffled", 7), ("shuffled", 20)])
def test_a_run_goes_on_from_the_position_of_a_step(file: Path, chat: ChatTemplate, order: OrderName, step: int) -> None:
    whole = schedule_of(file, chat, order=order, most=24)
    for before in range(step):
        whole.step(before)
    position = whole.position(step)
    assert position is not None
    again = schedule_of(file, chat, order=order, most=24)
    again.resume_at(type(position).model_validate_json(position.model_dump_json()))
    for later in range(step, 20):
        assert ids_of(again, later) == ids_of(whole, later)
    assert again.counts(20) == whole.counts(20)
    assert again.position(20) == whole.position(20)
    # Without a position the stream is read from its beginning.
    if step < 20:
        anew = schedule_of(file, chat, order=order, most=24)
        assert ids_of(anew, step) == ids_of(schedule_of(file, chat, order=order, most=24), step)


def test_rows_that_are_too_long_are_treated_and_counted_as_those_of_a_file(file: Path, chat: ChatTemplate) -> None:
    examples = load_file(file).examples
    for overlong in ("drop", "truncate"):
        made = tokenise_all(
            examples, chat, max_length_tokens=24, overlong=overlong, progress=SilentProgress(), learning=PLAIN
        )
        num_steps = len(made.kept) // SIZE
        schedule = schedule_of(file, chat, order="as_given", overlong=overlong, most=24, num_steps=num_steps)
        found = {}
        for number in range(num_steps * SIZE):
            (unit,) = schedule.units[number]
            found[unit.id] = unit
        assert found == {one.id: one for one in made.examples[: len(found)]}
        counts = schedule.counts(num_steps)
        assert counts.num_rows == counts.num_examples + counts.num_dropped
        assert set(counts.dropped_ids) <= set(made.dropped_ids)
        assert set(counts.truncated_ids) <= set(made.truncated_ids)
        assert (counts.num_dropped > 0, counts.num_truncated > 0) == (overlong == "drop", overlong == "truncate")
    with pytest.raises(OverlongError, match=r"row rows\.jsonl:\d+ of a streamed source has \d+ tokens"):
        schedule_of(file, chat, overlong="error", most=24).step(0)


def test_rows_that_judge_are_left_out_and_counted(file: Path, chat: ChatTemplate) -> None:
    judged = load_file(file).examples[:5]
    schedule = schedule_of(file, chat, order="as_given", left_out=frozenset(map(content_key, judged)))
    assert ids_of(schedule, 0)[0] != "rows.jsonl:1"
    counts = schedule.counts(1)
    assert (counts.num_left_out, counts.left_out_ids) == (5, tuple(example.id for example in judged))
    assert "5 left out as validation or held-out rows (rows.jsonl:1, " in counts.summary


def test_a_row_of_another_schema_ends_the_run_and_is_named(tmp_path: Path, chat: ChatTemplate) -> None:
    rows = [row(n) for n in range(20)] + [{"question": "Why?", "answer": "So."}, row(21)]
    schedule = schedule_of(write(tmp_path / "rows.jsonl", rows), chat, order="as_given", num_steps=9)
    for step in range(5):
        schedule.step(step)
    with pytest.raises(DataError, match=r"row rows\.jsonl:21 of a streamed source is wrong: prompt") as caught:
        schedule.step(5)
    assert "rows of shape prompt_completion to the end" in caught.value.expected
    write(tmp_path / "rows.jsonl", [*rows[:20], {"prompt": "Why?", "completion": None}])
    with pytest.raises(DataError, match=r"rows\.jsonl:21 .* completion"):
        schedule_of(tmp_path / "rows.jsonl", chat, order="as_given", num_steps=9).step(5)


def test_a_forked_process_reads_the_rows_of_a_step_from_the_window(
    file: Path, chat: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    parent = schedule_of(file, chat, order="shuffled", folder=folder)
    worker = schedule_of(file, chat, order="shuffled", folder=folder)
    expected = [
        (parent.step(step), [parent.units[number] for number in range(4 * step, 4 * step + 4)]) for step in (0, 1)
    ]
    monkeypatch.setattr(worker, "_owner", -1)
    assert (worker.step(1), worker.units[4:8]) == expected[1]
    with pytest.raises(WorkError, match="has read window 1 of its stream"):
        worker.step(2)


def test_the_two_sides_of_a_pair_stay_together(tmp_path: Path, chat: ChatTemplate) -> None:
    rows = [
        {"prompt": f"What is {n}?", "chosen": "good " * (1 + n % 3), "rejected": "bad " * (1 + n % 11)}
        for n in range(30)
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    shape = SourceShape("preference", "its fields are chosen and rejected", {})
    schedule = schedule_of(file, chat, num_steps=6, most=24, shape=shape)
    units = [schedule.units[number] for number in range(6 * SIZE)]
    assert {(len(unit), unit[0].is_wanted, unit[1].is_wanted) for unit in units} == {(2, True, False)}
    assert {unit[0].id for unit in units} == {unit[1].id for unit in units}
    assert schedule.counts(6).num_dropped > 0, "where one side is too long the pair goes"


def test_a_row_has_the_target_of_its_class_and_one_of_another_class_ends_the_run(
    tmp_path: Path, chat: ChatTemplate
) -> None:
    rows = [{"prompt": f"Is {n} even?", "completion": ("Yes", "no")[n % 2]} for n in range(8)]
    file = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "Is 0.5 even?", "completion": "never"}])
    head = TaskHead(kind="classify", width=8, labels=("yes", "no"))
    schedule = schedule_of(file, chat, order="as_given", num_steps=3, head=head)
    assert [schedule.units[number][0].target for number in range(8)] == [(0,), (1,)] * 4
    with pytest.raises(DataError, match=r'row rows\.jsonl:9 of a streamed source has class "never", which') as caught:
        schedule.step(2)
    assert "one of the 2 classes" in caught.value.expected


def test_held_out_rows_whose_prompt_is_trained_are_counted(file: Path, chat: ChatTemplate) -> None:
    judged = load_file(write(file.with_name("judged.jsonl"), [row(n) | {"completion": "Other."} for n in (30, 2, 3)]))
    prompts = {str(prompt_key(example)): (number,) for number, example in enumerate(judged.examples)}
    schedule = schedule_of(file, chat, order="as_given", prompts=prompts)
    schedule.step(0)
    assert schedule.counts(1).same_prompt == (1, 2)
    again = schedule_of(file, chat, order="as_given", prompts=prompts)
    again.resume_at(schedule.position(1))
    for step in range(1, 8):
        again.step(step)
    counts = again.counts(8)
    assert counts.same_prompt == (0, 1, 2)
    assert "3 held-out rows have the prompt of a row, with another answer" in counts.summary
    assert counts.warnings == (counts.summary,)
