"""The workflow of `luthier retrain`: retrain a deployed model on reviewed answers and offer it as a canary.

review queue -> rows -> audit -> dataset version -> run -> evaluated against the deployed model -> gates -> canary
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller, project_option
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import NOT_DISTINGUISHABLE, AlternativeWord, Evaluation, Verdict
from luthier.core.ids import new_id, sha256_file
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.run import RunRecord
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.deployments.service import deployed_run
from luthier.features.planning.pattern_files import pattern_changes
from luthier.features.workflows.registry import file_name, short
from luthier.features.workflows.retraining.request import (
    Audited,
    Canary,
    FoundProblem,
    Gated,
    Judged,
    RetrainRequest,
    RetrainSpec,
    Rows,
    Trained,
    VersionFields,
    Versions,
    spec_of,
)
from luthier.features.workflows.retraining.rows import (
    fresh_rows,
    joined,
    read_jsonl,
    reviewed_rows,
    rows_of_run,
    stored_version,
)
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    PausedError,
    StageRefusedError,
    StageSpec,
    Tell,
    Workflow,
    WorkflowRun,
    resume,
    silent,
)

if TYPE_CHECKING:
    from luthier.core.results.audit import Finding


def begin(context: Context, caller: Caller, request: RetrainRequest, *, pipeline_id: str | None = None) -> Pipeline:
    """Store the request with the deployed model; nothing is trained yet.

    Args:
        context: The home.
        caller: Whose project it is.
        request: The request.
        pipeline_id: By default a new one.
    """
    return WORKFLOW.create(context, caller, pipeline_id or new_id("retrain"), spec_of(context, caller, request))


def go_on(context: Context, caller: Caller, pipeline_id: str, *, tell: Tell = silent) -> Pipeline:
    """Do all remaining work. Returns the record, in which a stage may be refused.

    Raises:
        NotFoundError: The project has no such workflow.
        RequestError: The workflow is of another kind.
        ConflictError: Another process works on it.
        PausedError: A stage was stopped.
        LuthierError: A stage failed; its error is stored before it is raised.
    """
    return resume(WORKFLOW, context, caller, pipeline_id, tell).pipeline


def _rows(run: WorkflowRun) -> Rows:
    from luthier.ml.data.rows.outputs import write_rows

    spec = run.spec
    found = reviewed_rows(run.context, run.caller, spec.model, from_traffic=spec.from_traffic, panels=spec.panels)
    old = rows_of_run(run.context, _plan(run))
    fresh, known = fresh_rows(found.rows, old)
    # A conflict, not a refusal: the same retraining can continue after more answers are reviewed.
    if len(fresh) < spec.min_rows:
        told = "".join(f"; {num:,} more: {reason}" for reason, num in (found.left_out | Counter(known)).items())
        raise ConflictError(
            f"{len(fresh):,} reviewed rows for {spec.model} that its last run has not seen{told}",
            expected=f"at least {spec.min_rows:,}, so that there are rows to learn from and to evaluate with",
            do=f"review more, then: {_resumes(run)}; sampled answers come in by another retraining, "
            "with --from-traffic",
        )
    made = joined(run.context, run.folder, old, fresh)
    files = {
        "train": [*made.old, *made.new],
        "old_held_out": made.old_held_out,
        "new_held_out": made.new_held_out,
        "held_out": [*made.old_held_out, *made.new_held_out],
        "validation": made.validation,
    }
    for name, rows in files.items():
        write_rows(rows, run.folder / f"{name}.jsonl")
    return Rows(
        num_reviewed=len(found.rows),
        by_source=dict(found.by_source),
        left_out=dict(found.left_out) | known | dict(made.left_out),
        num_old=len(made.old),
        num_new=len(made.new),
        num_replaced=made.num_replaced,
        num_old_held_out=len(made.old_held_out),
        num_new_held_out=len(made.new_held_out),
        num_validation=len(made.validation),
        # Checked by `_file` before each later use: evaluation and training must use the same files.
        sha256={name: sha256_file(run.folder / f"{name}.jsonl") for name in files},
        changed_files=pattern_changes(_plan(run).data.sources),
        bar_left_out="" if (asked := _plan(run).recipe.evaluation) is None else asked.second_answers,
    )


def _audit(run: WorkflowRun) -> Audited:
    """Run all checks on all rows. The retraining ends here if a reviewed row has a severe error."""
    from luthier.features.datasets.data_files import AuditOptions, audit

    rows, plan = run.outcome("rows", Rows), _plan(run)
    against = _file(run, "held_out") if rows.num_held_out else None
    options = AuditOptions(against=against, model=plan.base_model.name, method=plan.method.name)
    report = run.folder / "audit.html"
    found = audit(run.context, _file(run, "train"), options, html=report).audit
    # Only reviewed rows can end the stage: the old ones were already used for training.
    grave = [one for one in found.findings if _is_of_new(one, rows.num_old)]
    if grave:
        raise StageRefusedError(
            f"the audit refuses reviewed rows: {'; '.join(one.message for one in grave)}",
            expected="reviewed rows without errors",
            do=f"see {report}, reject these rows in the review, and start again",
        )
    problems = [one.model_dump(mode="json", include=set(FoundProblem.model_fields)) for one in found.findings]
    findings = tuple(FoundProblem.model_validate(one) for one in problems)
    return Audited(grade=found.grade, findings=findings, skipped=found.skipped, report=str(report))


def _version(run: WorkflowRun) -> Versions:
    """Store the rows as versions of datasets: of that of the last run, if there is one."""
    plan = _plan(run)
    train = stored_version(run.context, run.caller, run.pipeline, _file(run, "train"), plan.data.train.sha256)
    made = Versions(train=_fields(train), train_path=_path_of(run, train))
    if not run.outcome("rows", Rows).num_held_out:
        return made
    # The digest finds the dataset with these rows under any name. Of a file from which rows were held out as a fraction
    # it is that of the training rows, whose dataset held-out rows must not become a version of.
    before = plan.data.held_out.sha256 if plan.data.held_out is not None else ""
    before = "" if before == plan.data.train.sha256 else before
    held_out = stored_version(run.context, run.caller, run.pipeline, _file(run, "held_out"), before)
    return made.model_copy(update={"held_out": _fields(held_out), "held_out_path": _path_of(run, held_out)})


def _resumes(run: WorkflowRun) -> str:
    return f"luthier retrain --resume {run.id}{project_option(run.project_id)}"


def _train(run: WorkflowRun) -> Trained:
    run_id = run.outcome("train", Trained).run_id
    record = trained_run(run, run_id)
    if record.status != "succeeded":
        raise PausedError(
            f"run {run_id} is {record.status}: {record.stopped_because or 'it was stopped'}",
            expected="a run that has succeeded",
            do=f"resume with: {_resumes(run)}",
        )
    return Trained(run_id=record.run_id, report=record.report_path, started_from=run.spec.start)


def trained_run(run: WorkflowRun, run_id: str) -> RunRecord:
    """Start or resume the run; returns its record when it ends or stops."""
    from luthier.features.training import service as training

    recipe = _recipe(run)
    try:
        record = run.context.runs.get(run_id)
    except NotFoundError:
        return training.train(run.context, recipe, base_dir=Path(), run_id=run_id).record
    return record if record.status == "succeeded" else training.resume(run.context, run_id).record


def _judge(run: WorkflowRun) -> Judged:
    """Compare with the deployed model on old and on reviewed held-out rows; being worse on either ends it."""
    rows, made = run.outcome("rows", Rows), run.outcome("judge", Judged)
    run_id, before = run.outcome("train", Trained).run_id, run.spec.judged_against
    worse = []
    for which, number in (("old", rows.num_old_held_out), ("new", rows.num_new_held_out)):
        if not number:
            made = made.model_copy(update={f"{which}_said": "there are no such rows: nothing is known of it"})
            continue
        # `made` has the ids from the start of the stage, so an evaluation made before a kill is found again.
        word, sentence = against(evaluated(run, which, getattr(made, which)), run_id, before)
        made = made.model_copy(update={f"{which}_word": word, f"{which}_said": sentence})
        if word == "worse":
            worse.append(f"on {which} held-out rows: {sentence}")
    if run.spec.suite:
        made = made.model_copy(update={"suite_said": _suite(run, made.suite)})
    if worse:
        raise StageRefusedError(
            f"run {run_id} is worse than {before} {'; '.join(worse)}",
            expected="a model that is no worse than the deployed one",
            do="read its report; review more rows, or train from the other start (--start)",
        )
    return made


def _gate(run: WorkflowRun) -> Gated:
    from luthier.features.deployments.gate_passage import pass_gates
    from luthier.features.serving.targets import find_share

    share = find_share(run.context, run.caller, run.outcome("train", Trained).run_id)
    try:
        found = pass_gates(run.context, run.caller, [share], gate=_path(run.spec.gate), override=None)
    except ConflictError as error:
        # A failed gate ends the retraining; as a conflict it would be tried again on each resume.
        raise StageRefusedError(error.came, expected=error.expected, do=error.do) from error
    if found is None:
        return Gated(said="no gate holds for this project")
    return Gated(said="passed", checked=tuple(one.file for one in found.checked), sha256=found.sha256())


def _canary(run: WorkflowRun) -> Canary:
    from luthier.features.deployments.service import deploy

    spec, run_id = run.spec, run.outcome("train", Trained).run_id
    offered = f"luthier deploy {run_id} --as {spec.model} --canary {spec.canary or 0.1:g}"
    offered += project_option(run.project_id)
    if spec.canary is None:
        return Canary(said="offered", command=offered)
    # Already deployed if the process was killed after `deploy` and before this stage was stored.
    revision = run.context.deployments.get(run.project_id, spec.model).revision
    if revision.canary != run_id:
        # Another model was deployed meanwhile, for which the comparison is not valid.
        if (now := deployed_run(run.context, run.caller, revision)) != spec.judged_against:
            raise ConflictError(
                f"{spec.model} is answered by {now} now; {run_id} was evaluated against {spec.judged_against}",
                expected="the deployment that it was evaluated against",
                do=f"evaluate it against {now}, then: {offered}",
            )
        gate = _path(spec.gate)
        revision = deploy(run.context, run.caller, spec.model, run_id, canary=spec.canary, gate=gate).revision
    return Canary(said="made", revision=revision.number, fraction=spec.canary)


def _plan(run: WorkflowRun) -> Plan:
    return run.context.runs.plan(run.spec.run_id)


def _file(run: WorkflowRun, name: str) -> Path:
    """A file of the first stage. Raises ConflictError if it has changed."""
    path = run.folder / f"{name}.jsonl"
    if not path.is_file() or sha256_file(path) != run.outcome("rows", Rows).sha256[name]:
        raise ConflictError(
            f"{path} is missing or was changed",
            expected="the rows that this retraining began with",
            do=f"begin again: luthier retrain {run.spec.model}{project_option(run.project_id)}",
        )
    return path


def _recipe(run: WorkflowRun) -> Recipe:
    """The last run's recipe with these rows. The base is that of the last run, or its merged model."""
    rows, version, recipe = run.outcome("rows", Rows), run.outcome("version", Versions), _plan(run).recipe
    # One row decides for all: `joined` gives a group to every row or to none.
    has_groups = "group" in (read_jsonl(_file(run, "train"))[0])
    data = recipe.data.model_copy(
        update={
            "train": version.train_path,
            "validation": str(_file(run, "validation")) if rows.num_validation else None,
            "held_out": version.held_out_path,
            "map": None,
            # Settings of the old file: the new rows are already chosen, split and mapped.
            "part": None,
            "split_seed": None,
            "group_by": "group" if has_groups else None,
        }
    )
    found: dict[str, Any] = {"data": data, "budget": None}
    if run.spec.start == "last":
        found["base_model"] = str(_merged(run))
    if recipe.evaluation is not None:
        found["evaluation"] = recipe.evaluation.for_other_rows()
    return recipe.model_copy(update=found)


