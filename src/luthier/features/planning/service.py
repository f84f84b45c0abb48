"""From a recipe to everything a run needs: model on disk, rows read, split, checked and tokenised, plan complete.

The plan describes the splits as they were read, rows that two of them share, and the proved split that the files belong
to. Files are matched with a proof by their digests, never by their names: a split made by the command line has its
`split.json` next to its files, one made by a server is kept in the database with the versions of the datasets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.data_sources import SourcePlan
from luthier.core.dataset import (
    DatasetProfile,
    Judging,
    Split,
    SplitProvenance,
    TokenisedExample,
    provenance_from,
)
from luthier.core.errors import ConflictError, DataError, LeakageError
from luthier.core.plan import DataPlan, Plan
from luthier.core.recipe import Recipe, TrainingRecipe
from luthier.features.planning.added_rows import canaries_plan, replay_plan
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.evaluation_plan import with_judging
from luthier.features.planning.task_heads import with_known_classes
from luthier.features.planning.training_data import (
    PreparedSplit,
    TrainingDataLoader,
    load_splits,
    rows_memory,
    tokenise,
)
from luthier.features.recipes.checks import are_pairs, check_names, have_text_answers
from luthier.ml.data.files.sequences import chained
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def data_plan(recipe: Recipe, splits: dict[Split, PreparedSplit], template_day: str | None = None) -> DataPlan:
    """The data part of the plan.

    Args:
        recipe: The request.
        splits: The rows of each split.
        template_day: That the rows were written on, of a template that writes the date.

    Raises:
        LeakageError: Held-out rows in the training rows, unless that is allowed.
    """
    from luthier.ml.data.split.split import leaked_ids

    train, validation, held_out = splits["train"], splits.get("validation"), splits.get("held_out")
    # Replayed rows are trained on, too, so held-out rows must not be among them either.
    seen = chained(train.examples, splits["replay"].examples if "replay" in splits else ())
    num_leaked = num_same_prompt = num_validation_leaked = 0
    if held_out is not None:
        leakage = leaked_ids(seen, held_out.examples)
        if leakage.exact and not recipe.data.allow_leakage:
            raise LeakageError(
                f"{len(leakage.exact):,} of {len(held_out.examples):,} held-out rows "
                f"{'is' if len(leakage.exact) == 1 else 'are'} also in the training rows",
                expected="no held-out row among the training rows: the model would be evaluated on what it has seen",
                do="remove them from one of the two files, or set data.allow_leakage: true (the verdict will note it)",
                problems=leakage.exact,
            )
        num_leaked, num_same_prompt = len(leakage.exact), len(leakage.same_prompt)
    if validation is not None:
        num_validation_leaked = len(leaked_ids(seen, validation.examples).exact)
    return DataPlan(
        train=train.profile,
        validation=validation.profile if validation else None,
        held_out=held_out.profile if held_out else None,
        num_leaked=num_leaked,
        num_same_prompt=num_same_prompt,
        num_validation_leaked=num_validation_leaked,
        part=recipe.data.part,
        replay=replay_plan(recipe, splits),
        canaries=canaries_plan(recipe),
        template_options=recipe.data.template_options or {},
        template_day=template_day,
        learn_reasoning=recipe.data.learn_reasoning,
        reset_template=recipe.data.reset_template,
        reasoning=recipe.data.reasoning,
        system=recipe.data.system,
        tools=recipe.data.tools,
        sources=tuple(source for name in _NAMES if name in splits for source in splits[name].sources),
        stream=train.stream.plan if train.stream is not None else None,
    )


_SUMMARY: Final = "split.json"
_MAX_SUMMARY_BYTES: Final = 16 << 20


def with_provenance(context: Context, data: DataPlan) -> DataPlan:
    """The data part of a plan with the split that its files are sides of, if any proves one of them."""
    sides: tuple[tuple[Judging, DatasetProfile | None], ...] = (
        ("validation", data.validation),
        ("held_out", data.held_out),
    )
    judging = {name: one.sha256 for name, one in sides if one is not None and one.sha256 != data.train.sha256}
    found: list[SplitProvenance] = []
    for document in _documents(context, data) if judging else ():
        try:
            made = provenance_from(document, data.train.sha256, judging)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a split.json of another program, or one that was edited: it proves nothing
        found += [] if made is None else [made]
    # The proof of the held-out rows matters most: the verdict rests on these.
    best = max(found, key=lambda one: ("held_out" in one.covers, len(one.covers)), default=None)
    return data if best is None else data.model_copy(update={"split": best})


def _documents(context: Context, data: DataPlan) -> Iterator[dict[str, Any]]:
    """The contents of the split.json files that may be about the training file."""
    train = Path(data.train.file)
    beside = train.parent / _SUMMARY
    try:
        # A bound: any file of that name may be there, and it is read into memory whole.
        if beside.is_file() and beside.stat().st_size <= _MAX_SUMMARY_BYTES:
            yield json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # unreadable: it proves nothing
    # Only local copies made by this home can be of its datasets: a plan of others needs no database.
    settings = context.settings
    if any(train.is_relative_to(folder) for folder in (settings.file_cache_folder, settings.jobs_folder)):
        yield from context.datasets.splits_of(data.train.sha256)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe made ready to run."""

    plan: Plan
    model: LocalModel
    template: ChatTemplate
    train: PreparedSplit
    validation: PreparedSplit | None
    held_out: PreparedSplit | None
    replay: PreparedSplit | None = None
    replay_held_out: PreparedSplit | None = None

    @property
    def trained_units(self) -> Sequence[tuple[TokenisedExample, ...]]:
        """All that steps are made of: the units of the task, then replayed ones."""
        return chained(self.train.units, self.replay.units if self.replay else ())


