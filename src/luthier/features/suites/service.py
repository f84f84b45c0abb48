"""Use case: judge systems by a suite of tasks, with one verdict over all of them and what tuning cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.core.ports import Progress
from luthier.core.results.suite import CitationsTask, LmEvalTask, Suite, SuiteResult, TaskResult
from luthier.features.datasets.documents import read_corpus
from luthier.features.evaluations.leakage import training_rows
from luthier.features.generation.engines import is_address
from luthier.features.models.names import find_model
from luthier.features.models.resolve import Candidate, find_base
from luthier.features.recipes.checks import map_of_runs
from luthier.features.suites.definition import (
    FileFinder,
    Seen,
    digests_of,
    files_in,
    general_tasks,
    load_suite,
    load_task,
)
from luthier.features.suites.task_runs import (
    Engines,
    RowsOf,
    Server,
    System,
    find_system,
    outcome_of,
    project_of_results,
    run_of,
    run_tasks,
    subject_of,
)
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.tasks.protocol import Resources


def run_suite(
    context: Context,
    systems: Sequence[str],
    *,
    suite: Path,
    judge: str | None = None,
    seeds: int = 1,
    allow_code: bool = False,
    allow_leakage: bool = False,
    project_id: str | None = None,
    result_id: str | None = None,
    find_file: FileFinder | None = None,
) -> SuiteResult:
    """Judge systems by a suite, keep the result, and return it.

    The base of a tuned candidate is always evaluated, too, and with examples in its prompt where a task has some.

    Args:
        context: of the home.
        systems: the candidate first, then what it is compared with, each by any name of a model, or as a server's model
            (`http://host/v1#MODEL`).
        suite: file of the suite.
        judge: name of the engine that judges; None where no task needs one.
        seeds: trainings of the candidate, a run; the missing ones are trained now.
        allow_code: whether code that models write is run, where a task has such.
        allow_leakage: whether rows are evaluated that an evaluated run was trained on; the verdict then notes it.
        project_id: whose models and results these are; None, as of commands, for models of any project: the result is
            then of the project of the candidate's run.
        result_id: id of the result; None takes a new one.
        find_file: what the names of files in the suite and its rows refer to; None takes paths, which count from the
            suite's folder.

    Raises:
        NotFoundError: no such suite, file, model or run.
        RequestError: the suite is wrong, a server is asked for likelihoods, or a task needs a judge and has none.
        DataError: rows are wrong.
        LeakageError: an evaluated run was trained on rows of the suite, and `allow_leakage` is false.
    """
    from luthier.ml.evaluation.tasks_verdict import adjusted, tasks_verdict

    start = time.perf_counter()
    spec, folder = load_suite(suite), suite.absolute().parent
    find = find_file or files_in(folder)
    # Over the suite and the content of its files: results with equal fingerprints can be compared.
    fingerprint = spec.fingerprint(digests_of(spec, folder, find))
    # Found before any rows are read: a wrong name is reported immediately.
    who = _find(context, systems, project_id or DEFAULT_PROJECT)
    owner = project_id or project_of_results(context, who.run_id)
    _check_seeds(who, seeds)
    seen = Seen(training_rows(context, who.run_ids), allow_leakage, map_of_runs(context, who.run_ids))
    # Filled by `_general` with what could not be measured.
    caveats = [note for name in systems if not is_address(name) and (note := find_model(context, name).note)]
    loaded = [*_load(spec, find, seen, context.progress), *_general(spec, who, seen, caveats)]
    resources = replace(_resources(context, folder, find, allow_code), is_remote=find_file is not None)
    tasks = _run_all(context, spec, who, loaded, resources=resources, judge=judge, seeds=seeds)
    # Holm's correction: among many tasks one differs by chance alone.
    tasks = adjusted(tasks, who.candidate)
    base = None if who.base is None else who.base.name
    result = SuiteResult(
        result_id=result_id or new_id("suite"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        suite=spec.name,
        fingerprint=fingerprint,
        run_id=who.outcome,
        candidate=who.candidate,
        systems=tuple(dict.fromkeys(system.name for task in tasks for system in task.systems)),
        num_seeds=max(1, seeds),
        tasks=tasks,
        verdict=tasks_verdict(tasks, who.candidate, base=base, caveats=caveats),
        seconds=time.perf_counter() - start,
    )
    # Of a checkpoint it is no result of the run, but it goes with the run.
    subject = subject_of(context, systems[0], who.candidate, project_id=project_id or DEFAULT_PROJECT)
    context.assessments.save("suite", result.result_id, result, project_id=owner, subject=subject, run_id=who.run_id)
    return result


@dataclass(frozen=True, slots=True)
class _Systems:
    """Who is evaluated.

    Attributes:
        ordered: from the plain to the tuned; the candidate is last.
        run_id: the candidate's.
        outcome: the same where the candidate is what that run has made in the end; None for a checkpoint.
        run_ids: of all systems that runs have made.
        base: what the candidate was tuned from.
        shown: the system that is also evaluated with examples in its prompt.
    """

    ordered: tuple[System, ...]
    run_id: str | None
    outcome: str | None
    run_ids: tuple[str, ...]
    base: Candidate | None
    shown: System

    @property
    def candidate(self) -> str:
        """The system that the verdict is about, by its name."""
        return self.ordered[-1].name


def _find(context: Context, names: Sequence[str], project_id: str) -> _Systems:
    found = [find_system(context, name, project_id=project_id) for name in names]
    runs = [run_of(context, name, project_id=project_id) for name in names]
    base = _base_of(context, runs[0], found)
    # The table reads from the plain to the tuned: the evaluated model is last.
    ordered = (*([base] if base is not None and base not in found else []), *found[1:], found[0])
    shown = base or next((one for one in ordered if isinstance(one, Candidate)), ordered[0])
    outcome = outcome_of(context, names[0], project_id=project_id)
    return _Systems(ordered, runs[0], outcome, tuple(run for run in runs if run is not None), base, shown)


def _base_of(context: Context, run_id: str | None, found: Sequence[System]) -> Candidate | None:
    """What the candidate was tuned from: as it is named among the systems, or else by its own name."""
    if run_id is None:
        return None
    base = find_base(context, run_id)
    named = (one for one in found[1:] if isinstance(one, Candidate) and not one.shots)
    return next((one for one in named if (one.model_path, one.adapter_path) == (base.model_path, None)), base)


def _load(spec: Suite, find_file: FileFinder, seen: Seen, progress: Progress) -> list[RowsOf]:
    loaded = []
    for task in spec.tasks:
        if isinstance(task, LmEvalTask):
            continue
        rows_of = load_task(task, find_file, seen=seen, seed=spec.seed)
        if isinstance(task, CitationsTask):
            rows_of = replace(rows_of, documents=read_corpus(find_file("corpus", task.corpus), progress))
        loaded.append(rows_of)
    return loaded


def _general(spec: Suite, who: _Systems, seen: Seen, caveats: list[str]) -> list[RowsOf]:
    """The tasks of general ability, where there is a base to hold the candidate against; caveats get why not."""
    if not spec.forgetting or who.base is None:
        return []
    if servers := [one.name for one in who.ordered if isinstance(one, Server)]:
        caveats.append(f"What tuning cost in general ability was not measured: {servers[0]} reports no likelihoods.")
        return []
    taken = {task.name for task in spec.tasks}
    general = general_tasks(seen=seen, seed=spec.seed)
    if clash := [one.task.name for one in general if one.task.name in taken]:
        raise RequestError(
            f"the suite names a task {clash[0]}, as one of the tasks of general ability is called",
            expected="a different name for each task",
            do="give the task another name, or set `forgetting: false`",
        )
    return general


def _check_seeds(who: _Systems, seeds: int) -> None:
    if seeds > 1 and (who.run_id is None or who.candidate != who.run_id):
        raise RequestError(
            f"--seeds {seeds} for {who.candidate}",
            expected="the id of a run, whose recipe can be trained again with other seeds",
            do="name the run first, or leave --seeds out",
        )


def _trainings(context: Context, who: _Systems, seeds: int) -> list[System]:
    """The candidate's recipe trained with other seeds."""
    from luthier.features.training.repeated_runs import runs_of_other_seeds

    if seeds <= 1 or who.run_id is None:
        return []
    return [find_system(context, one) for one in runs_of_other_seeds(context, who.run_id, seeds - 1)]


