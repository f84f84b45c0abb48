"""The request of a model comparison, and its conversion to a specification: rows, sizes, a recipe for each model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from luthier.core.dataset import Example
from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.evaluation_plan import MetricName
from luthier.core.plan import Plan
from luthier.core.recipe import BudgetRecipe, DataRecipe, MethodRecipe, Recipe, TrainingRecipe
from luthier.core.records.base_model import LocalModel
from luthier.core.registry import METHODS
from luthier.core.run import RunRecord
from luthier.core.system.files import replace_text
from luthier.core.workflows.pipeline import Contender, ModelComparisonSpec
from luthier.features.planning.service import Prepared, prepare
from luthier.features.workflows.model_comparison.answers import Rows, labelled_rows, read_rows_of, write_chosen
from luthier.features.workflows.model_comparison.sizes import Pace, Sizes, choose_sizes, paces_of
from luthier.platform.home.context import Context

_METRICS: Final[tuple[MetricName, ...]] = ("rouge", "exact_match", "bits_per_byte")
_OTHER_SCRIPT_METRICS: Final[tuple[MetricName, ...]] = ("chrf", "exact_match", "bits_per_byte")
"""Of answers that ROUGE does not see."""
_LIKELIHOOD: Final[tuple[MetricName, ...]] = ("bits_per_byte",)
_NOT_COMPARABLE: Final = "perplexity"


@dataclass(frozen=True, slots=True)
class ModelComparisonRequest:
    """The request.

    Attributes:
        models: Names of base models.
        data: Rows to train on.
        held_out: Rows to judge by.
        hours: For everything.
        mapping: Field of the shape to field of the files.
        group_by: The field of the files whose equal values count together; None takes the document that rows name.
        metric: The figure that decides; None takes it by `evaluate.verdict.primary_metric`.
        few_shot: Examples in a prompt.
        instruction: Before the prompts of models that are not tuned, as a person would explain the task; empty: none;
            None: one that is derived from the training rows where these hold none.
        max_new_tokens: Of an answer.
        most_judged: Rows to judge at most.
        method: The method that tunes each.
        seed: Of training and sampling.
        is_probed: Whether a few real steps are trained with each model before sizes are chosen.
        is_instruction_derived: Whether the instruction was not given; set by `read_all`.
    """

    models: tuple[str, ...]
    data: Path
    held_out: Path
    hours: float
    mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    metric: str | None = None
    few_shot: int = NUM_SHOTS
    instruction: str | None = None
    max_new_tokens: int = NEW_TOKENS
    most_judged: int = NUM_JUDGED
    method: str = "lora"
    seed: int = 0
    is_probed: bool = True
    is_instruction_derived: bool = False

    def recipe(self, model: str, file: Path, epochs: float = 1.0) -> Recipe:
        """The recipe of a candidate for a file of rows."""
        return recipe_of(model, str(file), mapping=self.mapping, method=self.method, seed=self.seed, epochs=epochs)


def recipe_of(
    model: str,
    file: str,
    *,
    mapping: Mapping[str, str] | None,
    method: str,
    seed: int,
    epochs: float = 1.0,
    budget: BudgetRecipe | None = None,
) -> Recipe:
    """The recipe of a candidate; the plan of the model decides open values.

    Args:
        model: The base model.
        file: The file of training rows.
        mapping: Field of the shape -> column.
        method: The method of training.
        seed: Of the training.
        epochs: Passes over the rows.
        budget: What the training may cost; None for no limit.
    """
    return Recipe(
        base_model=model,
        data=DataRecipe(train=file, map=dict(mapping) if mapping else None),
        method=MethodRecipe(name=method),
        training=TrainingRecipe(epochs=epochs, overlong="error", seed=seed),
        budget=budget,
    )


def check(request: ModelComparisonRequest) -> None:
    """Raise RequestError for an invalid budget, no models, a model named twice, or an unknown method."""
    # Infinity would pass a plain comparison, but cannot be divided.
    if not (math.isfinite(request.hours) and request.hours > 0):
        raise RequestError(
            f"--budget-hours {request.hours}",
            expected="a finite number above 0",
            do="write for example: --budget-hours 1",
        )
    if not request.models or len(set(request.models)) < len(request.models):
        raise RequestError(
            f"models {', '.join(request.models) or '(none)'}",
            expected="at least one base model, each named once",
            do="write for example: --models smollm2-135m-instruct,gemma3-270m",
        )
    if not METHODS.is_known(request.method):
        raise RequestError(
            f"--method {request.method}", expected=f"one of {', '.join(METHODS.names())}", do="correct it"
        )


def read_all(
    context: Context, request: ModelComparisonRequest, models: Sequence[LocalModel]
) -> tuple[ModelComparisonRequest, Rows]:
    """The request with its instruction, and the rows that all contenders can hold.

    Without an instruction a base model cannot know that one of five labels is expected, so any tuned one looks good.

    Args:
        context: of the home.
        request: what is compared; without an instruction one is derived from the rows.
        models: that are compared.

    Raises:
        NotFoundError: no such file.
        DataError: rows are wrong, or none fits into the contexts of all models.
        LeakageError: held-out rows are among the training rows.
        RequestError: the rows are of a kind without comparable answers.
    """
    from luthier.ml.prompting.instructions import derive_instruction

    def read(instruction: str) -> Rows:
        files = (request.data, request.held_out)
        return read_rows_of(context, models, *files, mapping=request.mapping, instruction=instruction)

    rows = read(request.instruction or "")
    if request.instruction is not None:
        return request, rows
    derived = derive_instruction(rows.train)
    if derived is None or derived.needs_examples:
        return replace(request, instruction=""), rows
    # Read again: a row may fit into a context alone and not with the instruction.
    return replace(request, instruction=derived.text, is_instruction_derived=True), read(derived.text)


def pull_all(context: Context, names: Sequence[str]) -> list[LocalModel]:
    """Fetch all models. An unknown name is rejected before any known model is fetched.

    Raises:
        NotFoundError: There is no such model.
        ModelSourceError: A model could not be fetched, was damaged, or cannot be used.
        TemplateError: A chat template cannot end a turn.
        StorageFullError: The disk has no room.
        RequestError: Two models have the same weights.
    """
    from luthier.ml.inference.models import catalog as model_names
    from luthier.ml.inference.models import sources

    for name in names:
        # All names first: a typo in the last one must not be found after gigabytes were fetched.
        model_names.parse(name)
    found = [sources.pull(name, context.home, context.progress) for name in names]
    for place, model in enumerate(found):
        for other in found[:place]:
            # The same weights under two names would compete with themselves.
            if other.sha256 == model.sha256:
                raise RequestError(
                    f"{model.name} and {other.name} have the same weights",
                    expected="different models",
                    do="leave one of them out",
                )
    return found


def sized(
    context: Context,
    request: ModelComparisonRequest,
    models: Sequence[LocalModel],
    rows: Rows,
    train_file: Path,
    began: float,
) -> ModelComparisonSpec:
    """The specification, with sizes that fit into the budget; writes the used rows.

    Args:
        context: The home.
        request: The checked request.
        models: The candidates, on this machine.
        rows: The rows that fit into the context of all of them.
        train_file: Path for the training rows; the evaluated ones go into the same folder.
        began: Start of the work, by `time.perf_counter`.

    Raises:
        RequestError: A candidate does not fit into memory, or a metric does not suit the rows.
        ModelComparisonTooSmallError: The hours are below the minimum.
    """
    figures = _metrics(request, rows.held_out)
    # First all rows, to measure the speed; the chosen ones replace them in `_spec`.
    write_chosen(request.data, rows.train, train_file)
    labels = _labels(models)
    num_shots = _num_shots(request.few_shot, rows.train, rows.held_out)
    labelled = labelled_rows(*figures, rows.held_out, rows.train)
    paces = paces_of(context, request, models, labels, rows, train_file, num_shots, labelled)
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
    request: ModelComparisonRequest,
    models: Sequence[LocalModel],
    rows: Rows,
    paces: Sequence[Pace],
    sizes: Sizes,
    train_file: Path,
    figures: tuple[tuple[MetricName, ...], str],
) -> ModelComparisonSpec:
    """The stored specification; also writes the used rows. figures: all metrics, and the deciding one."""
    judged_file = train_file.with_name("judged.jsonl")
    chosen = _write_rows(request, rows, sizes, train_file, judged_file)
    # More examples than rows means several epochs.
    epochs = max(1.0, sizes.num_examples / len(rows.train))
    recipes = [request.recipe(model.name, train_file, epochs) for model in models]
    # Prepared again with the chosen size: steps and tokens depend on it.
    plans = [prepare(context, recipe, base_dir=Path()) for recipe in recipes]
    for number, prepared in enumerate(plans):
        # Each is trained by this plan, also where a version with other defaults continues with the comparison.
        replace_text(plan_file(train_file.parent, number), prepared.plan.model_dump_json())
    share = sizes.num_examples / len(rows.train)
    return ModelComparisonSpec(
        contenders=tuple(
            _contender(model, prepared, pace, share) for model, prepared, pace in zip(models, plans, paces, strict=True)
        ),
        data=str(request.data.absolute()),
        held_out=str(request.held_out.absolute()),
        train_file=str(train_file),
        judged_file=str(judged_file),
        map=dict(request.mapping) if request.mapping else None,
        group_by=request.group_by,
        num_rows=len(chosen),
        num_rows_in_file=rows.num_train,
        num_examples=sizes.num_examples,
        num_judged=sizes.num_judged,
        num_held_out=rows.num_held_out,
        num_too_long=rows.num_too_long,
        few_shot=_num_shots(request.few_shot, chosen, rows.held_out),
        instruction=request.instruction or "",
        metrics=figures[0],
        primary=figures[1],
        max_new_tokens=request.max_new_tokens,
        method=request.method,
        seed=request.seed,
        hours=request.hours,
        sizing_hours=0.0,
        planned_hours=sizes.planned,
        usd_per_hour=_usd_per_hour(plans[0]),
        cautions=_cautions(request, rows, paces),
    )


def plan_file(folder: Path, number: int) -> Path:
    """The plan of a contender's training, in the folder of the comparison; versions up to 0.1.0 have stored none."""
    return folder / f"plan-{number}.json"