def _merged(run: WorkflowRun) -> Path:
    from luthier.features.exports.service import export

    folder = run.folder / "merged"
    # An export is staged and renamed into place, so an existing folder is complete.
    if not folder.is_dir():
        export(run.context, run.spec.run_id, to="merged", output=folder)
    return folder


def evaluated(run: WorkflowRun, which: str, evaluation_id: str) -> Evaluation:
    """The evaluation of both runs on the old or the new held-out rows, made once."""
    from luthier.features.evaluations.service import evaluate

    run_id = run.outcome("train", Trained).run_id
    judging = run.context.runs.plan(run_id).evaluation
    try:
        return run.context.evaluations.get(evaluation_id)
    except NotFoundError:
        return evaluate(
            run.context,
            [run_id, run.spec.judged_against],
            data=_file(run, f"{which}_held_out"),
            metrics=judging.metrics,
            max_new_tokens=judging.max_new_tokens,
            max_thinking_tokens=judging.max_thinking_tokens,
            max_samples=judging.max_samples,
            evaluation_id=evaluation_id,
            called=f"{which} held-out rows of {run.id}",
        )


def _suite(run: WorkflowRun, result_id: str) -> str:
    from luthier.features.suites.service import run_suite

    found = run_suite(
        run.context,
        [run.outcome("train", Trained).run_id, run.spec.judged_against],
        suite=Path(run.spec.suite),
        project_id=run.project_id,
        result_id=result_id,
    )
    return found.verdict.headline if found.verdict is not None else "no verdict"


