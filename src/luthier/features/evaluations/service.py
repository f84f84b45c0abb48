"""Use case: evaluate models and runs on held-out rows, side by side, with intervals and a verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from luthier.core.data_sources import SourcePlan, sources_of
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, ModelSourceError, RequestError
from luthier.core.evaluation import Comparison, Evaluation, LabelConfidence, SourceFigures, Verdict
from luthier.core.evaluation_plan import Bar, GoodEnoughRecipe, MetricName
from luthier.core.ids import is_id, new_id
from luthier.core.plan import Plan
from luthier.core.ports import StopCheck
from luthier.core.run import TrainResult
from luthier.features.evaluations.bars import bar_of, comparable_bar, on_judged_rows
from luthier.features.evaluations.baselines import Together, fit_baselines, judged_together, with_learning_curve
from luthier.features.evaluations.evaluated_rows import (
    grouping_of,
    grouping_of_model,
    groups_of,
    notes_on,
    with_earlier_runs,
)
from luthier.features.evaluations.label_scores import LabelledRows, label_confidence_of
from luthier.features.evaluations.leakage import held_out_of_run, learned_rows, not_held_out
from luthier.features.evaluations.prompted import (
    NO_PROMPTS,
    NOT_PROMPTED,
    AskedPrompts,
    Prompted,
    check_asked,
    prompted,
    prompted_as_asked,
)
from luthier.features.evaluations.systems import JudgedHeads, answers_as_sets, chosen_metrics, measure_kl, search_kind
from luthier.features.generation.engines import EnginePool
from luthier.features.models.names import find_model, runs_of
from luthier.features.models.resolve import (
    Candidate,
    as_candidate,
    base_of,
    find_base,
    find_candidate,
    tuned,
)
from luthier.features.planning.evaluation_plan import reference_caveat
from luthier.features.planning.service import Prepared
from luthier.features.planning.training_data import PreparedSplit
from luthier.features.recipes.checks import (
    check_metrics,
    label_metrics,
    load_mapped,
    usual_metrics,
)
from luthier.ml.evaluation.recommendation import with_agreeing_headline
from luthier.ml.evaluation.sampling import choose_samples
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows on which candidates are evaluated.

    Attributes:
        file: Its name or path.
        sha256: The digest of the file.
        num_rows: All rows of the file.
        examples: The rows that can be evaluated.
        num_leaked: Rows that a run among the systems was trained on.
        num_same_prompt: Rows whose prompt occurs in training rows.
        notes: How the rows were read.
        path: The file itself, if more of it may be read.
        sources: Where its rows come from, if from several sources.
        grouped_by: The field by which rows belong together, where the rows themselves do not carry it.
    """

    file: str
    sha256: str
    num_rows: int
    examples: Sequence[Example]
    num_leaked: int = 0
    num_same_prompt: int = 0
    notes: tuple[str, ...] = ()
    path: Path | None = None
    sources: tuple[SourcePlan, ...] = ()
    grouped_by: str | None = None