def _resources(context: Context, folder: Path, find_file: FileFinder, allow_code: bool) -> Resources:
    """What tasks may use, but for the judge, which is opened last."""
    from luthier.ml.evaluation.tasks.protocol import Resources

    return Resources(folder=folder, find_file=find_file, allows_code=allow_code, progress=context.progress)


def _judged_by(context: Context, stack: ExitStack, resources: Resources, judge: str | None) -> Resources:
    if judge is None:
        return resources
    from luthier.features.judges.service import open_judge

    engine = stack.enter_context(closing(open_judge(context, judge)))
    return replace(resources, judge=engine, judge_name=engine.name)


def _run_all(
    context: Context,
    spec: Suite,
    who: _Systems,
    loaded: Sequence[RowsOf],
    *,
    resources: Resources,
    judge: str | None,
    seeds: int,
) -> tuple[TaskResult, ...]:
    """All tasks in the order of the suite, those of general ability last."""
    foreign = [task for task in spec.tasks if isinstance(task, LmEvalTask)]
    if foreign:
        from luthier.features.suites.lm_eval import check_lm_eval, run_lm_eval

        check_lm_eval(foreign, who.ordered, folder=resources.folder)
    with ExitStack() as stack:
        engines = stack.enter_context(Engines(context))
        results = run_tasks(
            context,
            who.ordered,
            loaded,
            resources=_judged_by(context, stack, resources, judge),
            seed=spec.seed,
            shown=who.shown,
            # Hours of work, so that they begin when nothing can be refused any more.
            trainings=lambda: _trainings(context, who, seeds),
            engines=engines,
        )
        done = {result.name: _with_judge(context, result, judge) for result in results}
        # The harness's tasks come last, with the engines that are open already.
        for task in foreign:
            done[task.name] = run_lm_eval(context, engines, who.ordered, task, folder=resources.folder, seed=spec.seed)
    order = [task.name for task in spec.tasks]
    return tuple(done[name] for name in (*order, *(name for name in done if name not in order)))


def _with_judge(context: Context, result: TaskResult, judge: str | None) -> TaskResult:
    """The result with a caution where the judge shares its base with a system that it judged."""
    if judge is None or not result.judges:
        return result
    from luthier.features.judges.service import same_base

    said = same_base(context, judge, {system.name: system.model for system in result.systems})
    return result.model_copy(update={"cautions": (*result.cautions, *said)})
