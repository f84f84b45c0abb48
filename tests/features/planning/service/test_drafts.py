"""Plans of drafts: by one warm process, the newest of each draft, kept for who asks again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import BusyError, LuthierError, RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.features.planning import drafts as draft_planner
from luthier.features.planning.drafts import DraftPlanner
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes import analysis as warm_child
from luthier.platform.processes.analysis import WarmChild


@pytest.fixture
def planner(context: Context) -> Iterator[DraftPlanner]:
    made = DraftPlanner(context)
    yield made
    made.close()


def test_one_process_plans_one_recipe_after_the_other(
    context: Context, planner: DraftPlanner, tiny_model: Path, tmp_path: Path
) -> None:
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), context.home, SilentProgress())
    path = write_rows(tmp_path / "train.jsonl", [chat_row(n) for n in range(40)])
    file = files.add_file(context, "default", path, filename="train.jsonl", purpose="fine-tune").file_id
    recipe: dict[str, Any] = {"base_model": "tiny", "data": {"train": file}, "training": {"epochs": 1}}
    planner.wake()
    first = planner.plan("default", "d", recipe, wait_seconds=120)
    assert first is not None
    assert first.plan is not None, first.error
    process = planner._child._child
    assert process is not None
    assert first.plan["plan"]["data"]["train"]["num_examples"] == 40
    assert first.plan["plan"]["recipe"]["data"]["train"] == file
    assert first.plan["advice"]["methods"][0]["method"]
    assert {"h100", "l4"} <= {row["device"] for row in first.plan["devices"]}
    assert {row["fits"] for row in first.plan["devices"]} == {True}
    assert planner.plan("default", "d", recipe, wait_seconds=0) is first
    wrong = planner.plan("default", "d", recipe | {"method": {"name": "full", "rank": 3}}, wait_seconds=120)
    assert wrong is not None
    assert isinstance(wrong.error, RequestError)
    assert planner.plan("default", "d", recipe | {"training": {"epochs": 2}}, wait_seconds=120)
    assert planner._child._child is process, "the same process has answered all of them"
    assert str(context.home) not in str(first.plan)
    planner.close()
    assert process.returncode is not None


class Slow:
    """Stands for the planning: waits until it is let go, or withdrawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[Any] = []
        self.release, self.killed = threading.Event(), threading.Event()
        monkeypatch.setattr(draft_planner, "plan_of", self._plan)
        monkeypatch.setattr(WarmChild, "kill", self._kill)

    def _plan(self, _: Context, project_id: str, recipe: dict[str, Any], **__: Any) -> dict[str, Any]:
        self.began.append(recipe["n"])
        while not self.release.is_set():
            if self.killed.is_set():
                raise WorkError("withdrawn", expected="", do="")
            time.sleep(0.005)
        if recipe["n"] == "broken":
            raise ValueError("a bug")
        return {"n": recipe["n"], "project": project_id}

    def _kill(self) -> None:
        self.killed.set()
        WarmChild.was_killed = True  # type: ignore[misc]


def in_turn(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_of_one_draft_only_the_newest_is_planned(planner: DraftPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    assert planner.plan("p", "mine", {"n": 1}, wait_seconds=0) is None
    in_turn(lambda: slow.began == [1])
    for number in (2, 3, 4):
        assert planner.plan("p", "mine", {"n": number}, wait_seconds=0) is None
    assert planner.plan("p", "other", {"n": 9}, wait_seconds=0) is None
    slow.release.set()
    last = planner.plan("p", "mine", {"n": 4}, wait_seconds=120)
    assert last is not None
    assert last.plan == {"n": 4, "project": "p"}
    assert planner.plan("p", "other", {"n": 9}, wait_seconds=120)
    assert slow.began == [1, 4, 9]
    other = planner.plan("q", "mine", {"n": 4}, wait_seconds=120)
    assert other is not None
    assert other.plan == {"n": 4, "project": "q"}, "one project never sees the plan of another"


def test_who_waits_for_what_was_changed_meanwhile_waits_no_longer(
    planner: DraftPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, answers = Slow(monkeypatch), []
    waiting = threading.Thread(target=lambda: answers.append(planner.plan("p", "d", {"n": 1}, wait_seconds=240)))
    waiting.start()
    in_turn(lambda: slow.began == [1])
    planner.plan("p", "d", {"n": 2}, wait_seconds=0)
    waiting.join(120)
    assert answers == [None]
    slow.release.set()


def test_a_long_plan_that_nobody_wants_is_ended(planner: DraftPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    monkeypatch.setattr(draft_planner, "_ABANDONED_SECONDS", 0.0)
    planner.plan("p", "d", {"n": 1}, wait_seconds=0)
    in_turn(lambda: slow.began == [1])
    planner.plan("p", "d", {"n": 2}, wait_seconds=0)
    in_turn(lambda: slow.killed.is_set())
    slow.killed.clear()
    slow.release.set()
    assert planner.plan("p", "d", {"n": 2}, wait_seconds=120)
    monkeypatch.setattr(WarmChild, "was_killed", False, raising=False)


def test_without_a_thread_nothing_waits_and_a_later_try_is_planned(
    planner: DraftPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    slow = Slow(monkeypatch)
    slow.release.set()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BusyError, match="no more threads"):
            planner.plan("p", "d", {"n": 1}, wait_seconds=0)
    assert planner.plan("p", "d", {"n": 2}, wait_seconds=120)
    assert slow.began == [2]


def test_a_bug_is_told_and_the_desk_goes_on(planner: DraftPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    slow.release.set()
    broken = planner.plan("p", "d", {"n": "broken"}, wait_seconds=120)
    assert broken is not None
    assert isinstance(broken.error, LuthierError)
    assert planner.plan("p", "d", {"n": 1}, wait_seconds=120)


def test_a_process_that_dies_is_told_of_and_started_again(context: Context) -> None:
    child = WarmChild()
    child.answer_to(context, "wake", {})
    assert child._child is not None
    os.kill(child._child.pid, 9)
    child._child.wait()
    assert child.answer_to(context, "wake", {})["device"] == "cpu"
    with pytest.raises(WorkError, match="without an answer"):
        child.answer_to(context, "no such question", {})  # type: ignore[arg-type]
    child.close()


def test_one_that_has_grown_large_is_followed_by_another(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_child, "LARGE_BYTES", 1)
    child, pids = WarmChild(), set[int]()
    for _ in range(2):
        assert child.answer_to(context, "wake", {})["device"] == "cpu"
        assert child._child is not None
        pids.add(child._child.pid)
    assert len(pids) == 2
    child.close()
