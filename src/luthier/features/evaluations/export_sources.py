"""Sources of exports (successful runs and base models), and examples for verifying an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.conversation import OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataError, NotFoundError
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.records.export import ExportSource
from luthier.core.task_head import TaskHeadKind, task_head_in
from luthier.features.models.names import find_model
from luthier.features.models.trained_over import refuse_other_base
from luthier.features.recipes.checks import ColumnMap, map_that_fits
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.plan import Plan
    from luthier.core.run import RunRecord, TrainResult

_MAX_CHARACTERS = 2000


def find_source(context: Context, name: str) -> ExportSource:
    """The model that a run or a job of the API (`ft:...`) has trained, also by a deployment, or a base model.

    Raises:
        ConflictError: The run has not succeeded, its files or its base model have changed, or the name is a checkpoint.
        NotFoundError: The run, its files or its base model do not exist.
    """
    found = find_model(context, name, takes_exports=False)
    if found.tuned is not None and found.is_checkpoint:
        raise ConflictError(
            f"{name} is what the model was after step {found.tuned.step}",
            expected="the model that the job has ended with",
            do=f"export that one: {name.partition(':ckpt-step-')[0]}",
        )
    if found.run_id is not None:
        return _of_run(context, found.run_id)
    from luthier.ml.inference.models import sources
    from luthier.platform.home.hardware_benchmark import hardware_of

    model = sources.pull(found.name, context.home, context.progress)
    return ExportSource(
        name=model.name,
        run_id=None,
        base_name=model.name,
        base_path=model.path,
        base_sha256=model.sha256,
        base_licence=model.licence,
        # A base model has no plan that defines its precision.
        precision=hardware_of(context).precision,
        task_head=_head_of(Path(model.path)),
    )


def _of_run(context: Context, run_id: str) -> ExportSource:
    record, plan = context.runs.get(run_id), context.runs.plan(run_id)
    result = _finished(record)
    folder = _whole_outcome(run_id, result)
    # PEFT writes this file for every adapter; a full fine-tune has its own config.json.
    is_adapter = (folder / "adapter_config.json").is_file()
    base_path, licence = _base(context, plan, is_needed=is_adapter)
    return ExportSource(
        name=run_id,
        run_id=run_id,
        base_name=plan.base_model.name,
        base_path=base_path if is_adapter else str(folder),
        base_sha256=plan.base_model.sha256,
        base_licence=licence,
        adapter_path=str(folder) if is_adapter else None,
        adapter_sha256=result.adapter_sha256,
        method=plan.method.name,
        template=plan.base_model.template,
        precision=plan.training.precision,
        # A full fine-tune has its own weights, regardless of the packing of its base.
        quantisation=plan.method.quantisation if is_adapter else None,
        template_options=plan.data.template_options,
        opted_turns=OptedTurns.of(plan.data),
        trained_tokens=_trained_tokens(plan),
        task_head=_head_of(folder),
    )


def _trained_tokens(plan: Plan) -> int:
    """Tokens of the longest rows of training; those of prompts with the longest answers where the model writes them."""
    objective = plan.objective
    answers = (objective.max_new_tokens or 0) if objective.draws else 0
    return min(plan.data.train.max_tokens + answers, plan.base_model.context_length_tokens)


def _head_of(folder: Path) -> TaskHeadKind | None:
    head = task_head_in(folder)
    return None if head is None else head.kind


def _finished(record: RunRecord) -> TrainResult:
    if record.status == "succeeded" and record.result is not None and record.result.adapter_path is not None:
        return record.result
    why = f": {record.stopped_because}" if record.stopped_because else ""
    if record.status == "failed":
        raise ConflictError(
            f"run {record.run_id} has failed{why}",
            expected="a run that has succeeded: the files of a failed one are not usable",
            do=f"see it with `luthier runs show {record.run_id}`, correct the recipe and train again",
        )
    raise ConflictError(
        f"run {record.run_id} is {record.status}, at step {record.step} of {record.num_steps}{why}",
        expected="a run that has succeeded",
        do=f"resume it: luthier train --resume {record.run_id}",
    )


def _whole_outcome(run_id: str, result: TrainResult) -> Path:
    folder = Path(str(result.adapter_path))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise NotFoundError(
            f"the trained weights of run {run_id} are no longer in {folder}",
            expected="the folder that the run has written",
            do="train it again, or copy the home of the machine where it was trained",
        )
    digest = outcome_digest(weights)
    if digest != result.adapter_sha256:
        raise ConflictError(
            f"the weights in {folder} are not those of run {run_id}: digest {digest[:12]}",
            expected=f"digest {str(result.adapter_sha256)[:12]}, as when the run has ended",
            do="put the files of the run back, or train it again",
        )
    return folder


def outcome_digest(weights: Sequence[Path]) -> str:
    """The digest of a run's weights, as in its result.

    Args:
        weights: Its files, at least one, in order.
    """
    digests = {file.name: sha256_file(file) for file in weights}
    # One file: its own digest, as other tools show it. Shards: the digest of the names with their digests.
    return digests[weights[0].name] if len(digests) == 1 else sha256_document(digests)


def _base(context: Context, plan: Plan, *, is_needed: bool) -> tuple[str, str | None]:
    """Path and licence of the base model; if only the licence is needed, the model need not exist."""
    from luthier.ml.inference.models import sources

    if not is_needed:
        local = {model.name: model for model in sources.local_models(context.home)}
        found = local.get(plan.base_model.name)
        return plan.base_model.path, found.licence if found else None
    model = sources.pull(plan.base_model.name, context.home, context.progress)
    refuse_other_base(plan.base_model.sha256, model)
    return model.path, model.licence


def proof_examples(
    context: Context, source: ExportSource, file: Path | None, num: int
) -> tuple[tuple[Example, ...], list[str]]:
    """At most `num` examples for verifying an export, chosen by a hash of their content, and notes about them.

    They come from the given file, otherwise from the held-out or validation rows of the run, otherwise they are
    built-in prompts.

    Raises:
        NotFoundError: No such file.
        DataError: The file cannot be read.
    """
    from luthier.ml.evaluation.sampling import choose_samples
    from luthier.ml.export.source_side import built_in_examples

    warnings: list[str] = []
    rows: Sequence[Example] = ()
    if file is not None or source.run_id is not None:
        rows, warnings = _rows(context, source, file)
    # Rows with only prompts have no tokens to compare likelihoods on.
    usable = [_shortened(example) for example in rows if example.text is not None or example.reference is not None]
    if not usable:
        usable = list(built_in_examples())
    return choose_samples(usable, num), warnings


def _rows(context: Context, source: ExportSource, file: Path | None) -> tuple[Sequence[Example], list[str]]:
    from luthier.features.planning.data_sources import recipe_of
    from luthier.features.planning.training_data import load_splits
    from luthier.ml.data.rows.formats import load_file

    plan = None if source.run_id is None else context.runs.plan(source.run_id)
    recipe = None if plan is None else recipe_of(plan)
    if file is not None:
        own = recipe.data.map if recipe else None
        columns = map_that_fits(own, file, "the column map of the run") if own else ColumnMap(None)
        return load_file(file, mapping=columns.mapping).examples, [columns.note] if columns.note else []
    assert plan is not None
    assert recipe is not None
    try:
        splits = load_splits(context, recipe, Path(), before=plan.data.sources)
    except (NotFoundError, ConflictError, DataError) as error:
        return (), [f"proved on built-in prompts, since the rows of the run cannot be read: {error.came}"]
    for split in ("held_out", "validation"):
        if split in splits:
            return splits[split].examples, []
    return (), []


def _shortened(example: Example) -> Example:
    """A long text truncated: verification needs only some tokens, and the text may exceed the context."""
    if example.text is None or len(example.text) <= _MAX_CHARACTERS:
        return example
    return example.model_copy(update={"text": example.text[:_MAX_CHARACTERS]})