def make_plan(context: Context, recipe: Recipe, *, base_dir: Path, prices: Path | None = None) -> Plan:
    """The complete plan of a recipe. Reads and checks all rows, trains nothing.

    Args:
        context: The home.
        recipe: The request.
        base_dir: From which its relative paths count.
        prices: A file whose entries replace those of the price table.

    Raises:
        RecipeError: Values that cannot go together or do not fit the rows.
        DataError: Wrong rows; OverlongError and LeakageError are kinds of it.
        TemplateError: A loss mask cannot be proved.
        NotFoundError: No such model or file.
        ModelSourceError: The base model cannot be fetched, or its weights do not fit its config.
        RequestError: The rehearsal of the plan fails.
    """
    return prepare(context, recipe, base_dir=base_dir, prices=prices).plan


def with_batch_and_rate(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with the batch size and the learning rate of a plan.

    The defaults of both depend on the number of rows, the objective, the number of processes and the version, so that
    runs which are compared would differ in more than they should.

    Args:
        recipe: The request.
        plan: Of the run that it is compared with.
    """
    training = recipe.training or TrainingRecipe()
    same = {
        "global_batch_size": plan.training.global_batch_size,
        "global_batch_tokens": None,
        "learning_rate": plan.training.learning_rate,
    }
    return recipe.model_copy(update={"training": training.model_copy(update=same)})


def prepare(
    context: Context,
    recipe: Recipe,
    *,
    base_dir: Path,
    prices: Path | None = None,
    data_loader: TrainingDataLoader | None = None,
    before: Sequence[SourcePlan] = (),
    is_again: bool = False,
    num_processes: int = 1,
) -> Prepared:
    """Fetch the base model if need be, read and check the rows, resolve the plan.

    Args: as `make_plan`, and
        data_loader: keeps rows that recipes share; None reads them again.
        before: sources of the plan of a run that is resumed, of which streamed ones keep their files.
        is_again: whether it is of a run that has begun, which keeps what a new recipe is refused for.
        num_processes: that are to train it, and share each step evenly.

    Raises:
        RecipeError, RequestError: values that cannot go together or do not fit the rows.
        DataError: wrong rows. OverlongError: rows over the length.
        LeakageError: held-out rows in the training data. TemplateError: a mask cannot be proved.
        NotFoundError, ModelSourceError: no base model, or one whose weights do not fit its config.
        RequestError: a small copy of the architecture cannot take one step of the plan (`rehearsal`).
    """
    # Both before anything that brings torch: a typo and a wrong row are answered at once. The loader brings it after
    # the rows, by `import_libraries`.
    check_names(recipe, base_dir, before)
    data_loader = data_loader or TrainingDataLoader()
    recipe = recipe if is_again else data_loader.grouped(context, recipe, base_dir, before)
    found = data_loader.of(context, recipe, base_dir, before)
    from luthier.features.planning.judges import beside, check_code, find_judges, with_grading, with_judges
    from luthier.features.planning.objective_inputs import check_drawing, find_teacher
    from luthier.features.planning.remote_judges import find_remote_judges, with_remote_grading, with_remote_judges
    from luthier.features.recipes.template_options import check_switches
    from luthier.ml.evaluation.few_shot import num_usable
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.inference.models.templates.thinking import answer_lengths
    from luthier.ml.planning import resolve
    from luthier.platform.home.hardware_benchmark import hardware_of

    model, template, splits = found.model, found.template, found.splits
    if not is_again:
        check_switches(recipe.data.template_options or {}, template, recipe.base_model)
    structure = read_structure(model.path)
    _refuse_rows(splits, template, structure.vocabulary_size)
    data = with_provenance(context, data_plan(recipe, splits, template.fixed_day))
    judged = splits["held_out"].examples if "held_out" in splits else ()
    shown = splits["train"].good_examples
    num_shown = num_usable(shown, held_out=judged)
    check_code(context, recipe)
    judges, remote = find_judges(context, recipe), find_remote_judges(context, recipe)
    plan = resolve.resolve(
        recipe,
        model=model,
        template=template.kind,
        template_sha256=template.sha256,
        data=data,
        structure=structure,
        hardware=beside(hardware_of(context).shared_by(num_processes), judges),
        has_text_answers=have_text_answers(judged),
        are_pairs=bool(judged) and are_pairs(judged),
        num_shots=num_shown,
        answers=answer_lengths(judged, template) if judged and have_text_answers(judged) else None,
        task_head=None if found.task_head is None else found.task_head.head,
        task_head_notes=() if found.task_head is None else found.task_head.notes,
        teacher=find_teacher(
            context, recipe, template, [split for name, split in splits.items() if "held_out" not in name]
        ),
        num_processes=num_processes,
    )
    plan = with_judging(context, with_remote_judges(with_judges(plan, judges), remote), judged, shown, num_shown)
    drawn = [splits[name] for name in ("train", "validation") if name in splits]
    rewards = check_drawing(plan, drawn, found.room_tokens)
    plan = with_remote_grading(with_grading(plan, rewards), rewards, template)
    plan = _proved(context, plan, recipe, prices)
    others: tuple[Split, ...] = ("validation", "held_out", "replay", "replay_held_out")
    return Prepared(plan, model, template, splits["train"], *(splits.get(name) for name in others))


def _proved(context: Context, plan: Plan, recipe: Recipe, prices: Path | None) -> Plan:
    """The plan, rehearsed on a small copy of the architecture, with its budget and trackers."""
    from luthier.features.planning.budgets import with_budget
    from luthier.features.planning.rehearsal import rehearsed
    from luthier.features.trackers.service import with_tracking

    plan = with_budget(context, rehearsed(context, plan), recipe.budget, prices)
    return with_tracking(context, plan, recipe, os.environ)


def prepare_again(
    context: Context, plan: Plan, *, ready: Prepared | None = None, data_loader: TrainingDataLoader | None = None
) -> Prepared:
    """The data and model of a run again, for a resume.

    Args:
        context: The home.
        plan: Of the run.
        ready: The prepared data, where this process has it already.
        data_loader: As for `prepare`.

    Raises:
        ConflictError: The model, its chat template, the rows, their tokens or the teacher are not those that the run
            began with.
        NotFoundError: A file or the base model is missing.
    """
    from luthier.features.planning.judges import refuse_other_judges
    from luthier.features.planning.objective_inputs import refuse_another_teacher

    # its budget is checked elsewhere: what is left of it counts now, not what it was
    # The stored plan says which trackers it is reported to, whatever is installed or set here.
    recipe = recipe_of(plan).model_copy(update={"budget": None, "tracking": ()})
    if plan.objective.judges is not None and recipe.objective is not None:
        # By the names of their weights: a deployment may route elsewhere by now.
        objective = recipe.objective.model_copy(update={"rewards": plan.objective.rewards})
        recipe = recipe.model_copy(update={"objective": objective})
    if recipe.evaluation is not None:
        # A missing reference run or reflection model does not keep this one from being trained to its end.
        asked = recipe.evaluation.model_copy(update={"reference_run": None, "optimised_prompt": None})
        recipe = recipe.model_copy(update={"evaluation": asked})
    again = ready or prepare(
        context, recipe, base_dir=Path(), data_loader=data_loader, before=plan.data.sources, is_again=True
    )
    # By digests, not by paths or times: a file that was copied back unchanged is the same file.
    _refuse_changed(plan, again.model, again.template, dict(zip(_NAMES, profiles(again.plan.data), strict=True)))
    if plan.objective.teacher is not None:
        refuse_another_teacher(plan.objective.teacher, again.plan.objective.teacher)
    refuse_other_judges(plan.objective.judges or (), again.plan.objective.judges or ())
    if not Path(plan.base_model.path).is_dir():
        # Another machine has begun the run; the model is the same by its digest, in a folder of this one.
        here = plan.base_model.model_copy(update={"path": again.model.path})
        plan = plan.model_copy(update={"base_model": here})
    return replace(again, plan=plan)


def prepare_share(context: Context, plan: Plan) -> Prepared:
    """What a process needs that trains a run together with others: the base model and the rows, none to judge.

    Raises:
        ConflictError: This machine has another model or other rows than the run began with.
        NotFoundError: A file or the base model is not on this machine.
    """
    from luthier.features.planning.judges import check_code
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.planning import resolve

    recipe, spill = recipe_of(plan), rows_memory(context)
    check_code(context, recipe)
    model = sources.pull(recipe.base_model, context.home, context.progress)
    template = ChatTemplate.load(model.path, recipe.data.template or "auto", options=recipe.data.template_options)
    head = plan.objective.task_head
    max_length = resolve.max_length_tokens(recipe, model.context_length_tokens, head)
    parts = load_splits(context, recipe, Path(), spill, plan.data.sources)
    splits = {
        split: tokenise(context, split, part, template, recipe, max_length, max_length, head, spill=spill)
        for split, part in with_known_classes(parts, head).items()
        if split not in ("held_out", "replay_held_out")
    }
    _refuse_changed(plan, model, template, {split: made.profile for split, made in splits.items()})
    # Each node has the model in its own folder; everything else must be equal on all ranks.
    here = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"path": model.path})})
    return Prepared(here, model, template, splits["train"], splits.get("validation"), None, splits.get("replay"))


def _refuse_changed(
    plan: Plan, model: LocalModel, template: ChatTemplate, found: Mapping[Split, DatasetProfile | None]
) -> None:
    """Raise ConflictError where model, template or rows are not those of the plan.

    Args:
        plan: Of the run.
        model: That is here now.
        template: That is here now.
        found: The splits that were read again.
    """
    if model.sha256 != plan.base_model.sha256:
        raise ConflictError(
            f"base model {plan.base_model.name} now has digest {model.sha256[:12]}",
            expected=f"{plan.base_model.sha256[:12]}, as when the run began",
            do="start a new run: resuming would mix two different base models",
        )
    if template.sha256 != plan.base_model.template_sha256:
        raise ConflictError(
            f"the chat template of base model {plan.base_model.name} now has digest {template.sha256[:12]}",
            expected=f"{plan.base_model.template_sha256[:12]}, as when the run began: it decides what is learned",
            do="restore the template in the folder of the model, or start a new run",
        )
    before_by_name = dict(zip(_NAMES, profiles(plan.data), strict=True))
    for split, now in found.items():
        before = before_by_name[split]
        if before is not None and (now is None or now.sha256 != before.sha256):
            raise ConflictError(
                f"{split} file {before.file} has changed since the run began",
                expected=f"content with digest {before.sha256[:12]}",
                do="restore the file, or start a new run",
            )
        # Of a stream the numbers are estimates; rows that evaluate are no part of training.
        if before is None or now is None or "held_out" in split or plan.data.stream is not None:
            continue
        was, is_now = ((one.num_examples, one.num_tokens, one.num_trained_tokens) for one in (before, now))
        if was != is_now:
            raise ConflictError(
                f"{split} file {before.file} is now {_counted(is_now)}",
                expected=f"{_counted(was)}, as when the run began",
                do="restore the tokenizer of the base model and the version of Luthier, or start a new run",
            )


def _counted(numbers: tuple[int, int, int]) -> str:
    examples, tokens, learned = numbers
    return f"{examples:,} examples with {tokens:,} tokens, {learned:,} of them learned"


_NAMES: Final[tuple[Split, ...]] = ("train", "validation", "held_out", "replay", "replay_held_out")


def profiles(data: DataPlan) -> tuple[DatasetProfile | None, ...]:
    """The profile of each split: train, validation, held-out, and the general rows of both kinds."""
    replay = data.replay
    general = (replay.rows, replay.held_out) if replay else (None, None)
    return (data.train, data.validation, data.held_out, *general)


def _refuse_rows(splits: Mapping[Split, PreparedSplit], template: ChatTemplate, vocabulary_size: int) -> None:
    """Rows that no plan could learn from, whatever the recipe says."""
    _refuse_one_kind(splits["train"])
    _refuse_unknown_tokens(splits, template, vocabulary_size)


def _refuse_unknown_tokens(splits: Mapping[Split, PreparedSplit], template: ChatTemplate, vocabulary_size: int) -> None:
    """Tokens that the model has no embedding for: a tokenizer may know more of them than its model."""
    for split, made in splits.items():
        for row in made.tokenised:
            # On a GPU an id without an embedding would end the run with a device assertion that names no row.
            if len(row.input_ids) and (largest := max(row.input_ids)) >= vocabulary_size:
                token = template.tokenizer.convert_ids_to_tokens(largest)
                raise DataError(
                    f"row {row.id} of {split} has token {largest:,} ({token!r}), but the model has embeddings for "
                    f"{vocabulary_size:,} tokens",
                    expected="rows that the tokenizer writes with tokens of the model",
                    do="remove the text of that token from the rows, or use a base model whose tokenizer fits its "
                    "weights",
                )


def _refuse_one_kind(train: PreparedSplit) -> None:
    """Rows that are all desired, or all undesired, teach no difference."""
    kinds = {row.is_wanted for row in train.tokenised}
    if kinds in ({True}, {False}):
        which = f"all {train.profile.num_examples:,}" if train.stream is None else f"the first {len(train.examples):,}"
        raise DataError(
            f"{which} training rows of {train.profile.file} have label {kinds.pop()}",
            expected="desired completions and undesired ones",
            do="add rows of the other label; to learn good answers alone, use objective sft and map "
            "completion=completion",
        )
