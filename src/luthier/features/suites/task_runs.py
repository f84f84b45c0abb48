"""Use case: evaluate systems by tasks on rows in memory; suites and safety checks are built on it.

A system is a base model, a run, a tuned model by name, or a model behind a server, which only generates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.core.results.suite import TaskCommon, TaskResult
from luthier.features.generation.engines import find_teacher, is_address
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.names import find_model
from luthier.features.models.prompts import readable
from luthier.features.models.resolve import (
    Candidate,
    TemplateKind,
    answers_key,
    engine_key,
    find_candidate,
    open_engine,
    system_under_test,
)
from luthier.features.recipes.checks import have_text_answers
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.metrics.protocol import MetricDefinition
    from luthier.ml.evaluation.tasks.protocol import Resources, TaskKind, TaskRow
    from luthier.ml.inference.engine_wrappers import CachedEngine


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind an OpenAI-compatible server, by its address: it writes, and reports no likelihoods."""

    name: str
    address: str
    shots: tuple[Example, ...] = ()


System = Candidate | Server


def find_system(context: Context, name: str, *, project_id: str = DEFAULT_PROJECT) -> System:
    """A system by any name of a model, or `http(s)://host/v1#MODEL`.

    Raises:
        NotFoundError: No such model or run, or a tuned model that is not the project's.
        ConflictError: A run that has made no weights.
        RequestError: An address that is none.
    """
    from luthier.features.generation.engines import parse_address

    if is_address(name):
        url, model = parse_address(name)
        return Server(name=f"{url}#{model}", address=f"{url}#{model}")
    return find_candidate(context, name, Caller(project_id=project_id))


def run_of(context: Context, name: str, *, project_id: str = DEFAULT_PROJECT) -> str | None:
    """The run that the system of this name was made by; None for others."""
    return None if is_address(name) else find_model(context, name, Caller(project_id=project_id)).run_id


def outcome_of(context: Context, name: str, *, project_id: str = DEFAULT_PROJECT) -> str | None:
    """The run whose outcome the system of this name is; None for others.

    A checkpoint is no outcome: what it was evaluated by says nothing about what its run has made in the end.
    """
    if is_address(name):
        return None
    found = find_model(context, name, Caller(project_id=project_id))
    return None if found.is_checkpoint else found.run_id


def subject_of(context: Context, name: str, system: str, *, project_id: str = DEFAULT_PROJECT) -> str:
    """What the results of a system are stored by: its run, the checkpoint that it is, or else its name.

    Args:
        context: The home.
        name: As it was requested, such as that of a deployment.
        system: What results call it.
        project_id: Whose models these are.

    Raises:
        NotFoundError: There is no such model.
    """
    if is_address(name):
        return system
    found = find_model(context, name, Caller(project_id=project_id))
    return found.name if found.run_id is not None else system


def project_of_results(context: Context, run_id: str | None) -> str:
    """The project of a result that no project was named for: that of the run, whose gates read it, or `default`."""
    owner = None if run_id is None else context.runs.project_of(run_id)
    return owner or DEFAULT_PROJECT


def project_of_model(context: Context, name: str) -> str:
    """The project whose calibrations hold for a model that a command names: that of its run, also of a checkpoint.

    Raises:
        NotFoundError: There is no such model.
    """
    return project_of_results(context, run_of(context, name))


def engine_of(context: Context, system: System) -> Engine:
    """The engine that runs a system; a server's answers are kept in the home, so that none is paid for twice."""
    if isinstance(system, Server):
        return ServerEngine(find_teacher(context, system.address))
    from luthier.ml.inference.models.loading import check_adapter

    if system.adapter_path is not None:
        # Its engine may open late: a missing adapter of the last system must not surface after an hour.
        check_adapter(system.adapter_path)
    kept = None if context.stored_answers is None else context.stored_answers.of_engine(answers_key(system))

    def open_own() -> Engine:
        engine = open_engine(system)
        engine.stored_answers = kept
        return engine

    return SharedEngine(context, system, open_own, stored_answers=kept)


