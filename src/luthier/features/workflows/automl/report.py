"""The end of an automl run: the tuned model against prompting on held-out rows, and the report.

No decision was based on these rows. The report has the request, the answer, the next command, and a page.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from luthier.core.access import Caller
from luthier.core.aliases import with_new_keys
from luthier.core.defaults import NUM_DRAWS
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Comparison, Evaluation, SystemResult, Verdict
from luthier.core.evaluation_plan import EvaluationPlan
from luthier.core.registry import STORED
from luthier.core.text.counted import counted
from luthier.core.text.plain_yaml import write_yaml
from luthier.core.workflows.pipeline import (
    SYSTEM_KINDS,
    AutomlSpec,
    Contender,
    ModelComparisonResult,
    ModelComparisonSpec,
    Pipeline,
    SystemKind,
)
from luthier.features.models.resolve import Candidate, find_candidate, open_engine, system_under_test
from luthier.features.workflows.model_comparison.answers import (
    ComparisonRows,
    ReplayEngine,
    candidate_of,
    choices_left_out,
    nearest_of,
    record,
    record_system,
    replayed,
    rows_for,
    rows_that_fit,
    why_no_choice,
)
from luthier.features.workflows.registry import file_name, lines_of, model_names, short, workflow_of
from luthier.ml.evaluation.recommendation import with_agreeing_headline
from luthier.ml.evaluation.sampling import choose_samples
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import spent_hours

if TYPE_CHECKING:
    from luthier.ml.evaluation.systems import SystemUnderTest
    from luthier.ml.inference.transformers_engine import TransformersEngine

FURTHER_SHARE: Final = 0.1
"""Of the hours: what further draws of examples and a search for a prompt may take in the final evaluation."""


class FurtherPrompts(NamedTuple):
    """Ways to prompt the chosen model that a comparison of several models leaves out.

    Attributes:
        num_draws: of the examples before all prompts; 1: no further ones.
        searches: whether a prompt is searched for.
        seconds: that both take.
        left_out: why there are fewer than could be; empty where nothing is left out.
    """

    num_draws: int
    searches: bool
    seconds: float
    left_out: str


def further_prompts(contender: Contender, num_rows: int, hours: float) -> FurtherPrompts:
    """The draws of examples, and then the search, where each fits into what is left of a share of the hours.

    A search may read and write what the judged rows with the nearest examples could take, so it takes about as long.

    Args:
        contender: with the seconds of a row that were measured.
        num_rows: that are judged at most.
        hours: of the whole automl run.
    """
    seconds = contender.judging_seconds
    drawn, nearest = (num_rows * one for one in (seconds.get("few-shot", 0.0), seconds.get("few-shot-nearest", 0.0)))
    if not drawn:
        return FurtherPrompts(1, False, 0.0, "")
    draws, search, left = (NUM_DRAWS - 1) * drawn, max(drawn, nearest), FURTHER_SHARE * hours * 3600
    has_draws = draws <= left
    searches = search <= left - draws * has_draws
    missing = [
        what for what, is_there in (("further draws of examples", has_draws), ("a search", searches)) if not is_there
    ]
    left_out = (
        f"Left out of the ways to prompt {contender.label}: {' and '.join(missing)}, which would take more than "
        f"{FURTHER_SHARE:.0%} of the {hours:.3g} h."
    )
    return FurtherPrompts(
        NUM_DRAWS if has_draws else 1, searches, draws * has_draws + search * searches, left_out if missing else ""
    )


def judging_hours(spec: ModelComparisonSpec, num_rows: int, hours: float) -> float:
    """Expected time of the final evaluation for the slowest candidate, as measured in the model comparison.

    Args:
        spec: the candidates with their measured times.
        num_rows: that are judged.
        hours: of the whole run, of which further ways to prompt may take a share.
    """
    # The base with each way of prompting and the tuned model are evaluated. The tuned model is as fast as the base
    # without examples. Two models are loaded.
    each = [
        2 * one.loading_seconds
        + num_rows * (sum(one.judging_seconds.values()) + one.judging_seconds["zero-shot"])
        + further_prompts(one, num_rows, hours).seconds
        for one in spec.contenders
    ]
    return max(each) / 3600


def judge_at_end(
    context: Context,
    spec: AutomlSpec,
    result: ModelComparisonResult,
    held_out: Path,
    run_id: str | None,
    evaluation_id: str,
    project_id: str,
) -> Evaluation:
    """Judge the recommended model, prompted in each way and, if there is a run, as that has made it.

    All are compared with the same baselines without a language model, fitted on all training rows. The verdict is about
    the tuned model; without one, about prompting against these baselines.

    Args:
        context: the home.
        spec: the request.
        result: the comparison of models that recommends one.
        held_out: the file of held-out rows.
        run_id: the run that has tuned the model; None where prompting is enough.
        evaluation_id: the id of the evaluation.
        project_id: whose evaluation it is, also without a run.

    Raises:
        NotFoundError, ModelSourceError: a model or its files are missing.
        DataError: the held-out rows cannot be read.
    """
    from luthier.features.evaluations.baselines import fit_baselines
    from luthier.features.evaluations.evaluated_rows import BY_PROVENANCE, groups_of, notes_on
    from luthier.features.evaluations.prompted import draws_together
    from luthier.ml.baselines.predict import as_system
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.evaluation.compare import judge_in_full
    from luthier.ml.evaluation.metrics.registry import as_definitions
    from luthier.ml.evaluation.row_groups import with_groups
    from luthier.ml.inference.models import sources

    began = time.perf_counter()
    number, asked = result.recommendation.contender, result.spec
    assert number is not None
    model = sources.pull(asked.contenders[number].model, context.home, context.progress)
    loaded = load_file(held_out, mapping=spec.map)
    # Rows longer than the context would be evaluated truncated.
    fit = rows_that_fit(context, model, loaded.examples, instruction=spec.goal)
    judged = choose_samples(fit, spec.most_judged)
    material = ComparisonRows(load_file(Path(asked.train_file), mapping=spec.map).examples, judged)
    train = load_file(Path(asked.data), mapping=spec.map).examples
    # The comparison of models trained on fewer rows, from which examples are drawn again as it drew them.
    whole = ComparisonRows(rows_that_fit(context, model, train, instruction=""), judged)
    baselines = fit_baselines(context, train, judged, asked.metrics, Path(model.path))
    further = further_prompts(asked.contenders[number], spec.most_judged, spec.hours)
    models = _asked(context, result, number, whole, material, run_id, further)
    # Before the models: a system is compared with those before it.
    systems = [*(as_system(one, models.systems[-1]) for one in baselines.predictions), *models.systems]
    definitions = as_definitions(asked.metrics)
    groups = groups_of(judged, held_out, spec.group_by or BY_PROVENANCE)
    clusters = None if groups is None else groups.clusters([one.id for one in judged])
    every = judge_in_full(systems, metrics=definitions, seed=spec.seed, progress=context.progress, clusters=clusters)
    together = draws_together(every, models.draws, definitions, clusters)
    decisive = _decisive(result, models.kinds, [one.name for one in models.systems])
    # In the order of every evaluation: models, baselines without one, and last the system that the verdict is about.
    results = tuple(sorted(together.systems, key=lambda one: (one.name == decisive, not one.is_model)))
    words = _verdict(
        asked.primary, results, together.comparisons, num_rows_in_file=loaded.num_rows, is_tuned=bool(run_id)
    )
    found = Evaluation(
        evaluation_id=evaluation_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        held_out_file=str(held_out),
        held_out_sha256=loaded.sha256,
        num_rows=len(judged),
        num_rows_in_file=loaded.num_rows,
        systems=results,
        comparisons=together.comparisons,
        verdict=with_groups(words, groups),
        rows_notes=(*models.notes, *baselines.notes, *notes_on((), 0, words, groups)),
        baselines_left_out=(*baselines.left_out, *models.left_out),
        seconds=time.perf_counter() - began,
    )
    found = with_agreeing_headline(found)
    context.evaluations.save(found, project_id=project_id)
    return found


class _Asked(NamedTuple):
    """The ways in which the model was asked.

    Attributes:
        kinds: of each system; None for the best prompt of a search.
        systems: which replay the answers.
        draws: the names of those that are draws of one system; empty where there is one draw or none.
        notes: what a reader should know of draws and search.
        left_out: ways that do not fit the rows, each with the reason.
    """

    kinds: list[SystemKind | None]
    systems: list[SystemUnderTest]
    draws: list[str]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def _asked(
    context: Context,
    result: ModelComparisonResult,
    number: int,
    material: ComparisonRows,
    drawn_from: ComparisonRows,
    run_id: str | None,
    further: FurtherPrompts,
) -> _Asked:
    """The ways in which the model was asked, each as a system that replays its answers, and why others were not.

    Prompting competes with tuning, so each way of it is evaluated, not only the recommended one.
    """
    spec = result.spec
    plain = candidate_of(context, spec, number, "zero-shot", material)
    there = {
        "zero-shot": True,
        "likeliest-label": not why_no_choice(plain, spec, material),
        "few-shot": spec.few_shot > 0,
        "few-shot-nearest": spec.few_shot > 0 and nearest_of(spec, plain, material) is not None,
        "tuned": run_id is not None,
    }
    notes = (further.left_out,) if further.left_out else ()
    found = _Asked([], [], [], (), choices_left_out([plain], spec, material))
    for kind in SYSTEM_KINDS:
        if kind == "tuned" and further.searches:
            best, of_search = _best_prompt(context, spec, plain, material)
            found.kinds.extend([None] * len(best))
            found.systems.extend(best)
            notes = (*notes, *of_search)
        if not there[kind]:
            continue
        own = drawn_from if kind == "few-shot" else material
        candidate = (
            replace(find_candidate(context, run_id), name="tuned")
            if kind == "tuned" and run_id is not None
            else candidate_of(context, spec, number, kind, own)
        )
        # Each model is asked on its own and then replayed, so that only one is in memory at a time.
        if kind == "few-shot" and further.num_draws > 1:
            systems = _drawn(context, spec, candidate, own, further.num_draws)
            found.draws.extend(one.name for one in systems if len(systems) > 1)
        else:
            recorded = record(candidate, spec, kind, own, context.progress)
            systems = [replayed(candidate, spec, kind, own, recorded)]
        found.kinds.extend([kind] * len(systems))
        found.systems.extend(systems)
    if found.draws:
        notes = (f"Figures of {found.draws[0]} are means over {counted(len(found.draws), 'draw')} of examples.", *notes)
    return found._replace(notes=notes)


def _drawn(
    context: Context, spec: ModelComparisonSpec, first: Candidate, material: ComparisonRows, num_draws: int
) -> list[SystemUnderTest]:
    """The model with each draw of examples in its prompts, as systems that replay their answers.

    first: with the draw that the comparison of models had.
    """
    from luthier.features.evaluations.prompted import as_systems
    from luthier.ml.evaluation.few_shot import choose_draws

    draws = choose_draws(material.pool, spec.few_shot, spec.seed, num_draws=num_draws, held_out=material.judged)
    candidates = [
        replace(
            first,
            name=first.name if place == 1 else f"{first.name}, draw {place}",
            shots=shots,
            num_draws=len(draws),
        )
        for place, shots in enumerate(draws, start=1)
    ]
    rows = rows_for(spec, "few-shot", material)
    engine = open_engine(first)
    try:
        systems, _ = as_systems(
            candidates, candidates, lambda one: system_under_test(one, engine, rows, spec.max_new_tokens)
        )
        return [_recorded(context, one, engine) for one in systems]
    finally:
        engine.close()


def _best_prompt(
    context: Context, spec: ModelComparisonSpec, plain: Candidate, material: ComparisonRows
) -> tuple[list[SystemUnderTest], tuple[str, ...]]:
    """The best prompt of a search on the rows that the model was chosen by, none where it finds none, and notes on it.

    It tries the goal as an instruction, and those that it derives from the rows.
    """
    from luthier.features.evaluations.prompt_search import found_prompt, not_asked, open_reflector, search_of
    from luthier.features.evaluations.prompted import prompts_that_fit
    from luthier.features.generation.engines import EnginePool
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.prompting.search import max_cost

    chosen_by = load_file(Path(spec.judged_file), mapping=spec.map).examples
    engine = open_engine(plain)
    try:
        beside = nearest_of(spec, plain, material) or plain
        most = max_cost(
            system_under_test(beside, engine, material.judged, spec.max_new_tokens), range(len(material.judged))
        )
        asked = EvaluationPlan(
            metrics=(), max_new_tokens=0, max_samples=0, few_shot=spec.few_shot, optimised_prompt_tokens=most
        )
        search = search_of(
            not_asked(material.pool, material.judged), asked, spec.seed, not_asked(chosen_by, material.judged)
        )
        best, notes = found_prompt(
            plain,
            replace(search, instructions=(spec.instruction,) if spec.instruction else ()),
            lambda _: engine,
            spec.metrics,
            (spec.max_new_tokens, None),
            partial(open_reflector, context, EnginePool(open_engine)),
            progress=context.progress,
        )
        found, left_out = prompts_that_fit(
            () if best is None else (best,),
            lambda one: system_under_test(one, engine, material.judged, spec.max_new_tokens),
        )
        systems = [system_under_test(one, engine, material.judged, spec.max_new_tokens) for one in found]
        return [_recorded(context, one, engine) for one in systems], (*notes, *(f"{why}." for why in left_out))
    finally:
        engine.close()


def _recorded(context: Context, system: SystemUnderTest, engine: TransformersEngine) -> SystemUnderTest:
    """A system that has given its answers and replays them. engine: its own."""
    return replace(system, engine=ReplayEngine(record_system(system, context.progress), engine.template))


def _decisive(result: ModelComparisonResult, kinds: Sequence[SystemKind | None], names: Sequence[str]) -> str:
    """The name of the system of the verdict: the tuned one, or the recommended way of prompting."""
    kind = kinds[-1] if kinds[-1] == "tuned" else result.standing(result.recommendation.system).kind
    # By kind: the number of examples that fit into a prompt, which is part of the name, may differ between two sets of
    # rows.
    return next((name for name, one in zip(names, kinds, strict=True) if one == kind), names[-1])


def _verdict(
    primary: str,
    systems: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    *,
    num_rows_in_file: int,
    is_tuned: bool,
) -> Verdict | None:
    """The verdict on the last system; for an untuned one None if no baseline without a model has the metric."""
    from luthier.ml.evaluation.compare import verdict

    # The best way of prompting was decided on other rows; here it is only compared with baselines without a model.
    against = {one.name: place for place, one in enumerate(systems) if is_tuned or not one.is_model}
    found = [one for one in comparisons if one.baseline in against and one.candidate == systems[-1].name]
    found.sort(key=lambda one: against[one.baseline])
    if not is_tuned and all(one.metric != primary for one in found):
        return None
    return verdict(systems, found, primary=primary, num_rows_in_file=num_rows_in_file)


def subject(asked: dict[str, Any]) -> str:
    """The goal."""
    return short(str(asked.get("goal", "")))


def summary(asked: dict[str, Any]) -> str:
    """The goal, the file and the budget."""
    return f"“{subject(asked)}” from {file_name(asked.get('data'))}, within {asked.get('hours', 0):.3g} h"


def details(asked: dict[str, Any]) -> dict[str, Any]:
    """The request as pairs of name and value."""
    return {
        "Goal": asked.get("goal"),
        "Folder of documents" if asked.get("is_folder") else "Rows": file_name(asked.get("data")),
        "Base models": model_names(asked.get("models", [])),
        "Decides": asked.get("metric"),
        "Budget": f"{asked.get('hours', 0):.3g} h, {asked.get('showdown_hours', 0):.3g} h of them for the comparison",
    }


def headline(pipeline: Pipeline) -> str:
    """The answer in a few sentences: the result, or the progress."""
    stopped = next((stage for stage in pipeline.stages if stage.status in ("refused", "failed")), None)
    if stopped is not None:
        return f"It ended at {stopped.name}: {stopped.reason}"
    if pipeline.came("judge"):
        chosen, judged = (str(pipeline.came(name).get("headline") or "") for name in ("showdown", "judge"))
        # Without a tuned model the evaluation only adds the comparison of prompting with baselines without a model.
        return (judged or chosen) if pipeline.came("tune").get("run_id") else " ".join(filter(None, (chosen, judged)))
    waiting = pipeline.next_stage
    return f"It is not done: {waiting.name if waiting else 'report'} comes next."


def next_commands(pipeline: Pipeline) -> list[str]:
    """The next commands."""
    stopped = any(stage.status == "refused" for stage in pipeline.stages)
    tuned = pipeline.came("tune")
    if not pipeline.came("judge"):
        return [] if stopped else [f"luthier automl --resume {pipeline.pipeline_id}"]
    if run_id := tuned.get("run_id"):
        study = tuned.get("study_id")
        apply = [f"luthier studies apply {study} -o recipe.yaml"] if study else []
        return [f"luthier chat {run_id}", f"luthier runs show {run_id}", *apply]
    return []


def write_auto_report(context: Context, _caller: Caller, pipeline: Pipeline, path: Path) -> None:
    """Write the page, also for an unfinished run.

    Raises:
        StorageFullError: the disk is full.
    """
    from luthier.ml.evaluation.report.workflow_pages import AutoStage, write_auto_page

    workflow = workflow_of("auto")
    spec = AutomlSpec.model_validate(pipeline.asked, context=STORED)
    titles, lines = {one.name: one.title for one in workflow.stages(spec)}, lines_of(workflow, pipeline)
    stages = [
        AutoStage(
            name=stage.name,
            words=titles[stage.name],
            status=stage.status,
            lines=tuple(lines[stage.name]),
            hours=stage.came.get("seconds", 0.0) / 3600,
            href=_link(stage.came.get("page"), path.parent),
        )
        for stage in pipeline.stages
        if stage.name != "report"
    ]
    write_auto_page(
        path,
        pipeline,
        spec,
        headline=headline(pipeline),
        stages=stages,
        evaluation=evaluation_of(context, pipeline),
        recipe=_recipe(context, pipeline),
        spent_hours=spent_hours(workflow, pipeline),
        commands=next_commands(pipeline),
    )


def _link(page: str | None, folder: Path) -> str:
    if page is None:
        return ""
    return Path(page).relative_to(folder).as_posix() if Path(page).is_relative_to(folder) else Path(page).as_uri()


def evaluation_of(context: Context, pipeline: Pipeline) -> Evaluation | None:
    """The final evaluation; None if it does not exist yet or any more."""
    found = pipeline.came("judge").get("evaluation_id")
    if found is None:
        return None
    try:
        return context.evaluations.get(found)
    except NotFoundError:  # named before it is made
        return None


def _recipe(context: Context, pipeline: Pipeline) -> str:
    """The recipe of the tuned model, ready to run; empty if nothing was tuned."""
    run_id = pipeline.came("tune").get("run_id")
    if not run_id:
        return ""
    try:
        recipe = context.runs.plan(run_id).recipe
    except NotFoundError:  # the run has since been removed
        return ""
    return write_yaml(with_new_keys(recipe.model_dump(mode="json", exclude_none=True)))