def judge_run(
    context: Context, run_id: str, prepared: Prepared, result: TrainResult, *, stop: StopCheck | None = None
) -> Evaluation:
    """Evaluate base, prompted base, the teacher if any, and the tuned model of a run on its held-out rows.

    Args:
        context: of the home.
        run_id: of the run.
        prepared: its plan and rows.
        result: of its training.
        stop: called after each batch of answers or rows; a returned reason ends the evaluation. None never stops it.

    Raises:
        ConflictError: the run has no held-out rows or no trained weights.
        StoppedError: `stop` has returned a reason.
    """
    plan, held_out = prepared.plan, prepared.held_out
    if held_out is None or result.adapter_path is None:
        raise ConflictError(
            f"run {run_id} has no held-out rows or no trained weights",
            expected="a finished run with data.held_out in its recipe",
            do="evaluate it with: luthier eval RUN --data held_out.jsonl",
        )
    # Base and tuned model run with the precision and template of the plan, so that only the training differs.
    base = base_of(plan, name="base", model_path=plan.base_model.path)
    candidates = [base]
    # From the training rows: prompts may use the same data as the tuned model.
    shown = prompted(
        base,
        prepared.train.good_examples,
        plan.evaluation,
        plan.training.seed,
        held_out=held_out.examples,
        validation=prepared.validation.good_examples if prepared.validation is not None else (),
    )
    candidates += shown.candidates
    if plan.objective.teacher is not None:
        candidates.append(as_candidate(plan.objective.teacher))
    reference, of_reference = _reference(context, plan, held_out.examples)
    candidates += reference
    # The evaluated system is last: comparisons and tables treat the last one as the candidate.
    candidates.append(tuned("tuned", base, result.adapter_path, plan.method.num_virtual_tokens or 0))
    # Of streamed rows the plan knows the first alone, the result all that were trained.
    same_prompt = plan.data.num_same_prompt if result.stream is None else len(result.stream.same_prompt)
    profile, leaked = held_out.profile, (plan.data.num_leaked, same_prompt)
    judged_rows = _that_fit(held_out, prepared)
    where = (Path(profile.file), sources_of(plan.data, profile))
    rows = HeldOut(profile.file, profile.sha256, profile.num_rows, judged_rows, *leaked, of_reference, *where)
    rows = replace(rows, grouped_by=grouping_of(plan))
    evaluation = _judge(
        context,
        candidates,
        rows,
        metrics=plan.evaluation.metrics,
        max_new_tokens=plan.evaluation.max_new_tokens,
        max_thinking_tokens=plan.evaluation.max_thinking_tokens,
        max_samples=plan.evaluation.max_samples,
        run_id=run_id,
        # Named in `as_candidate`; the prefix distinguishes a teacher from a baseline.
        beside=[c.name for c in candidates if c.name.startswith("teacher ")],
        train=prepared.train.good_examples,
        validation=prepared.validation.good_examples if prepared.validation is not None else (),
        bar=plan.evaluation.good_enough,
        heads=JudgedHeads(stop, plan.evaluation.num_workers),
        shown=shown,
    )
    evaluation = with_earlier_runs(context, evaluation)
    # General rows are only held out where the recipe replays them.
    if prepared.replay_held_out is None:
        return evaluation
    return _with_forgetting(context, evaluation, [base, candidates[-1]], prepared, stop)


def _reference(context: Context, plan: Plan, held_out: Sequence[Example]) -> tuple[list[Candidate], tuple[str, ...]]:
    """The reference run that the plan names, and notes about it.

    A reference run that was deleted during training is skipped: the evaluation should not fail because of it.
    """
    from luthier.ml.inference.models.loading import check_adapter

    run_id = plan.evaluation.reference_run
    if run_id is None:
        return [], ()
    try:
        found = find_candidate(context, run_id)
        if found.adapter_path is not None:
            check_adapter(found.adapter_path)
    except (RequestError, ModelSourceError) as error:
        return [], (f"{run_id}, which evaluation.reference_run names, was not evaluated: {error.came}",)
    caveat = reference_caveat(context, run_id, held_out, is_allowed=True)
    return [found], ((f"{run_id}, which is evaluated next to the tuned model: {caveat}.",) if caveat else ())


def _that_fit(split: PreparedSplit, prepared: Prepared) -> Sequence[Example]:
    """The rows to evaluate; packed texts, which may have any length, are split into pieces that fit the context."""
    from luthier.ml.data.tokenise.packing import split_text

    packed = split.profile.packed
    if packed is None:
        return split.examples
    # Pieces joined are the text again, so bits per byte stay comparable with those of the whole text.
    return tuple(p for e in split.examples for p in split_text(e, prepared.template, packed.block_tokens))