def train_contender(
    context: Context, spec: ModelComparisonSpec, folder: Path, number: int, *, run_id: str, budget: BudgetRecipe
) -> RunRecord:
    """Train a contender by the plan that was made with the comparison, whatever the defaults are by now.

    Args:
        context: The home.
        spec: Of the comparison.
        folder: Of the comparison.
        number: Of the contender.
        run_id: Of the run.
        budget: What it may take.

    Raises:
        ConflictError: The model or the rows are not those of the plan.
        DivergedError: The loss or a gradient is not a number.
        BudgetTooSmallError: The budget does not hold it.
    """
    from luthier.features.planning.budgets import with_budget
    from luthier.features.planning.service import prepare_again
    from luthier.features.training import service as training

    began, path = time.perf_counter(), plan_file(folder, number)
    if not path.is_file():
        recipe = recipe_of(
            spec.contenders[number].model,
            spec.train_file,
            mapping=spec.map,
            method=spec.method,
            seed=spec.seed,
            epochs=spec.epochs,
            budget=budget,
        )
        return training.train(context, recipe, base_dir=Path("/"), run_id=run_id).record
    prepared = prepare_again(context, Plan.model_validate_json(path.read_bytes()))
    prepared = replace(prepared, plan=with_budget(context, prepared.plan, budget, None))
    return training.train_prepared(context, prepared, began=began, run_id=run_id).record