def against(found: Evaluation, run_id: str, before: str) -> tuple[str, str]:
    """(word, sentence) of the new model minus the deployed one, by the metric of the verdict.

    The sentence also states whether the new model reaches the threshold of the recipe, and whether a baseline without a
    language model is as good.
    """
    verdict = found.verdict
    metric = verdict.metric if verdict is not None else ""
    for one in found.comparisons:
        # In either order: which of the two is the candidate depends on the evaluation.
        if one.metric == metric and {one.baseline, one.candidate} == {before, run_id}:
            return one.verdict, (
                f"{one.verdict} by {metric}: {one.difference:+.3g} ({one.low:+.3g} to {one.high:+.3g}, 95%) on "
                f"{found.num_rows:,} rows{'' if verdict is None else _worth_deploying(found, verdict)}"
            )
    return NOT_DISTINGUISHABLE, f"no comparison by {metric or 'a metric'} resulted from {found.num_rows:,} rows"


def _worth_deploying(found: Evaluation, verdict: Verdict) -> str:
    """Facts beyond the comparison with the deployed model, as clauses."""
    said = []
    if verdict.bar is not None:
        reached = "good enough" if verdict.good_enough == "yes" else "not shown to be good enough"
        said.append(f"{reached} ({verdict.bar.value:g} by {verdict.bar.metric} required)")
    word, best = _against_others(found, verdict)
    if word in ("worse", "not_distinguishable"):
        relation = "worse" if word == "worse" else "not shown to be better"
        kind = next((one.kind for one in verdict.alternatives if one.name == best), None)
        why = "which needs no training" if kind in _UNTRAINED else "which needs no language model"
        said.append(f"{relation} than {best}, {why}")
    return "".join(f"; {one}" for one in said)