def _with_forgetting(
    context: Context,
    evaluation: Evaluation,
    candidates: Sequence[Candidate],
    prepared: Prepared,
    stop: StopCheck | None,
) -> Evaluation:
    """The evaluation with forgetting: base and tuned model on the held-out general rows."""
    from luthier.ml.evaluation.tasks_verdict import METRICS, forgetting

    plan, general = prepared.plan, prepared.replay_held_out
    assert general is not None
    assert plan.data.replay is not None
    start, most = time.perf_counter(), plan.evaluation.max_samples
    examples = _that_fit(general, prepared)
    rows = HeldOut(general.profile.file, general.profile.sha256, general.profile.num_rows, examples)
    judged = _judge(
        context,
        candidates,
        rows,
        metrics=METRICS,
        # Forgetting is measured by likelihoods only; nothing is generated, so the limit is irrelevant.
        max_new_tokens=1,
        max_thinking_tokens=0,
        max_samples=most,
        run_id=None,
        measures_kl=False,
        heads=JudgedHeads(stop, plan.evaluation.num_workers),
    )
    found = forgetting(
        judged.systems,
        judged.comparisons,
        file=rows.file,
        sha256=rows.sha256,
        num_leaked=plan.data.replay.num_leaked,
        num_in_file=len(rows.examples),
    )
    verdict = evaluation.verdict
    if verdict is not None:
        # "worse" is a caveat of the verdict; anything else is a detail.
        more = {"caveats": (*verdict.caveats, found.sentence)} if found.word == "worse" else {}
        verdict = verdict.model_copy(update=more or {"details": (*verdict.details, found.sentence)})
    seconds = evaluation.seconds + time.perf_counter() - start
    return evaluation.model_copy(update={"forgetting": found, "verdict": verdict, "seconds": seconds})


def evaluate(
    context: Context,
    systems: Sequence[str],
    *,
    data: Path,
    few_shot: int = 0,
    few_shot_from: Path | None = None,
    prompts: AskedPrompts = NO_PROMPTS,
    metrics: Sequence[MetricName] | None = None,
    mapping: Mapping[str, str] | None = None,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    max_samples: int | None = None,
    allow_leakage: bool = False,
    good_enough: GoodEnoughRecipe | None = None,
    evaluation_id: str | None = None,
    called: str | None = None,
) -> Evaluation:
    """Evaluate models and runs on the rows of a file.

    Args:
        context: of the home.
        systems: the candidate first, then what it is compared with, each by any name of a model.
        data: file of the held-out rows.
        few_shot: examples in the prompt of the first base model among the others, or of the base of the first run; 0
            for none.
        few_shot_from: file of these examples; required where `few_shot` is not 0.
        prompts: further ways to prompt.
        metrics: names; None takes those that the rows can be evaluated by.
        mapping: as `data.columns` in a recipe; None takes that of the first run where the file has its columns
            (`column_maps`), and the evaluation notes it.
        max_new_tokens: of an answer; None takes it from the lengths of the rows' own, for each system with its own
            tokenizer.
        max_thinking_tokens: of a thought before it; None takes it from the rows' own thoughts.
        max_samples: rows at most, drawn at random; None evaluates all.
        allow_leakage: whether rows are evaluated that a run was trained on; the verdict then notes it.
        good_enough: what the candidate has to reach; None takes the bar of its run's recipe, and notes where these rows
            cannot be compared with that one.
        evaluation_id: None makes one.
        called: name of the file in the result; None takes its own.

    Raises:
        RequestError: the rows have no place for metrics, few-shot examples or `good_enough`, or there is a bar and
            nothing to compare the candidate with.
        DataError: rows are wrong.
        OverlongError: a row exceeds the context of a model.
        NotFoundError: no such model or run.
        LeakageError: rows are in the training rows of a run, and `allow_leakage` is false.
    """
    ways = replace(prompts, few_shot=few_shot)
    check_asked(context, ways, few_shot_from)
    systems, of_names = _by_run(context, systems)
    loaded, of_columns = load_mapped(context, runs_of(context, systems), data, mapping)
    if not (mapping or allow_leakage):  # else it is said how its rows are read, or that all of them are meant
        loaded, of_own = held_out_of_run(context, systems[0], loaded)
        of_columns += of_own
    resolved = [find_candidate(context, name) for name in systems]
    chosen = chosen_metrics(metrics, resolved, usual_metrics(loaded.examples))
    check_metrics(chosen, loaded.examples)
    train, leaked = learned_rows(context, systems, loaded.examples, allow_leakage)
    pool = _pool(context, systems, few_shot_from if ways.any else None, mapping, loaded.examples)
    shown = prompted_as_asked(partial(_base_of, context, systems, resolved), pool or train, ways, loaded.examples)
    bar, of_bar = bar_of(context, good_enough, systems[0], chosen, loaded.examples, train or pool, Path(loaded.file))
    notes = (*of_names, *of_columns, *of_bar)
    name, file = called or str(data), Path(loaded.file)
    rows = HeldOut(name, loaded.sha256, loaded.num_rows, loaded.examples, *leaked, notes, file)
    rows = replace(rows, grouped_by=grouping_of_model(context, systems[0]))
    evaluation = _judge(
        context,
        [*resolved[1:], *shown.candidates, resolved[0]],  # from the plain to the tuned
        rows,
        metrics=chosen,
        max_new_tokens=max_new_tokens,
        max_thinking_tokens=max_thinking_tokens,
        max_samples=max_samples or len(loaded.examples),
        run_id=systems[0] if is_id(systems[0], "run") else None,
        train=train or pool,
        bar=bar,
        is_bar_asked=good_enough is not None,
        evaluation_id=evaluation_id,
        shown=shown,
    )
    evaluation = with_earlier_runs(context, evaluation)
    # That of a run is found by its run; that of a checkpoint names its project itself.
    run_id = find_model(context, systems[0]).run_id
    context.evaluations.save(evaluation, project_id=None if run_id is None else context.runs.project_of(run_id))
    return evaluation