def _labels(models: Sequence[LocalModel]) -> list[str]:
    """The last part of a path; the whole name otherwise, or if two would have the same label."""
    short = [Path(model.name).name if model.source in ("folder", "gguf") else model.name for model in models]
    return short if len(set(short)) == len(short) else [model.name for model in models]


def family_of(metric: str) -> MetricName:
    """The metric that measures a figure: rouge for rouge_1.

    Raises:
        RequestError: It cannot be compared between models.
        NotFoundError: No metric measures it.
    """
    from luthier.ml.evaluation.metrics.registry import FAMILIES, load_metrics

    if metric == _NOT_COMPARABLE:
        raise RequestError(
            "--metric perplexity: it counts tokens, and each model tokenises differently",
            expected="a figure that means the same for every model",
            do="use bits_per_byte, which measures the same per byte of text",
        )
    of_families = {figure: name for name, figures in FAMILIES.items() for figure in figures}
    family = of_families.get(metric, metric)
    load_metrics([family])  # lists the known ones for an unknown metric
    return family


def _metrics(request: ModelComparisonRequest, held_out: Sequence[Example]) -> tuple[tuple[MetricName, ...], str]:
    from luthier.features.recipes.checks import are_seen_by_rouge, check_metrics, have_text_answers
    from luthier.ml.evaluation.metrics.registry import FAMILIES
    from luthier.ml.evaluation.verdict import primary_metric

    # Plain text has no answer to compare with.
    usual = _LIKELIHOOD
    if have_text_answers(held_out):
        usual = _METRICS if are_seen_by_rouge(held_out) else _OTHER_SCRIPT_METRICS
    if request.metric is None:
        return usual, primary_metric(usual, [example.reference for example in held_out])
    # A metric may give several figures (rouge gives rouge_1, rouge_2, rouge_l): all are measured, one figure decides.
    asked = family_of(request.metric)
    metrics = tuple(dict.fromkeys((*usual, asked)))
    check_metrics(metrics, held_out)
    if request.metric in FAMILIES.get(asked, (asked,)):
        return metrics, request.metric
    return metrics, primary_metric((asked,), [example.reference for example in held_out])


