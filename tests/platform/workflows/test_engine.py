"""The engine of workflows: resume after a kill, refusals, what runs again when inputs change, time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotAllowedError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.system.files import file_lock
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    Outcome,
    PausedError,
    StageRefusedError,
    StageSpec,
    TimedOutcome,
    Workflow,
    WorkflowRun,
    lock_of,
    remaining_seconds,
    resume,
    spent_hours,
)

ME = Caller()


class Asked(FrozenModel):
    """What is asked."""

    goal: str = "x"
    file: str = ""


class Number(Outcome):
    """A number."""

    value: int = 0
    run_id: str = ""
    reason: str = ""

    @property
    def why_skipped(self) -> str:
        """Why there is no number."""
        return self.reason


Work = Callable[[WorkflowRun], Outcome]


def workflow(stages: Sequence[StageSpec]) -> Workflow:
    return Workflow(
        kind="auto",
        noun="an auto",
        request=Asked,
        stages=lambda _spec: list(stages),
        folder="autos",
        subject=lambda asked: str(asked["goal"]),
        summary=lambda asked: str(asked["goal"]),
        details=lambda asked: asked,
        answer=lambda _pipeline: "",
    )


def stage(name: str, work: Work, *needs: str, **more: Any) -> StageSpec:
    return StageSpec(name, f"the stage {name}", work, Number, needs, **more)


def begin(context: Context, of: Workflow, **asked: Any) -> str:
    return of.create(context, ME, new_id("auto"), Asked(**asked)).pipeline_id


def statuses(context: Context, pipeline_id: str) -> list[str]:
    return [one.status for one in context.pipelines.get(pipeline_id).stages]


def test_no_stage_begins_once_access_is_lost_and_what_was_made_stays(context: Context) -> None:
    def refuse() -> None:
        raise NotAllowedError("the key 'ci' was revoked", expected="a key", do="another key")

    def one(_run: WorkflowRun) -> Number:
        context.check_access = refuse
        return Number(value=3)

    begun: list[str] = []

    def two(_run: WorkflowRun) -> Number:
        begun.append("two")
        return Number(value=4)

    both = workflow([stage("one", one), stage("two", two, "one")])
    made = begin(context, both)
    with pytest.raises(NotAllowedError, match="was revoked"):
        resume(both, context, ME, made)
    assert statuses(context, made) == ["done", "failed"]
    assert context.pipelines.get(made).stages[1].reason == "the key 'ci' was revoked"
    assert begun == []
    context.check_access = lambda: None
    assert resume(both, context, ME, made).outcome("two", Number).value == 4


def test_what_a_stage_makes_reaches_the_next_and_is_not_made_again(context: Context) -> None:
    calls: list[str] = []

    def one(_run: WorkflowRun) -> Number:
        calls.append("one")
        return Number(value=3)

    def two(run: WorkflowRun) -> Number:
        calls.append("two")
        if len(calls) == 2:
            raise RequestError("no", expected="yes", do="again")
        return Number(value=run.outcome("one", Number).value * 2)

    both = workflow([stage("one", one), stage("two", two, "one")])
    made = begin(context, both)
    with pytest.raises(RequestError):
        resume(both, context, ME, made)
    assert statuses(context, made) == ["done", "failed"]
    done = resume(both, context, ME, made)
    assert calls == ["one", "two", "two"]
    assert done.outcome("two", Number).value == 6
    assert done.pipeline.next_stage is None
    assert context.pipelines.get(made) == done.pipeline
    assert resume(both, context, ME, made).pipeline == done.pipeline
    assert calls == ["one", "two", "two"], "nothing is done again"


def test_what_a_stage_has_begun_is_known_after_a_kill(context: Context) -> None:
    ids: list[str] = []

    def train(run: WorkflowRun) -> Number:
        ids.append(run.outcome("train", Number).run_id)
        if len(ids) == 1:
            raise KeyboardInterrupt
        return Number(value=1)

    only = workflow([stage("train", train, begin=lambda _run: Number(run_id=new_id("run")))])
    made = begin(context, only)
    with pytest.raises(KeyboardInterrupt):
        resume(only, context, ME, made)
    assert statuses(context, made) == ["running"]
    done = resume(only, context, ME, made)
    assert ids[0] == ids[1]
    assert done.pipeline.came("train") == {"run_id": ids[0], "value": 1}


def test_a_refusal_ends_it_without_an_error(context: Context) -> None:
    told: list[str] = []

    def gate(_run: WorkflowRun) -> Number:
        raise StageRefusedError("toxicity is above 0.1", expected="less", do="look at it")

    def deploy(_run: WorkflowRun) -> Number:
        raise AssertionError

    both = workflow([stage("gate", gate), stage("deploy", deploy)])
    made = begin(context, both)
    ended = resume(both, context, ME, made, tell=lambda _pipeline, one: told.append(one.status)).pipeline
    assert [one.status for one in ended.stages] == ["refused", "waiting"]
    assert ended.stages[0].reason == "toxicity is above 0.1"
    assert told == ["running", "refused"]
    assert resume(both, context, ME, made).pipeline == ended


def test_a_stage_that_was_asked_to_stop_is_paused_and_a_fault_of_ours_is_written_down(context: Context) -> None:
    errors: list[Exception] = [PausedError("SIGTERM received", expected="its end", do="go on"), ZeroDivisionError("x")]

    def work(_run: WorkflowRun) -> Number:
        if errors:
            raise errors.pop(0)
        return Number(value=1)

    only = workflow([stage("one", work)])
    made = begin(context, only)
    with pytest.raises(PausedError):
        resume(only, context, ME, made)
    assert statuses(context, made) == ["paused"]
    with pytest.raises(ZeroDivisionError):
        resume(only, context, ME, made)
    assert context.pipelines.get(made).stages[0].reason == "ZeroDivisionError: x"
    assert resume(only, context, ME, made).pipeline.stages[0].reason == ""


def test_what_begin_skips_is_not_worked_on(context: Context) -> None:
    def work(_run: WorkflowRun) -> Number:
        raise AssertionError

    only = workflow([stage("one", work, begin=lambda _run: Number(reason="prompting is enough"))])
    done = resume(only, context, ME, begin(context, only)).pipeline
    assert (done.stages[0].status, done.stages[0].came) == ("done", {"reason": "prompting is enough"})


def test_a_file_that_has_changed_makes_its_stage_and_those_after_it_run_again(context: Context, tmp_path: Path) -> None:
    file, calls = tmp_path / "rows.jsonl", list[str]()
    file.write_text("1")

    def called(name: str) -> Work:
        def work(_run: WorkflowRun) -> Number:
            calls.append(name)
            return Number(value=int(file.read_text()))

        return work

    def last(_run: WorkflowRun) -> Number:
        calls.append("last")
        if calls.count("last") < 3:
            raise KeyboardInterrupt
        return Number()

    all_of_them = workflow(
        [
            stage("apart", called("apart"), "goal"),
            stage("reads", called("reads"), "file", reads=lambda run: [Path(run.spec.file)]),
            stage("after", called("after"), "reads", begin=lambda _run: Number(run_id=new_id("run"))),
            stage("last", last, "apart"),
        ]
    )
    made = begin(context, all_of_them, file=str(file))
    for content in ("1", "2"):
        file.write_text(content)
        with pytest.raises(KeyboardInterrupt):
            resume(all_of_them, context, ME, made)
        ids = context.pipelines.get(made).came("after")["run_id"]
        assert context.pipelines.get(made).came("reads")["value"] == int(content)
    done = resume(all_of_them, context, ME, made)
    assert calls == ["apart", "reads", "after", "last", "reads", "after", "last", "last"]
    assert done.pipeline.came("after")["run_id"] == ids, "the same as before the kill"


def test_what_was_stored_before_there_were_digests_is_kept(context: Context, tmp_path: Path) -> None:
    def never(_run: WorkflowRun) -> Number:
        raise AssertionError

    file = tmp_path / "rows.jsonl"
    file.write_text("1")
    both = workflow(
        [
            stage("one", never, "file", reads=lambda run: [Path(run.spec.file)]),
            stage("two", lambda run: Number(value=run.outcome("one", Number).value + 1), "one"),
        ]
    )
    stages = (Stage(name="one", status="done", came={"value": 4, "of_a_later_version": True}), Stage(name="two"))
    asked = Asked(file=str(file)).model_dump()
    made = Pipeline(pipeline_id=new_id("auto"), kind="auto", asked=asked, stages=stages)
    context.pipelines.create(made, ME.project_id)
    assert resume(both, context, ME, made.pipeline_id).pipeline.came("two")["value"] == 5


def test_what_a_stage_has_made_and_is_gone_is_made_again(context: Context, tmp_path: Path) -> None:
    target, stops = tmp_path / "made", [True, True, False]

    def make(_run: WorkflowRun) -> Number:
        target.write_text("here")
        return Number(value=1)

    def stop(_run: WorkflowRun) -> Number:
        if stops.pop(0):
            raise KeyboardInterrupt
        return Number(value=len(target.read_text()))

    both = workflow([stage("make", make, holds=lambda _run, _made: target.is_file()), stage("stop", stop)])
    made = begin(context, both)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            resume(both, context, ME, made)
        target.unlink()
    assert resume(both, context, ME, made).outcome("stop", Number).value == 4


def test_time_is_counted_and_what_is_left_is_estimated(context: Context) -> None:
    def work(run: WorkflowRun) -> TimedOutcome:
        left.append(remaining_seconds(run))
        return TimedOutcome(seconds=7200.0)

    left: list[float | None] = []
    stages = [
        StageSpec("one", "", work, TimedOutcome, estimate=lambda _run: 60.0),
        StageSpec("two", "", work, TimedOutcome, estimate=lambda _run: None),
        StageSpec("three", "", work, TimedOutcome, estimate=lambda _run: 30.0),
    ]
    timed = workflow(stages)
    done = resume(timed, context, ME, begin(context, timed))
    assert spent_hours(timed, done.pipeline) == pytest.approx(6.0)
    assert left == [None, None, 30.0]


def test_what_is_not_there_of_another_kind_or_in_use_is_refused(context: Context) -> None:
    only = workflow([stage("one", lambda _run: Number())])
    with pytest.raises(NotFoundError):
        resume(only, context, ME, "auto-20260101-000000-abcdef")
    other = Pipeline(pipeline_id=new_id("retrain"), kind="retrain", asked={}, stages=(Stage(name="rows"),))
    context.pipelines.create(other, ME.project_id)
    with pytest.raises(RequestError, match="is of kind retrain") as refused:
        resume(only, context, ME, other.pipeline_id)
    assert f"luthier retrain --resume {other.pipeline_id}" in refused.value.do
    student = Pipeline(pipeline_id=new_id("distill"), kind="distill", asked={}, stages=(Stage(name="rows"),))
    context.pipelines.create(student, ME.project_id)
    with pytest.raises(RequestError, match="is of kind distill") as refused:
        resume(only, context, ME, student.pipeline_id)
    assert f"luthier pipelines show {student.pipeline_id}" in refused.value.do, "luthier distill has no --resume"
    made = begin(context, only)
    with file_lock(lock_of(context, made), what="it", timeout_seconds=1), pytest.raises(ConflictError, match="in use"):
        resume(only, context, ME, made)
    with pytest.raises(ConflictError, match="has no stage two"):
        resume(workflow([stage("two", lambda _run: Number())]), context, ME, made)


def test_runs_that_its_stages_begin_belong_to_its_project(context: Context) -> None:
    context.access.add_project("proj-friend", "friend")
    friend, owners = Caller(project_id="proj-friend"), list[str | None]()

    def one(_run: WorkflowRun) -> Number:
        owners.append(context.owner_project_id)
        return Number(value=1)

    single = workflow([stage("one", one)])
    made = single.create(context, friend, new_id("auto"), Asked()).pipeline_id
    resume(single, context, friend, made)
    assert owners == ["proj-friend"]
    assert context.owner_project_id is None