class ServerEngine:
    """A cached engine with the interface of engines: an overlong prompt is an error, likelihoods are refused."""

    def __init__(self, cached: CachedEngine) -> None:
        self._cached = cached

    @property
    def name(self) -> str:
        """The address."""
        return self._cached.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order.

        Raises:
            OverlongError: A prompt is over the context; the first such error.
            WorkError: The server gives no answer.
        """
        found = self._cached.generate_each(prompts, progress)
        # All are answered first, so what came is in the cache and is not paid for again after the error.
        written = [one for one in found if isinstance(one, Generation)]
        for one in found:
            if not isinstance(one, Generation):
                raise one
        return written

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """A server gives no likelihoods; a task that needs them is refused before anything runs.

        Raises:
            RequestError: Always.
        """
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from {self.name}",
            expected="a model on this machine",
            do="leave the task out, or evaluate a base model or a run by it",
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._cached.close()


def as_judged(
    system: System,
    engine: Engine,
    examples: Sequence[Example],
    max_new_tokens: int,
    options: Sequence[Sequence[str]] = (),
    rests: Sequence[str] = (),
) -> SystemUnderTest:
    """A system with the rows as it sees them.

    Args:
        system: Who is evaluated.
        engine: That runs it.
        examples: The rows.
        max_new_tokens: Of an answer.
        options: Texts of each row that are compared by likelihood; empty for none.
        rests: Where rows are plain texts that are only begun, what follows of each; else empty.

    Raises:
        OverlongError: A row does not fit into the model's context.
    """
    if isinstance(system, Candidate):
        assert isinstance(engine, SharedEngine)
        return system_under_test(system, engine, examples, max_new_tokens, options=options, rests=rests)
    return _behind_server(system, engine, examples, max_new_tokens)


def _behind_server(system: Server, engine: Engine, examples: Sequence[Example], max_new_tokens: int) -> SystemUnderTest:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.evaluation.few_shot import with_shots

    has_answers = have_text_answers(examples)
    seen = [with_shots(e, system.shots) for e in examples] if has_answers else []
    return SystemUnderTest(
        name=system.name,
        model=system.address,
        adapter=None,
        num_few_shot=len(system.shots),
        engine=engine,
        prompts=tuple(Prompt(conversation=e.prompt, max_new_tokens=max_new_tokens) for e in seen),
        references=tuple(e.reference or "" for e in examples) if has_answers else (),
        row_ids=tuple(e.id for e in examples),
        prompt_texts=tuple(readable(e.prompt) for e in examples) if has_answers else (),
        tokenised=(),
        num_bytes=(),
    )


@dataclass(frozen=True, slots=True)
class RowsOf:
    """A task with its rows, ready to run.

    Attributes:
        task: The task.
        rows: Its rows.
        file: Where the rows come from.
        sha256: Digest of that file.
        kind: How it is evaluated; None takes the kind that the task names.
        kind_name: What the result calls the kind; None takes the task's own name for it.
        num_leaked: Rows that an evaluated system was trained on.
        shots: Examples that the prompt may begin with (few-shot).
        is_general: Whether it only measures what tuning cost in general ability.
        documents: The corpus by name, where the task has one.
        cautions: In addition to those of the kind.
        rests: Where the rows are plain texts that are only begun, what follows of each.
    """

    task: TaskCommon
    rows: tuple[TaskRow, ...]
    file: str
    sha256: str
    kind: TaskKind[Any] | None = None
    kind_name: str | None = None
    num_leaked: int = 0
    shots: tuple[Example, ...] = ()
    is_general: bool = False
    documents: Mapping[str, str] | None = None
    cautions: tuple[str, ...] = ()
    rests: tuple[str, ...] = ()

    @property
    def clusters(self) -> list[Hashable] | None:
        """The source of each row, where the task says which rows share one."""
        if self.task.cluster_by is None:
            return None
        return [row.example.group for row in self.rows]


def run_tasks(
    context: Context,
    systems: Sequence[System],
    tasks: Sequence[RowsOf],
    *,
    resources: Resources,
    seed: int = 0,
    shown: System | None = None,
    trainings: Callable[[], Sequence[System]] = tuple,
    engines: Engines | None = None,
) -> tuple[TaskResult, ...]:
    """Judge all systems by every task, each system's engine opened once.

    Args:
        context: The home.
        systems: The plain before the tuned: each is compared with every earlier one.
        tasks: With their rows.
        resources: What tasks may use.
        seed: Of resampling.
        shown: The system that is also evaluated with examples in its prompt, where a task has some.
        trainings: Makes the last system trained again with other seeds, when all else has been checked; they and it are
            evaluated as one.
        engines: Those of the caller, who also closes them; None opens and closes them here.

    Raises:
        DataError: Before anything runs: rows that lack what a task looks at.
        RequestError: Before anything runs: a task that needs likelihoods of a server, or a judge that is not there.
        DivergedError: A figure is not a number, since a model's likelihoods are not.
    """
    # All tasks are checked before the first engine opens: a mistake in the last must not cost hours.
    asked = [_TaskSetup.of(rows_of, resources) for rows_of in tasks]
    for one in asked:
        _check_likelihoods(one, systems)
    trained = trainings()
    with ExitStack() as stack:
        opened = stack.enter_context(Engines(context)) if engines is None else engines
        return tuple(
            _run_task(context, opened, one, _with_shots(systems, shown, one.rows_of), trained, seed) for one in asked
        )


@dataclass(frozen=True, slots=True)
class _TaskSetup:
    """A task with its kind and its metrics, checked."""

    rows_of: RowsOf
    kind: TaskKind[Any]
    metrics: list[MetricDefinition]
    primary: str

    @classmethod
    def of(cls, rows_of: RowsOf, resources: Resources) -> _TaskSetup:
        from luthier.ml.evaluation.tasks.protocol import task_kind

        task, rows = rows_of.task, rows_of.rows
        kind = rows_of.kind or task_kind(kind_of(rows_of))
        kind.check(task, rows)
        metrics = kind.metrics(task, rows, replace(resources, documents=rows_of.documents))
        names = [metric.name for metric in metrics]
        if task.primary is not None and task.primary not in names:
            raise RequestError(
                f"task {task.name}: primary: {task.primary!r}",
                expected=f"one of its metrics: {', '.join(names)}",
                do="correct primary, or leave it out: then it is the first",
            )
        return cls(rows_of, kind, metrics, task.primary or names[0])


class Engines:
    """Engines by what they run, each opened once, when it is first needed; all are closed at the end."""

    def __init__(self, context: Context) -> None:
        self._context, self._stack = context, ExitStack()
        self._open: dict[tuple[Hashable, ...], Engine] = {}
        self._kinds: dict[str, TemplateKind] = {}

    def of(self, system: System) -> Engine:
        """The engine that runs a system, opened at its first use. A LuthierError says why it cannot be opened."""
        key: tuple[Hashable, ...] = (system.name,)
        if isinstance(system, Candidate):
            if system.template == "auto":
                # The kind that it becomes: a base by name and the base of a run, whose plan holds it, share an engine.
                if system.model_path not in self._kinds:
                    self._kinds[system.model_path] = system.chat_template().kind
                system = replace(system, template=self._kinds[system.model_path])
            # Not by name: the same model with and without examples shares one engine.
            key = engine_key(system)
        elif isinstance(system, Server):
            key = (system.address,)
        if key not in self._open:
            self._open[key] = self._stack.enter_context(closing(engine_of(self._context, system)))
        return self._open[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def kind_of(rows_of: RowsOf) -> str:
    """What the kind of a task is called in its result."""
    return rows_of.kind_name or str(getattr(rows_of.task, "kind", "probe"))


def _check_likelihoods(asked: _TaskSetup, systems: Sequence[System]) -> None:
    needy = [metric.name for metric in asked.metrics if metric.needs != "text"]
    servers = [system.name for system in systems if isinstance(system, Server)]
    if needy and servers:
        raise RequestError(
            f"task {asked.rows_of.task.name} needs likelihoods ({', '.join(needy)}), and {servers[0]} is a server, "
            "which reports none",
            expected="models on this machine for tasks that use likelihoods",
            do="leave the task out of the suite (and set `forgetting: false`), or evaluate a base model or a run",
        )


def _with_shots(systems: Sequence[System], shown: System | None, rows_of: RowsOf) -> list[System]:
    """The systems, with an additional one that is shown examples; the last stays last."""
    if shown is None or not rows_of.shots:
        return list(systems)
    num = len(rows_of.shots)
    name = f"{shown.name} + {'1 example' if num == 1 else f'{num} examples'}"
    place = list(systems).index(shown)
    if place < len(systems) - 1:
        # Next to the plain one, but the last place belongs to the candidate.
        place += 1
    return [*systems[:place], replace(shown, name=name, shots=rows_of.shots), *systems[place:]]


def _run_task(
    context: Context,
    engines: Engines,
    asked: _TaskSetup,
    systems: Sequence[System],
    trainings: Sequence[System],
    seed: int,
) -> TaskResult:
    from luthier.ml.evaluation.compare import judge_in_full
    from luthier.ml.evaluation.one_system import as_one_system
    from luthier.ml.evaluation.systems import Titled

    rows_of, task, rows = asked.rows_of, asked.rows_of.task, asked.rows_of.rows
    examples = [row.example for row in rows]
    options = [asked.kind.options(task, row) for row in rows]
    # Options are for rows that are compared by likelihood; where no row has any, nothing is scored.
    chosen = options if any(options) else ()
    clusters = rows_of.clusters
    judged = judge_in_full(
        [
            as_judged(one, engines.of(one), examples, task.max_new_tokens, chosen, rows_of.rests)
            for one in (*systems, *trainings)
        ],
        metrics=asked.metrics,
        seed=seed,
        progress=Titled(context.progress, task.name),
        items=[row.item for row in rows],
        clusters=clusters,
    )
    # trainings are further seeds of the last system, so they were evaluated with it and follow it in the list.
    if trainings:
        names = [one.name for one in (systems[-1], *trainings)]
        # Several trainings are one system whose interval also holds the spread between seeds.
        judged = as_one_system(judged, names, asked.metrics, seed=seed, clusters=clusters)
    shown = {system.name: judged.observed[system.name] for system in judged.systems}
    figures = {name: asked.kind.figures(task, observed) for name, observed in shown.items()}
    judges = {metric.name: getattr(metric, "judge_name", None) for metric in asked.metrics}
    return TaskResult(
        name=task.name,
        kind=kind_of(rows_of),
        data_file=rows_of.file,
        data_sha256=rows_of.sha256,
        num_rows=len(rows),
        num_clusters=None if clusters is None else len(set(clusters)),
        num_leaked=rows_of.num_leaked,
        primary=asked.primary,
        systems=judged.systems,
        comparisons=judged.comparisons,
        figures={name: one for name, one in figures.items() if one is not None},
        judges={name: judge for name, judge in judges.items() if judge is not None},
        cautions=(*asked.kind.cautions(task), *rows_of.cautions),
        is_general=rows_of.is_general,
    )