def _num_shots(most: int, train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """The requested number, limited by the rows; none for plain text."""
    from luthier.ml.evaluation.few_shot import num_usable

    if any(example.text is not None for example in train):
        return 0
    return min(most, num_usable(train, held_out=held_out))


def _write_rows(
    request: ModelComparisonRequest, rows: Rows, sizes: Sizes, train_file: Path, judged_file: Path
) -> Sequence[Example]:
    """Select the training rows. Those of a smaller size are a subset of those of a larger one."""
    from luthier.ml.data.rows.rows import part_of
    from luthier.ml.evaluation.sampling import choose_samples

    write_chosen(request.held_out, choose_samples(rows.held_out, sizes.num_judged), judged_file)
    if sizes.num_examples >= len(rows.train):
        return rows.train
    # Parts that start at 0 are nested: a smaller budget trains on a subset of the rows of a larger one.
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


def _cautions(request: ModelComparisonRequest, rows: Rows, paces: Sequence[Pace]) -> tuple[str, ...]:
    found = []
    if request.is_instruction_derived:
        found.append(
            "The rows hold no instruction and none was given; models that are not tuned were prompted with one that is "
            f'derived from the training rows: "{request.instruction}"'
        )
    if rows.num_too_long:
        found.append(
            f"{rows.num_too_long:,} rows do not fit into the context of every contender; they were left out for all"
        )
    if rows.num_same_prompt:
        found.append(
            f"{rows.num_same_prompt:,} held-out rows have a prompt that is also among the training rows, with "
            "another answer"
        )
    if unprobed := [pace.label for pace in paces if not pace.is_probed]:
        found.append(
            f"How long trainings take was predicted without a real step of {' and '.join(unprobed)} on this machine"
        )
    return tuple(f"{text}." for text in found)
