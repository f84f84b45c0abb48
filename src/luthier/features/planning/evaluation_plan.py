"""The evaluation in a plan: the bar, ways to use the base model, labels to score, and the run that is compared.

All of it needs the held-out rows, so it is decided and checked where these are read, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.data_sources import SourcePlan
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataSourceError, LeakageError, LuthierError, RecipeError, RequestError
from luthier.core.ids import is_id, sha256_file
from luthier.core.plan import Plan, ValueSource
from luthier.core.recipe import Recipe
from luthier.core.task_head import SEARCH_KINDS
from luthier.features.planning.data_sources import located, recipe_of
from luthier.features.planning.training_data import Part, load_splits, rows_memory
from luthier.features.recipes.checks import (
    are_seen_by_rouge,
    check_few_shot,
    check_metrics,
    have_text_answers,
    label_metrics,
    resolve_bar,
)
from luthier.ml.data.files.sequences import chained
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.spill import Spill


def with_judging(
    context: Context, plan: Plan, judged: Sequence[Example], train: Sequence[Example], num_shown: int
) -> Plan:
    """The plan with all that is evaluated next to the tuned model, and what has to be reached.

    Args:
        context: The home.
        plan: With everything else.
        judged: The held-out rows; none where nothing is evaluated.
        train: The training rows that are good answers.
        num_shown: Of these, how many can be examples in a prompt (`few_shot.num_usable`).

    Raises:
        RequestError: The request cannot be evaluated by these rows and metrics.
        RecipeError: It cannot be evaluated at all.
        NotFoundError, ConflictError: The reference run, the reflection model or their weights are missing.
        LeakageError: The reference run was trained on held-out rows, and the recipe does not allow that.
    """
    if judged:
        plan = _with_usual_metrics(plan, judged)
        _check_judged(plan, judged, train)
    plan = _with_labels(_with_bar(plan, judged, train), judged, train)
    plan = _with_reflection(context, _with_prompts(plan, judged, train, num_shown))
    return _with_reference(context, plan, judged)


def _with_usual_metrics(plan: Plan, judged: Sequence[Example]) -> Plan:
    """The plan; with metrics of characters where the usual ones would be taken, and ROUGE does not see the answers."""
    from luthier.ml.planning.defaults import METRICS, OTHER_SCRIPT_METRICS
    from luthier.ml.planning.prompt_variants import in_order

    asked = plan.recipe.evaluation
    is_asked = asked is not None and asked.metrics is not None
    if is_asked or plan.evaluation.metrics != METRICS[0] or are_seen_by_rouge(judged):
        return plan
    metrics, why = OTHER_SCRIPT_METRICS
    sources = {"evaluation.metrics": ValueSource(source="derived", why=why)}
    evaluation = plan.evaluation.model_copy(update={"metrics": metrics})
    return plan.model_copy(update={"evaluation": evaluation, "sources": in_order(plan.sources, sources)})


def _check_judged(plan: Plan, judged: Sequence[Example], train: Sequence[Example]) -> None:
    """Check that the held-out rows can be evaluated as the plan says.

    Raises:
        RequestError: they cannot.
    """
    from luthier.ml.evaluation.retrieval import search_task

    check_metrics(plan.evaluation.metrics, judged)
    check_few_shot(plan.evaluation.few_shot, train, judged)
    if (head := plan.objective.task_head) is not None and _searches(plan):
        search_task(head.kind, judged, train)


def _searches(plan: Plan) -> bool:
    head = plan.objective.task_head
    return head is not None and head.kind in SEARCH_KINDS


def _with_bar(plan: Plan, judged: Sequence[Example], train: Sequence[Example]) -> Plan:
    """The plan with what the tuned model has to reach, where the recipe requires something.

    Raises:
        RequestError: The metric is not measured, or its figure cannot be the value.
        RecipeError: There are no rows to judge on.
    """
    asked = plan.recipe.evaluation.good_enough if plan.recipe.evaluation is not None else None
    if asked is None:
        return plan
    if not judged:
        raise RecipeError(
            f"evaluation.good_enough requires {asked.wanted}, but the recipe names no held-out rows",
            expected="data.held_out: a file, or a fraction such as 0.1 to take from the training rows",
            do="add data.held_out, or remove evaluation.good_enough",
        )
    file = Path(plan.data.held_out.file) if plan.data.held_out is not None else None
    bar = resolve_bar(asked, plan.evaluation.metrics, judged, train, file=file)
    evaluation = plan.evaluation.model_copy(update={"good_enough": bar})
    return plan.model_copy(update={"evaluation": evaluation})


def _with_prompts(plan: Plan, judged: Sequence[Example], train: Sequence[Example], num_shown: int) -> Plan:
    """The plan with the ways to prompt the base model that are evaluated next to the tuned one.

    Raises:
        RequestError, RecipeError: the request cannot be evaluated by these rows and metrics.
    """
    from luthier.core.evaluation_plan import EvaluationRecipe
    from luthier.ml.planning.prompt_variants import with_prompt_variants
    from luthier.ml.prompting.instructions import derive_instruction

    return with_prompt_variants(
        plan,
        plan.recipe.evaluation or EvaluationRecipe(),
        # A model that searches documents writes no answers: nothing to prompt its base for.
        are_texts_judged=bool(judged) and have_text_answers(judged) and not _searches(plan),
        num_shown=num_shown,
        instruction=derive_instruction(train),
    )


def _with_reflection(context: Context, plan: Plan) -> Plan:
    """The plan with the size of the model that writes new instructions, if there is one.

    Raises:
        RequestError, NotFoundError, ConflictError: There is no such model, or it writes no text.
    """
    from luthier.features.generation.engines import check_writes
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.prompt_variants import in_order

    name = plan.evaluation.reflection_model
    if name is None:
        return plan
    found = check_writes(context, name, "evaluation.optimised_prompt.reflection_model")
    num = 0 if found is None else read_structure(found.model_path).num_parameters
    why = "a server has it, and how long it takes is not known" if found is None else f"as the weights of {name} say"
    sources = {"evaluation.reflection_parameters": ValueSource(source="derived", why=why)}
    evaluation = plan.evaluation.model_copy(update={"reflection_parameters": num})
    return plan.model_copy(update={"evaluation": evaluation, "sources": in_order(plan.sources, sources)})


def _with_labels(plan: Plan, judged: Sequence[Example], train: Sequence[Example]) -> Plan:
    """The plan with the number of labels whose likelihoods are computed, where answers are labels."""
    from luthier.ml.evaluation.label_confidence import trained_labels, why_left_out
    from luthier.ml.planning.prompt_variants import in_order

    held_out = plan.data.held_out
    found = () if _searches(plan) else label_metrics(plan.evaluation.metrics, judged, train)
    if held_out is None or not found:
        return plan
    answers = [row.reference for row in train if row.reference is not None]
    labels = trained_labels([name for one in found for name in one.labelling.labels], answers)
    num_rows = min(len(judged), plan.evaluation.max_samples)
    num_tokens = held_out.num_tokens * num_rows // max(1, held_out.num_examples)
    why = why_left_out(labels, num_rows, num_tokens, has_thoughts=any(row.thought for row in judged))
    sources = {
        "evaluation.num_scored_labels": ValueSource(
            source="derived",
            why=f"off: {why}" if why else f"models that write get the likelihood of each of {len(labels)} labels",
        )
    }
    evaluation = plan.evaluation.model_copy(update={"num_scored_labels": 0 if why else len(labels)})
    return plan.model_copy(update={"evaluation": evaluation, "sources": in_order(plan.sources, sources)})


def _with_reference(context: Context, plan: Plan, judged: Sequence[Example]) -> Plan:
    """The plan, whose reference run, if there is one, can be evaluated on the held-out rows.

    Raises:
        RecipeError: There are no held-out rows, it is not an id of a run, or one of the two models searches documents.
        NotFoundError: No such run, or its base model is missing.
        ConflictError: It has no trained weights.
        LeakageError: It was trained on held-out rows, and the recipe does not allow that.
    """
    from luthier.core.task_head import task_head_in
    from luthier.features.models.resolve import find_candidate
    from luthier.ml.planning.prompt_variants import in_order

    run_id = plan.evaluation.reference_run
    if run_id is None:
        return plan
    if not judged or not is_id(run_id, "run"):
        raise RecipeError(
            f"evaluation.reference_run: {run_id}" + ("" if judged else ", but the recipe names no held-out rows"),
            expected="the id of a run, such as run-20260101-120000-abc123, and held-out rows for both",
            do="correct it (luthier runs list), or add data.held_out" if judged else "add data.held_out",
        )
    found = find_candidate(context, run_id)
    head = task_head_in(found.adapter_path or found.model_path)
    if (head is not None and head.kind in SEARCH_KINDS) != _searches(plan):
        raise RecipeError(
            f"evaluation.reference_run: {run_id}, and only one of it and this run orders documents",
            expected="a run that gives the same kind of answers",
            do="remove it, or name another run",
        )
    caveat = reference_caveat(context, run_id, judged, is_allowed=bool(plan.recipe.data.allow_leakage))
    said = ValueSource(source="asked", why="in the recipe" + (f"; {caveat}" if caveat else ""))
    return plan.model_copy(update={"sources": in_order(plan.sources, {"evaluation.reference_run": said})})


def reference_caveat(context: Context, run_id: str, judged: Sequence[Example], *, is_allowed: bool) -> str:
    """What makes the figures of a reference run on these rows doubtful; empty for nothing.

    Args:
        context: The home.
        run_id: Of the run.
        judged: The held-out rows.
        is_allowed: Whether held-out rows may be among those that it was trained on.

    Raises:
        LeakageError: They are, and it is not allowed.
    """
    from luthier.ml.data.split.split import leaked_ids

    try:
        leaked = leaked_ids(rows_of_run(context, run_id), judged).exact
    except ConflictError as error:
        return f"held-out rows cannot be checked against its training rows: {error.came}"
    if leaked and not is_allowed:
        raise LeakageError(
            f"{len(leaked):,} of {len(judged):,} held-out rows are also in the training rows of {run_id}",
            expected="no held-out row that evaluation.reference_run was trained on: its figures would be too good",
            do="take them out of the held-out file, or set data.allow_leakage: true (the evaluation will note it)",
            problems=leaked,
        )
    rows = "held-out row is" if len(leaked) == 1 else "held-out rows are"
    return f"{len(leaked):,} {rows} also in its training rows, so its figures are too good" if leaked else ""


def rows_of_run(context: Context, run_id: str) -> Sequence[Example]:
    """The rows that a run was trained on.

    Raises:
        NotFoundError: No such run.
        ConflictError: Their file is missing or has changed.
    """
    plan = context.runs.plan(run_id)
    if plan.data.stream is not None:
        return _streamed_rows(context, plan, run_id)
    path = Path(plan.data.train.file)
    if plan.data.sources:
        path = _train_file(context, plan, run_id)
    # Without these rows a check for leakage would pass for lack of evidence.
    if not path.is_file() or sha256_file(path) != plan.data.train.sha256:
        raise ConflictError(
            f"the training file {path} of run {run_id} is missing or has changed",
            expected=f"content with digest {plan.data.train.sha256[:12]}: held-out rows are checked against it",
            do="restore the file",
        )
    return training_examples(context, recipe_of(plan), rows_memory(context), plan.data.sources)


def sample_of_run(context: Context, run_id: str) -> Sequence[Example]:
    """The rows that a run was trained on; of a streamed one the first, which need not all be read once more.

    Raises:
        NotFoundError: No such run.
        ConflictError: They are missing or have changed.
    """
    plan = context.runs.plan(run_id)
    if plan.data.stream is None:
        return rows_of_run(context, run_id)
    return _stream_of(context, plan, run_id, rows_memory(context)).examples


def _streamed_rows(context: Context, plan: Plan, run_id: str) -> Sequence[Example]:
    """All rows of the stream of a run, read once more as a whole; those beyond the memory are in files."""
    spill = rows_memory(context)
    stream = _stream_of(context, plan, run_id, spill).stream
    assert stream is not None
    try:
        return stream.all_examples(spill, context.progress)
    except (RequestError, DataSourceError) as error:
        raise _not_again(run_id, error) from error


def _stream_of(context: Context, plan: Plan, run_id: str, spill: Spill) -> Part:
    """The training rows of a streamed run, of which the first are read.

    Raises:
        ConflictError: The sources cannot be read any more, or have changed.
    """
    try:
        train = load_splits(context, recipe_of(plan), Path(), spill, plan.data.sources)["train"]
    except (RequestError, DataSourceError) as error:
        raise _not_again(run_id, error) from error
    if train.source.sha256 != plan.data.train.sha256:
        raise ConflictError(
            f"the streamed training rows of run {run_id} have changed",
            expected=f"sources with digest {plan.data.train.sha256[:12]}: held-out rows are checked against them",
            do="restore the sources",
        )
    return train


def _not_again(run_id: str, error: LuthierError) -> ConflictError:
    return ConflictError(
        f"the training rows of run {run_id} cannot be read again: {error.came}",
        expected="its sources as they were: held-out rows are checked against them",
        do="restore the source",
    )


def _train_file(context: Context, plan: Plan, run_id: str) -> Path:
    """The training rows of a run with sources in the cache of this home; they are made again where it lacks them.

    The plan names the cache of the machine that planned the run.
    """
    try:
        found = located(context, recipe_of(plan), Path(), rows_memory(context), plan.data.sources).recipe.data.train
    except (RequestError, DataSourceError) as error:
        raise _not_again(run_id, error) from error
    assert isinstance(found, str)
    return Path(found)


def training_examples(
    context: Context, recipe: Recipe, spill: Spill | None = None, before: Sequence[SourcePlan] = ()
) -> Sequence[Example]:
    """The training rows of a recipe with absolute paths, read again and split as they were for training.

    Args:
        context: The home.
        recipe: Of the run.
        spill: The budget of memory, and where rows beyond it go; None keeps all of them in memory.
        before: Sources of the plan of the run, whose files are read.
    """
    loaded = load_splits(context, recipe, Path(), spill, before)
    return chained(*(part.examples for split, part in loaded.items() if split in ("train", "replay")))
