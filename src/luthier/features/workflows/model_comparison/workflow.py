"""The workflow of `luthier compare-models`: choose a base model, and decide whether to tune it.

Rows that fit into the context of all candidates are chosen, as many as the budget permits. Each candidate is evaluated
without and with examples in its prompt, then trained briefly on the same examples in the same order, at the learning
rate of its own plan, and evaluated again. At the end all systems are compared, paired over the rows.

Stored answers are not generated again, and a training resumes from its checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import DivergedError, NotFoundError
from luthier.core.estimate import Estimate
from luthier.core.ids import new_id
from luthier.core.recipe import BudgetRecipe
from luthier.core.run import RunRecord
from luthier.core.workflows.pipeline import (
    SYSTEM_KINDS,
    ModelComparisonResult,
    ModelComparisonSpec,
    Pipeline,
    Standing,
    SystemKind,
    Tuning,
)
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.answers import (
    ComparisonRows,
    Recorded,
    candidate_of,
    choices_left_out,
    nearest_of,
    read_material,
    record,
    replayed,
    why_no_choice,
)
from luthier.features.workflows.model_comparison.request import (
    ModelComparisonRequest,
    check,
    pull_all,
    read_all,
    sized,
    train_contender,
)
from luthier.features.workflows.registry import file_name, model_names, short
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    Outcome,
    PausedError,
    StageSpec,
    Tell,
    TimedOutcome,
    Workflow,
    WorkflowRun,
    resume,
    silent,
)

_COMPARING: Final = "comparing"
_MAX_SAMPLES: Final = 6
_MIN_HOURS: Final = 1e-4
_ANSWERS: Final = {
    "tuned": "One of them, tuned, is better than the best that prompting can do.",
    "prompting": "Prompting is enough: no tuned model was shown to be better.",
    "nothing": "None of them gets any row right.",
}


class Trained(TimedOutcome):
    """The short training of a candidate. reason: why it is not evaluated; empty if training was completed."""

    run_id: str = ""
    reason: str = ""

    def lines(self) -> Sequence[str]:
        """The reason why it is not evaluated."""
        return [self.reason] if self.reason else []


class Compared(TimedOutcome):
    """The comparison of all systems.

    Attributes:
        page: The report.
        word: Key of the recommendation.
        use_instead: An equally good baseline without a language model, as the recommendation names it; empty if none.
    """

    page: str = ""
    word: str = ""
    use_instead: str = ""


def page_of(context: Context, showdown_id: str) -> Path:
    """The page of a completed comparison."""
    return WORKFLOW.folder_of(context, showdown_id) / "report.html"


def begin(
    context: Context, request: ModelComparisonRequest, *, caller: Caller | None = None, showdown_id: str | None = None
) -> Pipeline:
    """Check the request, choose the sizes, and store it; trains and evaluates only a few rows.

    Args:
        context: The home.
        request: The request.
        caller: Whose project it belongs to; None for the default project.
        showdown_id: Id of the comparison; by default a new one.

    Raises:
        NotFoundError: A model or file does not exist.
        RequestError: The same model twice, rows without comparable answers, an unsuitable metric, or a model that does
            not fit into memory.
        DataError: Invalid rows, or none that fit into the context of all candidates.
        LeakageError: Held-out rows among the training rows.
        BudgetTooSmallError: The hours are below the minimum.
    """
    began = time.perf_counter()
    check(request)
    models = pull_all(context, request.models)
    request, rows = read_all(context, request, models)
    showdown_id = showdown_id or new_id("showdown")
    folder = WORKFLOW.folder_of(context, showdown_id)
    try:
        spec = sized(context, request, models, rows, folder / "train.jsonl", began)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # a rejected comparison leaves nothing behind
        raise
    return WORKFLOW.create(context, caller or Caller(), showdown_id, spec)


def go_on(
    context: Context, showdown_id: str, *, tell: Tell = silent, caller: Caller | None = None
) -> ModelComparisonResult:
    """Do all remaining work and return the result; also for a completed comparison.

    Raises NotFoundError where there is none, ConflictError where another process works on it, else that of a stage.
    """
    caller = caller or Caller()
    resume(WORKFLOW, context, caller, showdown_id, tell)
    return context.assessments.get("showdown", ModelComparisonResult, caller.project_id, showdown_id)


def _material(run: WorkflowRun) -> ComparisonRows:
    """The rows, read when they are first needed."""
    if "rows" not in run.material:
        run.material["rows"] = read_material(run.spec)
    found: ComparisonRows = run.material["rows"]
    return found


def _prompt(run: WorkflowRun, number: int) -> Outcome:
    """Ask a contender without and with examples, and for its likeliest label where answers are labels."""
    _ask(run, number, "zero-shot")
    plain = candidate_of(run.context, run.spec, number, "zero-shot", _material(run))
    if not why_no_choice(plain, run.spec, _material(run)):
        _ask(run, number, "likeliest-label")
    # 0 examples would be the zero-shot question again.
    if run.spec.few_shot:
        _ask(run, number, "few-shot")
        if nearest_of(run.spec, plain, _material(run)) is not None:
            _ask(run, number, "few-shot-nearest")
    return TimedOutcome()


def _tune(run: WorkflowRun, number: int) -> Trained:
    """Train a candidate briefly, within its share of the remaining time."""
    contender = run.spec.contenders[number]
    begun = run.outcome(_tuning(contender.label), Trained)
    # The id was stored before the training began, so that its run is found after a kill.
    reason = _train(run, begun.run_id, number, _cap_hours(run, number))
    trained = begun.model_copy(update={"reason": reason})
    # killed processes count too
    return trained.model_copy(update={"seconds": _short_training(run, trained, number).hours * 3600})


def _ask_tuned(run: WorkflowRun, number: int) -> Outcome:
    """Evaluate a candidate after its training; nothing if that did not finish."""
    trained = run.outcome(_tuning(run.spec.contenders[number].label), Trained)
    if not trained.reason:
        result = run.context.runs.get(trained.run_id).result
        assert result is not None
        _ask(run, number, "tuned", str(result.adapter_path))
    return TimedOutcome()


def _compare(run: WorkflowRun) -> Compared:
    """Compare all systems, store the result, and write the page."""
    from luthier.ml.evaluation.report.workflow_pages import write_model_comparison_page

    found = result_of(run.context, run.caller, run.id)
    if found is None:
        # A kill between storing and the page leaves a complete result; only a missing one is computed.
        found = _judge(run)
        chosen = found.recommendation.contender
        subject = "none" if chosen is None else run.spec.contenders[chosen].label
        run.context.assessments.save("showdown", run.id, found, project_id=run.project_id, subject=subject[:255])
    page = write_model_comparison_page(found, page_of(run.context, run.id))
    answer = found.recommendation
    return Compared(page=str(page), word=answer.word, use_instead=answer.use_instead or "")


def result_of(context: Context, caller: Caller, showdown_id: str) -> ModelComparisonResult | None:
    """The result; None if it does not exist yet or any more."""
    try:
        return context.assessments.get("showdown", ModelComparisonResult, caller.project_id, showdown_id)
    except NotFoundError:
        return None


def _ask(run: WorkflowRun, number: int, kind: SystemKind, adapter_path: str = "") -> None:
    path = _answers(run, number, kind)
    if path.is_file():
        return
    from luthier.core.system.files import replace_text

    candidate = candidate_of(run.context, run.spec, number, kind, _material(run), adapter_path)
    found = record(candidate, run.spec, kind, _material(run), run.context.progress)
    path.parent.mkdir(exist_ok=True)
    # Atomically: the existence of the file means that this system is done.
    replace_text(path, found.model_dump_json())


def _answers(run: WorkflowRun, number: int, kind: SystemKind) -> Path:
    return run.folder / "answers" / f"{number}-{kind}.json"


def _cap_hours(run: WorkflowRun, number: int) -> float:
    """The time limit of this training: its share of the remaining training time, in proportion to the forecasts."""
    spec = run.spec
    later = spec.contenders[number:]
    # A tuned model is evaluated without examples. Loaded twice: for training and evaluation.
    judging = sum(one.judging_seconds["zero-shot"] * spec.num_judged + 2 * one.loading_seconds for one in later)
    left = spec.hours - run.spent_hours - judging / 3600
    # Time saved by a faster training goes to later ones, in proportion to their forecasts.
    wanted = sum(one.training_hours.value for one in later)
    share = spec.contenders[number].training_hours.value / wanted if wanted else 1.0
    return float(max(_MIN_HOURS, left * share))


def _train(run: WorkflowRun, run_id: str, number: int, hours: float) -> str:
    """Train or resume; returns the reason why it did not finish, empty if it did."""
    from luthier.features.training import service as training

    # A resumed training gets a new cap, as the remaining time is computed again.
    budget, context = BudgetRecipe(hours=hours), run.context
    try:
        try:
            record: RunRecord = context.runs.get(run_id)
            # A diverged run would diverge again.
            if record.status not in ("succeeded", "failed"):
                record = training.resume(context, run_id, budget=budget, is_judged=False).record
        except NotFoundError:
            record = train_contender(context, run.spec, run.folder, number, run_id=run_id, budget=budget)
    # A candidate that cannot be trained is a finding, and the others continue.
    except (DivergedError, BudgetTooSmallError) as error:
        return error.came
    if record.status == "succeeded":
        return ""
    reason = record.stopped_because or record.status
    # A signal pauses the whole workflow; an exhausted cap only ends this training.
    if record.status == "paused" and record.stop_cause == "interrupted":
        raise PausedError(
            f"paused: {reason}",
            expected="all stages done",
            do=f"resume it: luthier compare-models --resume {run.id}, or the automl run that it belongs to",
        )
    return f"its training stopped after {record.step:,} of {record.num_steps:,} steps: {reason}"


def _judge(run: WorkflowRun) -> ModelComparisonResult:
    from luthier.features.evaluations.baselines import fit_baselines
    from luthier.features.evaluations.evaluated_rows import BY_PROVENANCE, groups_of
    from luthier.ml.baselines.predict import as_system
    from luthier.ml.evaluation.compare import judge
    from luthier.ml.evaluation.workflow_verdicts import not_equal, recommend

    spec, asked, rows = run.spec, _systems(run), _material(run)
    candidates = [
        candidate_of(run.context, spec, number, kind, rows, adapter_path) for number, kind, adapter_path, _ in asked
    ]
    under_test = [
        replayed(candidate, spec, kind, rows, recorded)
        for candidate, (_, kind, _, recorded) in zip(candidates, asked, strict=True)
    ]
    plain = [candidate for candidate, (_, kind, *_) in zip(candidates, asked, strict=True) if kind == "zero-shot"]
    # One set for all contenders, fitted on the rows that each of them was trained on.
    baselines = fit_baselines(run.context, rows.pool, rows.judged, spec.metrics, Path(candidates[0].model_path))
    # Before the models: a system is compared with earlier ones, and every model with every baseline.
    under_test = [*(as_system(one, under_test[-1]) for one in baselines.predictions), *under_test]
    # Nothing is generated here: the recorded answers are replayed, so that all are evaluated over the same rows at
    # once.
    groups = groups_of(rows.judged, Path(spec.judged_file), spec.group_by or BY_PROVENANCE)
    results, comparisons = judge(
        under_test,
        metrics=spec.metrics,
        seed=spec.seed,
        progress=run.context.progress,
        clusters=None if groups is None else groups.clusters([one.id for one in rows.judged]),
        compares_prompts=True,
    )
    standings = tuple(
        _standing(spec, number, kind, result, recorded)
        for (number, kind, _, recorded), result in zip(asked, (one for one in results if one.is_model), strict=True)
    )
    simple = tuple(
        one.model_copy(update={"samples": one.samples[:_MAX_SAMPLES]}) for one in results if not one.is_model
    )
    trained = [run.outcome(_tuning(contender.label), Trained) for contender in spec.contenders]
    tunings = tuple(_short_training(run, one, number) for number, one in enumerate(trained))
    answer = recommend(spec, standings, tunings, comparisons, simple)
    if groups is not None:
        answer = answer.model_copy(update={"cautions": (*answer.cautions, groups.sentence)})
    return ModelComparisonResult(
        showdown_id=run.id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        spec=spec,
        standings=standings,
        tunings=tunings,
        baselines=simple,
        baselines_left_out=(*baselines.left_out, *choices_left_out(plain, spec, rows)),
        comparisons=comparisons,
        recommendation=answer,
        not_equal=(*not_equal(spec.contenders, standings, spec.few_shot), *baselines.notes),
        hours=run.spent_hours,
    )


def _systems(run: WorkflowRun) -> list[tuple[int, SystemKind, str, Recorded]]:
    """All evaluated systems, untuned before tuned."""
    found: list[tuple[int, SystemKind, str, Recorded]] = []
    for kind in SYSTEM_KINDS:
        for number, contender in enumerate(run.spec.contenders):
            path, adapter_path = _answers(run, number, kind), ""
            # Not asked in this way, or its training did not finish.
            if not path.is_file():
                continue
            if kind == "tuned":
                result = run.context.runs.get(run.outcome(_tuning(contender.label), Trained).run_id).result
                adapter_path = str(result.adapter_path) if result else ""
            recorded = Recorded.model_validate_json(path.read_text(encoding="utf-8"))
            found.append((number, kind, adapter_path, recorded))
    return found


def _short_training(run: WorkflowRun, trained: Trained, number: int) -> Tuning:
    try:
        result = run.context.runs.get(trained.run_id).result
    except NotFoundError:  # rejected before it began
        result = None
    bill = None if result is None else result.bill
    return Tuning(
        contender=number,
        run_id=trained.run_id,
        reason=trained.reason,
        hours=0.0 if bill is None else bill.hours,
        usd=None if bill is None else bill.usd,
        peak_memory_bytes=None if result is None else result.peak_memory_bytes,
    )


def _standing(spec: ModelComparisonSpec, number: int, kind: SystemKind, result: Any, recorded: Recorded) -> Standing:
    """A system with its answer times; only its answers to the first few rows are included."""
    # Plain text is only scored: without answers there is no answer time.
    seconds = recorded.write_seconds / spec.num_judged if recorded.generations else None
    usd: Estimate | None = None
    if seconds is not None and spec.usd_per_hour is not None:
        # seconds per answer -> hours per 1,000 answers.
        usd = spec.usd_per_hour.times(seconds * 1000 / 3600)
    shown = {"samples": result.samples[:_MAX_SAMPLES], "seconds": recorded.write_seconds + recorded.score_seconds}
    return Standing(
        contender=number,
        kind=kind,
        result=result.model_copy(update=shown),
        seconds_per_answer=seconds,
        usd_per_1000_answers=usd,
    )


def _tuning(label: str) -> str:
    return f"{label}: tuning"


def _stages(spec: ModelComparisonSpec) -> list[StageSpec]:
    """Prompting comes first, as it is what tuning has to beat."""
    prompting, trained = [], []
    for number, one in enumerate(spec.contenders):
        judging = {
            name: seconds * spec.num_judged + one.loading_seconds for name, seconds in one.judging_seconds.items()
        }
        prompting.append(
            StageSpec(
                f"{one.label}: prompting",
                "Evaluated without and with examples, and by its most likely label where answers are labels",
                partial(_prompt, number=number),
                TimedOutcome,
                needs=("judged_file", "max_new_tokens", "instruction"),
                estimate=partial(_seconds, seconds=sum(judging.values())),
            )
        )
        trained += [
            StageSpec(
                _tuning(one.label),
                "Trained briefly, on the same examples as the others",
                partial(_tune, number=number),
                Trained,
                needs=("train_file", "method", "seed"),
                begin=lambda _run: Trained(run_id=new_id("run")),
                estimate=partial(_seconds, seconds=one.training_hours.value * 3600),
            ),
            StageSpec(
                f"{one.label}: tuned",
                "Evaluated without examples after its training",
                partial(_ask_tuned, number=number),
                TimedOutcome,
                needs=(_tuning(one.label), "judged_file", "max_new_tokens"),
                estimate=partial(_seconds, seconds=judging.get("zero-shot", 0.0)),
            ),
        ]
    names = [one.name for one in (*prompting, *trained)]
    title = "All systems are compared over the same rows"
    return [*prompting, *trained, StageSpec(_COMPARING, title, _compare, Compared, needs=names)]


def _seconds(_run: WorkflowRun, seconds: float) -> float:
    return seconds


def _subject(asked: dict[str, Any]) -> str:
    return short(", ".join(str(one.get("label", "")) for one in asked.get("contenders", [])))


def _summary(asked: dict[str, Any]) -> str:
    return f"{_subject(asked)}: which of them for {file_name(asked.get('data'))}, within {asked.get('hours', 0):.3g} h"


def _details(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "Base models": model_names([one.get("model", "") for one in asked.get("contenders", [])]),
        "Rows to tune on": file_name(asked.get("data")),
        "Rows to evaluate on": file_name(asked.get("held_out")),
        "Instruction": asked.get("instruction"),
        "Decides": asked.get("primary"),
        "Method": asked.get("method"),
        "Budget": f"{asked.get('hours', 0):.3g} h",
    }


def _answer(pipeline: Pipeline) -> str:
    compared = pipeline.came(_COMPARING)
    answer, instead = _ANSWERS.get(str(compared.get("word")), ""), compared.get("use_instead")
    return f"{answer} No better than a baseline without a language model: {instead}." if answer and instead else answer


def _headline(context: Context, caller: Caller, pipeline: Pipeline) -> str:
    found = result_of(context, caller, pipeline.pipeline_id)
    return _answer(pipeline) if found is None else found.recommendation.headline


def _write_report(context: Context, caller: Caller, pipeline: Pipeline, path: Path) -> None:
    from luthier.ml.evaluation.report.workflow_pages import write_model_comparison_page

    found = result_of(context, caller, pipeline.pipeline_id)
    if found is None:
        raise NotFoundError(
            f"the report of {pipeline.pipeline_id} is missing, and so is the result that it was written from",
            expected="a model comparison whose result is stored",
            do="see its stages, or run the comparison again",
        )
    write_model_comparison_page(found, path)


WORKFLOW: Final = Workflow(
    kind="showdown",
    noun="a model comparison",
    request=ModelComparisonSpec,
    stages=_stages,
    folder="showdowns",
    subject=_subject,
    summary=_summary,
    details=_details,
    answer=_answer,
    headline=_headline,
    write_report=_write_report,
    reported=("done",),
    hours_before=lambda asked: float(asked.get("sizing_hours", 0.0)),
)
