"""Use case: which base model, and whether to tune it at all? Several are asked, shown examples and tuned alike.

begin      rows that all can hold; a few asked and a few steps trained with each; sizes that the budget holds
prompting  each contender without and with examples in its prompt
tuning     each on the same examples, in the same order, at the learning rate of its own plan
tuned      each tuned one asked
comparing  all systems paired over the rows; a recommendation; a page
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.aliases import command_of
from luthier.core.cost import Estimate
from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.core.recipe import MetricName
from luthier.core.records.base_model import LocalModel
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.core.workflows.showdown import Contender, ShowdownResult, ShowdownSpec
from luthier.features.planning.service import Prepared, prepare
from luthier.features.workflows.model_comparison.request import ShowdownRequest, check
from luthier.features.workflows.model_comparison.rows import Rows, read_rows_of, write_chosen
from luthier.features.workflows.model_comparison.sizes import Pace, Sizes, choose_sizes
from luthier.features.workflows.model_comparison.stages import folder_of, stage_names, works
from luthier.features.workflows.model_comparison.throughput import paces_of
from luthier.features.workflows.service import Tell, run_pipeline
from luthier.platform.home.context import Context

_METRICS: Final[tuple[MetricName, ...]] = ("rouge", "exact_match", "bits_per_byte")
_LIKELIHOOD: Final[tuple[MetricName, ...]] = ("bits_per_byte",)
_NOT_COMPARABLE: Final = "perplexity"


def begin(
    context: Context, request: ShowdownRequest, *, project_id: str = DEFAULT_PROJECT, showdown_id: str | None = None
) -> Pipeline:
    """Check all that is asked, find the sizes, and write the showdown down; trains and judges no more than a few rows.

    showdown_id: what it is called; by default a new id.

    Raises NotFoundError (model, file), RequestError (the same model twice, rows that cannot be compared, a metric that
    they do not have, a model that does not fit into memory), DataError, LeakageError, BudgetTooSmallError.
    """
    began = time.perf_counter()
    check(request)
    models = pull_all(context, request.models)
    rows = read_rows_of(
        context,
        models,
        request.data,
        request.held_out,
        mapping=request.mapping,
        instruction=request.instruction,
    )
    showdown_id = showdown_id or new_id("showdown")
    folder = folder_of(context, showdown_id)
    try:
        spec = _sized(context, request, models, rows, folder / "train.jsonl", began)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing stays of one that is refused
        raise
    stages = tuple(Stage(name=name) for name in stage_names(spec))
    asked = spec.model_dump(mode="json")
    pipeline = Pipeline(pipeline_id=showdown_id, kind="showdown", asked=asked, stages=stages)
    return context.pipelines.create(pipeline, project_id)


def _sized(
    context: Context,
    request: ShowdownRequest,
    models: Sequence[LocalModel],
    rows: Rows,
    train_file: Path,
    began: float,
) -> ShowdownSpec:
    """What is written down, with the sizes that the budget holds. began: by `time.perf_counter`."""
    figures = _metrics(request, rows.held_out)
    write_chosen(request.data, rows.train, train_file)
    labels = _labels(models)
    num_shots = _num_shots(request.few_shot, rows.train, rows.held_out)
    paces = paces_of(context, request, models, labels, rows, train_file, num_shots)
    sizes = choose_sizes(
        paces,
        num_rows=len(rows.train),
        num_held_out=len(rows.held_out),
        most_judged=request.most_judged,
        hours=request.hours,
        spent_hours=(time.perf_counter() - began) / 3600,
    )
    spec = _spec(context, request, models, rows, paces, sizes, train_file, figures)
    return spec.model_copy(update={"sizing_hours": (time.perf_counter() - began) / 3600})


def _spec(
    context: Context,
    request: ShowdownRequest,
    models: Sequence[LocalModel],
    rows: Rows,
    paces: Sequence[Pace],
    sizes: Sizes,
    train_file: Path,
    figures: tuple[tuple[MetricName, ...], str],
) -> ShowdownSpec:
    """What is written down; the rows that are used are written, too. figures: all, and the one that decides."""
    judged_file = train_file.with_name("judged.jsonl")
    chosen = _write_rows(request, rows, sizes, train_file, judged_file)
    epochs = max(1.0, sizes.num_examples / len(rows.train))
    recipes = [request.recipe(model.name, train_file, epochs) for model in models]
    plans = [prepare(context, recipe, base_dir=Path()) for recipe in recipes]
    share = sizes.num_examples / len(rows.train)
    return ShowdownSpec(
        contenders=tuple(
            _contender(model, prepared, pace, share) for model, prepared, pace in zip(models, plans, paces, strict=True)
        ),
        data=str(request.data.absolute()),
        held_out=str(request.held_out.absolute()),
        train_file=str(train_file),
        judged_file=str(judged_file),
        map=dict(request.mapping) if request.mapping else None,
        num_rows=len(chosen),
        num_rows_in_file=rows.num_train,
        num_examples=sizes.num_examples,
        num_judged=sizes.num_judged,
        num_held_out=rows.num_held_out,
        num_too_long=rows.num_too_long,
        few_shot=_num_shots(request.few_shot, chosen, rows.held_out),
        instruction=request.instruction,
        metrics=figures[0],
        primary=figures[1],
        max_new_tokens=request.max_new_tokens,
        method=request.method,
        seed=request.seed,
        hours=request.hours,
        sizing_hours=0.0,
        planned_hours=sizes.planned,
        usd_per_hour=_usd_per_hour(plans[0]),
        cautions=_cautions(rows, paces),
    )


def go_on(
    context: Context,
    showdown_id: str,
    *,
    tell: Tell = lambda _pipeline, _stage: None,
    project_id: str = DEFAULT_PROJECT,
) -> ShowdownResult:
    """Do all that is left of a showdown, and return its result; of one that is done, the same result.

    Raises NotFoundError, ConflictError (another process works on it), PausedError (SIGTERM or SIGINT; all that
    was done is kept), and what judging and training raise.
    """
    pipeline = context.pipelines.get(showdown_id, project_id)
    if pipeline.kind != "showdown":
        raise RequestError(
            f"{showdown_id} is of kind {pipeline.kind}",
            expected="the id of a showdown",
            do=f"go on with it by: luthier {command_of(pipeline.kind)} --resume {showdown_id}",
        )
    work, begun = works(context, pipeline, project_id)
    run_pipeline(context, showdown_id, work, begun=begun, tell=tell)
    return context.assessments.get("showdown", ShowdownResult, project_id, showdown_id)


def pull_all(context: Context, names: Sequence[str]) -> list[LocalModel]:
    """All models, on this machine. A name that nobody knows is told before one that is known is fetched.

    Raises NotFoundError, ModelSourceError, RequestError for two that have the same weights.
    """
    from luthier.ml.inference.models import names as model_names
    from luthier.ml.inference.models import sources

    for name in names:
        model_names.parse(name)
    found = [sources.pull(name, context.home, context.progress) for name in names]
    for place, model in enumerate(found):
        for other in found[:place]:
            if other.sha256 == model.sha256:
                raise RequestError(
                    f"{model.name} and {other.name} have the same weights",
                    expected="different models",
                    do="leave one of them out",
                )
    return found


def _labels(models: Sequence[LocalModel]) -> list[str]:
    """The last part of a path, the whole name elsewhere, or where two would be called the same."""
    short = [Path(model.name).name if model.source in ("folder", "gguf") else model.name for model in models]
    return short if len(set(short)) == len(short) else [model.name for model in models]


def _metrics(request: ShowdownRequest, held_out: Sequence[Example]) -> tuple[tuple[MetricName, ...], str]:
    from luthier.features.recipes.evaluation_checks import check_metrics, have_text_answers
    from luthier.ml.evaluation.metrics.registry import FAMILIES
    from luthier.ml.evaluation.verdict import primary_metric

    usual = _METRICS if have_text_answers(held_out) else _LIKELIHOOD
    if request.metric is None:
        return usual, primary_metric(usual, [example.reference for example in held_out])
    if request.metric == _NOT_COMPARABLE:
        raise RequestError(
            "--metric perplexity: it counts tokens, which each model cuts otherwise",
            expected="a figure that means the same for every model",
            do="take bits_per_byte, which says the same of the text itself",
        )
    of_families = {figure: name for name, figures in FAMILIES.items() for figure in figures}
    asked = of_families.get(request.metric, request.metric)
    metrics = tuple(dict.fromkeys((*usual, asked)))
    check_metrics(metrics, held_out)  # names the known ones for a metric that there is not
    if request.metric in FAMILIES.get(asked, (asked,)):
        return metrics, request.metric
    return metrics, primary_metric((asked,), [example.reference for example in held_out])


def _num_shots(most: int, train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """As many as were asked for, as far as the rows have them; plain text has no place for any."""
    from luthier.ml.evaluation.few_shot import num_usable

    if any(example.text is not None for example in train):
        return 0
    return min(most, num_usable(train, held_out=held_out))


def _write_rows(
    request: ShowdownRequest, rows: Rows, sizes: Sizes, train_file: Path, judged_file: Path
) -> Sequence[Example]:
    """Keep what is used; the rows to train on. Those of a smaller size are among those of a larger one."""
    from luthier.features.evaluations.service import choose_samples
    from luthier.ml.data.rows.part import part_of

    write_chosen(request.held_out, choose_samples(rows.held_out, sizes.num_judged), judged_file)
    if sizes.num_examples >= len(rows.train):
        return rows.train
    chosen = part_of(rows.train, (0.0, sizes.num_examples / len(rows.train)))
    write_chosen(request.data, chosen, train_file)
    return chosen


def _contender(model: LocalModel, prepared: Prepared, pace: Pace, share: float) -> Contender:
    plan = prepared.plan
    bytes_each = 4 if plan.training.precision == "float32" else 2
    return Contender(
        label=pace.label,
        model=model.name,
        licence=model.licence,
        num_parameters=model.num_parameters,
        context_length_tokens=model.context_length_tokens,
        vocabulary_size=model.vocabulary_size,
        has_chat_template=model.has_chat_template,
        weights_bytes=model.num_parameters * bytes_each,
        learning_rate=plan.training.learning_rate,
        batch_size=plan.training.global_batch_size,
        num_steps=plan.training.num_steps,
        num_tokens=plan.data.train.num_tokens,
        training_hours=pace.training.times(share),
        judging_seconds=pace.judging,
        loading_seconds=pace.loading_seconds,
    )


def _usd_per_hour(prepared: Prepared) -> Estimate | None:
    budget = prepared.plan.budget
    return None if budget is None else budget.usd_per_hour


def _cautions(rows: Rows, paces: Sequence[Pace]) -> tuple[str, ...]:
    found = []
    if rows.num_too_long:
        found.append(
            f"{rows.num_too_long:,} rows do not fit into the context of every contender; they were left out for all"
        )
    if rows.num_same_prompt:
        found.append(
            f"{rows.num_same_prompt:,} held-out rows have a prompt that also stands among the training rows, with "
            "another answer"
        )
    if unprobed := [pace.label for pace in paces if not pace.is_probed]:
        found.append(
            f"How long trainings take was predicted without a real step of {' and '.join(unprobed)} on this machine"
        )
    return tuple(f"{text}." for text in found)