def _by_run(context: Context, systems: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The systems by name, and notes about those that are deployments.

    The result of a run is named by its id: rows, bar and verdict are those of the run, under any name.
    """
    found = [find_model(context, name, takes_exports=False) for name in systems]
    return [one.name for one in found], tuple(one.note for one in found if one.note)


def _pool(
    context: Context,
    systems: Sequence[str],
    file: Path | None,
    mapping: Mapping[str, str] | None,
    held_out: Sequence[Example],
) -> tuple[Example, ...]:
    """The rows of a file that examples are taken from; none without a file."""
    if file is None:
        return ()
    return not_held_out(load_mapped(context, runs_of(context, systems), file, mapping)[0].examples, held_out)


def _base_of(context: Context, systems: Sequence[str], resolved: Sequence[Candidate]) -> Candidate:
    """The first base model among the systems, or that of the first run or adapter."""
    runs = [find_model(context, name).run_id for name in systems]
    for run_id, candidate in zip(runs, resolved, strict=True):
        if run_id is None and candidate.adapter_path is None:
            return candidate
    if runs[0] is None:
        return replace(resolved[0], name=resolved[0].model_name, adapter_path=None)
    return find_base(context, runs[0])


def _judge(
    context: Context,
    candidates: Sequence[Candidate],
    held_out: HeldOut,
    *,
    metrics: Sequence[MetricName],
    max_new_tokens: int | None,
    max_thinking_tokens: int | None,
    max_samples: int,
    run_id: str | None,
    beside: Sequence[str] = (),
    train: Sequence[Example] = (),
    validation: Sequence[Example] = (),
    bar: Bar | None = None,
    is_bar_asked: bool = True,
    evaluation_id: str | None = None,
    measures_kl: bool = True,
    heads: JudgedHeads | None = None,
    shown: Prompted = NOT_PROMPTED,
) -> Evaluation:
    """Open each engine once, evaluate, and put the verdict into words; other arguments are as for `evaluate`.

    Args:
        candidates: the systems, the evaluated one last.
        held_out: the rows.
        run_id: of the run that is evaluated; None without one.
        beside: names of systems that are shown but are no baseline: a student need not beat its teacher.
        train: rows that baselines without a language model are fitted on.
        validation: rows that choose from which confidence on the last system answers labels alone.
        bar: what the last system has to reach.
        is_bar_asked: false where the bar is that of its run, which is left out with a note without a verdict.
        measures_kl: whether the last system's distance to its base is measured.
        heads: opens the engines.
        shown: ways to prompt a candidate.

    Raises:
        RequestError: there is a bar and nothing to compare the last system with, so no verdict.
    """
    start, examples = time.perf_counter(), choose_samples(held_out.examples, max_samples)
    baselines = fit_baselines(context, train, examples, metrics, Path(candidates[0].model_path))
    limits, searches = (max_new_tokens, max_thinking_tokens), search_kind(candidates) is not None
    num_systems = len(candidates) + len(baselines.predictions) + searches  # a search always has an order as baseline
    bar, of_bar = comparable_bar(bar, num_systems, candidates[-1].name, is_bar_asked)
    bar, people = on_judged_rows(bar, held_out.path, examples, answers_as_sets(candidates))
    of_labels = label_metrics(metrics, examples, train)
    labels = tuple(name for m in of_labels for name in m.labelling.labels)
    groups = groups_of(examples, held_out.path, held_out.grouped_by, train)
    rows = LabelledRows(labels, examples, train, bar, validation, groups)
    heads = heads or JudgedHeads(None, stored_answers=context.stored_answers, shares=context)
    with closing(EnginePool(heads.open, heads.over_base)) as pool:
        every = judged_together(context, pool, candidates, shown, baselines, rows, (metrics, of_labels), limits)
        confidence, why = label_confidence_of(rows, candidates[-1], pool, every.systems, baselines, context.progress)
        no_kl = searches or not measures_kl
        to_measure = (pool, every.candidates, every.by_candidate, context.progress, groups)
        kl, why_not = (None, ()) if no_kl else measure_kl(*to_measure)
    counted = [one for one in every.judged.comparisons if one.baseline not in beside]  # the others are stored and shown
    ends = (candidates[0].name, candidates[-1].name)
    words, by_source = _verdict(every, ends, counted, metrics, rows, held_out, people, confidence)
    notes = notes_on(held_out.notes, held_out.num_leaked, words, groups)
    evaluation = Evaluation(
        evaluation_id=evaluation_id or new_id("eval"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        held_out_file=held_out.file,
        held_out_sha256=held_out.sha256,
        num_rows=every.judged.systems[-1].num_samples,
        num_rows_in_file=len(held_out.examples),
        systems=heads.with_figures(every.judged.systems, examples, groups),
        comparisons=every.judged.comparisons,
        verdict=with_learning_curve(
            words, train, examples, baselines, time.perf_counter() - start, context.progress, candidates, groups
        ),
        by_source=by_source,
        kl_to_base=kl,
        rows_notes=(*notes, *of_bar, *pool.notes, *shown.notes, *every.notes, *why_not),
        baselines_left_out=every.left_out,
        labels=rows.labels if answers_as_sets(candidates) is None else (),  # sets of labels have no one spelling
        label_confidence=confidence,
        label_confidence_left_out=why,
        seconds=time.perf_counter() - start,
        num_workers=heads.max_workers,
    )
    return with_agreeing_headline(evaluation)


def _verdict(
    every: Together,
    ends: tuple[str, str],
    counted: Sequence[Comparison],
    metrics: Sequence[MetricName],
    rows: LabelledRows,
    held_out: HeldOut,
    people: Mapping[str, bool],
    confidence: Sequence[LabelConfidence],
) -> tuple[Verdict | None, tuple[SourceFigures, ...]]:
    """The verdict on the last system, and the figures for each source of the rows.

    Args:
        every: all systems, judged on the same rows.
        ends: the names of the first candidate and of the last one, which the figures by source compare.
        counted: the comparisons that the verdict rests on.
        metrics: as asked for.
        rows: with their labels and the bar.
        held_out: where the rows are from.
        people: by row, whether two people agree.
        confidence: of the last system's labels.

    Returns:
        None and no figures if there is one system alone.
    """
    from luthier.ml.evaluation.by_source import with_sources
    from luthier.ml.evaluation.compare import primary_metric, verdict
    from luthier.ml.evaluation.row_groups import with_groups

    if len(every.judged.systems) < 2:
        return None, ()
    groups, row_ids = rows.groups, every.systems[-1].row_ids
    words = verdict(
        every.judged.systems,
        counted,
        primary=primary_metric(metrics, [e.reference for e in rows.examples]),
        num_leaked=held_out.num_leaked,
        num_same_prompt=held_out.num_same_prompt,
        num_rows_in_file=len(held_out.examples),
        bar=rows.bar,
        people=people,
        groups=None if groups is None else groups.counted,
        are_labels=bool(rows.labels),
        confidence=confidence,
    )
    clusters = None if groups is None else groups.clusters(row_ids)
    return with_sources(with_groups(words, groups), every.judged, counted, ends, held_out.sources, row_ids, clusters)