_UNTRAINED: Final = ("few_shot", "instruction", "optimised_prompt", "label_likelihood")


def _against_others(found: Evaluation, verdict: Verdict) -> tuple[AlternativeWord | None, str | None]:
    """The new model against the alternatives that are not runs, with the one that decides.

    The deployed model is a run and has its own sentence.
    """
    from luthier.ml.evaluation.verdict import against_all, rival_among

    names = {one.name for one in verdict.alternatives if one.kind != "run"}
    judged = found.systems[-1].name if found.systems else None
    own = [
        one
        for one in found.comparisons
        if (one.candidate, one.metric) == (judged, verdict.metric) and one.baseline in names
    ]
    if own:
        higher = found.systems[-1].metrics[verdict.metric].higher_is_better
        return against_all(own, higher), rival_among(own, higher).baseline
    has_run = len(names) < len(verdict.alternatives)
    return (None, None) if has_run else (verdict.better_than_best_alternative, verdict.best_alternative)


def _is_of_new(finding: Finding, num_old: int) -> bool:
    # Old rows come first in the file, so lines after them are reviewed ones.
    return finding.severity == "error" and any(line > num_old for line in finding.lines)


def _fields(version: DatasetVersion) -> VersionFields:
    return VersionFields(dataset_id=version.dataset_id, version=version.number, sha256=version.sha256)


