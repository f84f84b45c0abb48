"""Progress of a child process: what it reports is shown by the progress of whoever asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.ports import Progress, ProgressTask, SilentTask
from luthier.platform.home.context import Context
from luthier.platform.processes import child_progress
from luthier.platform.processes.analysis import answer_to, persistent_processes
from luthier.platform.processes.child_progress import EventProgress, ShownEvents
from luthier.platform.ui.work_progress import ThreadProgress, WorkProgress, reporting_to


class Kept(SilentTask):
    """A task that keeps what was counted."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.facts, self.done, self.is_open = (title, total, unit), 0.0, False

    def advance(self, amount: float = 1) -> None:
        self.done += amount

    def __enter__(self) -> Kept:
        self.is_open = True
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.is_open = False


class Collected(Progress):
    def __init__(self) -> None:
        self.tasks: list[Kept] = []

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        self.tasks.append(Kept(title, total, unit))
        return self.tasks[-1]


def test_tasks_of_the_child_are_those_of_the_parent_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_progress, "_SECONDS_BETWEEN", 0.0)
    collected = Collected()
    with ShownEvents(collected) as shown:
        progress = EventProgress(shown.take)
        with progress.task("Reading", 3, "rows") as task:
            task.advance()
            task.advance(2)
            task.note("a file")
            progress.task("Left open", None, "").__enter__()
            assert [one.is_open for one in collected.tasks] == [True, True]
        assert [one.is_open for one in collected.tasks] == [False, True]
    assert [one.is_open for one in collected.tasks] == [False, False]
    assert [one.facts for one in collected.tasks] == [("Reading", 3, "rows"), ("Left open", None, "")]
    assert collected.tasks[0].done == 3


def test_counts_are_sent_a_few_times_a_second() -> None:
    sent: list[dict[str, Any]] = []
    with EventProgress(sent.append).task("Reading", 10_000, "rows") as task:
        for _ in range(10_000):
            task.advance()
    assert 3 <= len(sent) < 1_000
    assert ("begin" in sent[0], "advance" in sent[1], "end" in sent[-1]) == (True, True, True)


@pytest.mark.parametrize("keeps_process", [False, True])
def test_a_question_reports_where_its_caller_does(context: Context, tmp_path: Path, *, keeps_process: bool) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "spruce {n}", "completion": "wood"}}\n' for n in range(5)))
    collected = Collected()
    context.progress = ThreadProgress(collected)
    own = WorkProgress()
    seen = list[str]()
    open_task = own.task

    def task(title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        seen.append(title)
        return open_task(title, total, unit, done)

    own.task = task  # type: ignore[method-assign]

    def ask() -> None:
        answer_to(context, "diff", {"file": str(file), "against": str(file), "key": None})

    if keeps_process:
        with persistent_processes(), reporting_to(own):
            ask()
    else:
        with reporting_to(own):
            ask()
    assert "check rows.jsonl" in seen
    assert collected.tasks == [], "it was asked for by this work alone"
    assert own.stages() == ()