def _path_of(run: WorkflowRun, version: DatasetVersion) -> str:
    return str(dataset_versions.path_of(run.context, run.caller, version))


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def _unknown(_run: WorkflowRun) -> None:
    """The duration of training and evaluation is not forecast here."""


def _stages(_spec: RetrainSpec) -> list[StageSpec]:
    rows = ("model", "from_traffic", "panels", "min_rows", "run_id")
    judge = ("rows", "train", "suite", "judged_against")
    return [
        StageSpec("rows", "Reviewed rows, in addition to those of the last run", _rows, Rows, rows),
        StageSpec("audit", "All checks over all rows", _audit, Audited, ("rows",), page="audit.html"),
        StageSpec("version", "The rows are kept as the next version of the dataset", _version, Versions, ("rows",)),
        StageSpec(
            "train",
            "These rows are trained with the last run's recipe",
            _train,
            Trained,
            ("version", "start"),
            begin=lambda _run: Trained(run_id=new_id("run")),
            estimate=_unknown,
        ),
        StageSpec(
            "judge",
            "The new model is compared with the deployed one",
            _judge,
            Judged,
            judge,
            begin=lambda _run: Judged(old=new_id("eval"), new=new_id("eval"), suite=new_id("suite")),
            estimate=_unknown,
        ),
        StageSpec("gate", "The project's rules for what may be deployed", _gate, Gated, ("train", "judge", "gate")),
        StageSpec(
            "canary", "The new model is offered, or tried on some of the users", _canary, Canary, ("gate", "canary")
        ),
    ]


def _subject(asked: dict[str, Any]) -> str:
    return short(str(asked.get("model", "")))


def _learned(asked: dict[str, Any]) -> str:
    traffic = ["accepted traffic"] if asked.get("from_traffic") else []
    return " and ".join(["reviewed answers", *traffic, *(f"panel {one}" for one in asked.get("panels", []))])


def _summary(asked: dict[str, Any]) -> str:
    again = f"{_subject(asked)}, again on {_learned(asked)}"
    return f"{again}, tried on {asked['canary']:.0%} of the users" if asked.get("canary") else again


def _details(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "Deployment": asked.get("model"),
        "Deployed then": asked.get("run_id"),
        "Learns from": _learned(asked),
        "Begins with": "the last model" if asked.get("start") == "last" else "its base",
        "Canary": f"{asked['canary']:.0%} of the users" if asked.get("canary") else "only offered",
        "Gate": file_name(asked.get("gate")),
        "Suite": file_name(asked.get("suite")),
    }


def _answer(pipeline: Pipeline) -> str:
    said = [
        *Judged.model_validate(pipeline.came("judge")).lines(),
        *Canary.model_validate(pipeline.came("canary")).lines(),
    ]
    return f"{pipeline.came('train').get('run_id')} against {pipeline.asked.get('judged_against')}: {'; '.join(said)}"


WORKFLOW: Final = Workflow(
    kind="retrain",
    noun="a retraining",
    request=RetrainSpec,
    stages=_stages,
    folder="pipelines",
    subject=_subject,
    summary=_summary,
    details=_details,
    answer=_answer,
)
