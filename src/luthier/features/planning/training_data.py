"""The rows of a recipe: read, split, checked and tokenised.

Recipes that differ in nothing that rows depend on, as the trials of a study do, share what was made of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import DatasetProfile, Example, Split, TokenisedExample, profile_tokens
from luthier.core.digest import sha256_document
from luthier.core.opted_turns import OptedTurns
from luthier.core.recipe import Recipe
from luthier.features.planning.memorisation_probes import refuse_cut_canaries
from luthier.features.planning.split_files import Part, load_splits
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.data.tokenise.loss_mask import Learning, Tokenised
    from luthier.ml.inference.models.chat_template import ChatTemplate

_NOT_OF_ROWS: Final[dict[str, bool | set[str]]] = {
    "method": True,
    "budget": True,
    "evaluation": True,
    "training": {
        "learning_rate", "epochs", "global_batch_size", "schedule", "warmup_fraction", "weight_decay", "num_threads",
        "validate_every_steps", "early_stopping_patience",
    },
}  # fmt: skip
"""What rows do not depend on. All else may change them: what is missing here only costs that they are read again."""
_MAX_KEPT: Final = 4


@dataclass(frozen=True)
class PreparedSplit:
    """One split, ready: the examples that are left and their tokens, in the same order, then those of canaries.

    Attributes:
        profile: Counts and digests of the rows.
        examples: Those that were not dropped.
        tokenised: The rows of all examples one after another: one of each, or chosen and rejected of preference pairs.
        rows_per_unit: How many of them the objective looks at side by side.
        blocks: Where texts are packed, the pieces of each block; `tokenised` then holds these.
        row_counts: Rows of each example, where the template needs one for each answer of a conversation; else empty.
    """

    profile: DatasetProfile
    examples: tuple[Example, ...]
    tokenised: tuple[TokenisedExample, ...]
    rows_per_unit: int = 1
    blocks: tuple[tuple[TokenisedExample, ...], ...] | None = None
    row_counts: tuple[int, ...] = ()

    @cached_property
    def units(self) -> list[tuple[TokenisedExample, ...]]:
        """The rows that an objective looks at side by side; KTO takes the two sides of a pair one by one."""
        if self.blocks is not None:
            return list(self.blocks)
        if self.row_counts:
            # Rows lie one after another: the running sums are where each example ends.
            ends = list(accumulate(self.row_counts))
            return [self.tokenised[end - num : end] for end, num in zip(ends, self.row_counts, strict=True)]
        size = self.rows_per_unit
        return [self.tokenised[i : i + size] for i in range(0, len(self.tokenised), size)]

    @cached_property
    def good_examples(self) -> tuple[Example, ...]:
        """Those that show an answer as it should be: all but completions that are marked as not wanted."""
        return tuple(example for example in self.examples if example.is_wanted is not False)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Base model, template and rows of a recipe. room_tokens: of a held-out row."""

    model: LocalModel
    template: ChatTemplate
    splits: dict[Split, PreparedSplit]
    room_tokens: int


class TrainingDataLoader:
    """Prepared rows, cached for the next recipe that needs the same. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[str, TrainingData] = {}

    def of(self, context: Context, recipe: Recipe, base_dir: Path) -> TrainingData:
        """The rows of a recipe; files that changed since they were read are not read again.

        Raises:
            NotFoundError, ModelSourceError: No such model or file, or one that cannot be fetched.
            RecipeError: Names of matrices or template options that the model does not have.
            DataError: Wrong rows. OverlongError: rows over the length.
            TemplateError: A loss mask cannot be proved.
        """
        from luthier.ml.planning import resolve

        document = recipe.model_dump(mode="json", exclude=_NOT_OF_ROWS)
        # what a method puts before each row takes room from it
        # Measured from a limit that no row reaches: the number depends on the method alone, so the key needs no model.
        asked = {"recipe": document, "base_dir": str(base_dir), "room": resolve.room_tokens(recipe, _FAR)}
        key = sha256_document(asked)
        if key not in self._kept:
            # Dicts keep their order of insertion, so the first keys are the oldest. Deleted before the new rows are
            # made: both together could exceed memory.
            for oldest in list(self._kept)[: len(self._kept) + 1 - _MAX_KEPT]:
                del self._kept[oldest]
            self._kept[key] = _made(context, recipe, base_dir)
        return self._kept[key]


_FAR: Final = 1 << 40


def _made(context: Context, recipe: Recipe, base_dir: Path) -> TrainingData:
    from luthier.features.recipes.checks import check_modules, check_template_options
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import resolve

    parts = load_splits(recipe, base_dir)  # before a model is fetched: a wrong column is found here
    model = sources.pull(recipe.base_model, context.home, context.progress)
    if recipe.method is not None and recipe.method.targets is not None:
        check_modules(recipe, read_structure(model.path))
    template = ChatTemplate.load(model.path, recipe.data.template or "auto", options=recipe.data.template_options)
    check_template_options(recipe, template)
    max_length = resolve.max_length_tokens(recipe, model.context_length_tokens)
    room = resolve.room_tokens(recipe, model.context_length_tokens)
    splits = {
        split: tokenise(context, split, part, template, recipe, max_length, room) for split, part in parts.items()
    }
    return TrainingData(model, template, splits, room)


def tokenise(
    context: Context,
    split: Split,
    part: Part,
    template: ChatTemplate,
    recipe: Recipe,
    max_length_tokens: int,
    room_tokens: int,
) -> PreparedSplit:
    """Tokens and profile of one split.

    Held-out rows are judged, not trained, so they may fill the whole context; they are never truncated, since a cut
    answer cannot be compared: where the recipe says truncate, a held-out row over the context is dropped and counted.
    """
    from luthier.ml.data.tokenise.tokenised_cache import TokenisedCache
    from luthier.ml.inference.opted_turns import rewritten_examples
    from luthier.ml.planning import resolve
    from luthier.ml.planning.resolve_objective import check_shape
    from luthier.ml.training.objectives.rules import rules_of

    if resolve.fills_blocks(recipe):
        check_shape(recipe.objective, part.source.shape)
        return _packed(context, split, part, template, room_tokens if "held_out" in split else max_length_tokens)
    overlong = (recipe.training.overlong if recipe.training else None) or "error"
    if split in ("held_out", "replay_held_out"):
        max_length_tokens = room_tokens
        overlong = "drop" if overlong == "truncate" else overlong
    opted = OptedTurns.of(recipe.data)
    part = replace(
        part,
        examples=rewritten_examples(opted, part.examples, template),
        planted=rewritten_examples(opted, part.planted, template),
    )
    cache = TokenisedCache(context.settings.tokenised_folder, context.settings.tokenised_cache_bytes)
    made: Tokenised = cache.tokenise_all(
        [*part.examples, *part.planted],
        template,
        max_length_tokens=max_length_tokens,
        overlong=overlong,
        progress=context.progress,
        learning=_learning(recipe, split),
    )
    refuse_cut_canaries(made)
    rows_per_unit = made.rows_per_example
    if split != "held_out":
        rows_per_unit = rules_of(recipe.objective.name if recipe.objective else "sft").rows_per_unit
    counts: dict[str, Any] = profile_tokens(made.examples, rows_per_example=rows_per_unit, row_counts=made.row_counts)
    profile = DatasetProfile(
        split=split,
        file=str(part.path),
        sha256=part.source.sha256,
        shape=part.source.shape,
        shape_reason=part.source.shape_reason,
        num_rows=len(part.examples),
        num_dropped=len(made.dropped_ids),
        dropped_ids=made.dropped_ids,
        num_truncated=len(made.truncated_ids),
        truncated_ids=made.truncated_ids,
        **counts,
    )
    # The mark travels with the row: the loss of task and of replayed rows is reported apart.
    tokenised = tuple(replace(e, is_replayed=True) for e in made.examples) if split == "replay" else made.examples
    # canaries are trained on and counted in tokens and steps; they are no rows of the file, and no example to be shown
    kept = tuple(part.examples[i] for i in made.kept if i < len(part.examples))
    return PreparedSplit(profile, kept, tokenised, rows_per_unit, row_counts=made.row_counts)


def _learning(recipe: Recipe, split: Split) -> Learning:
    """What is learned beside the answers. What draws answers of its own needs the prompts of inference, and no more."""
    from luthier.ml.data.tokenise.loss_mask import Learning
    from luthier.ml.training.objectives.rules import rules_of

    objective = rules_of(recipe.objective.name if recipe.objective else "sft")
    if split != "held_out" and "num_samples" in objective.settings:
        return Learning(reasoning=True, only_last=True)
    # what judges is scored behind the prompts of inference, however training joins its answers
    joins = recipe.data.reset_template is not None and split not in ("held_out", "replay_held_out")
    return Learning(reasoning=recipe.data.learn_reasoning, joins=joins)


def _packed(context: Context, split: Split, part: Part, template: ChatTemplate, block_tokens: int) -> PreparedSplit:
    """Texts of any length in blocks: the counts are of blocks, the examples are the texts as they came."""
    from luthier.ml.data.tokenise.packing import pack_texts

    packed = pack_texts([*part.examples, *part.planted], template, block_tokens, context.progress)
    num_blocks = len(packed.blocks)
    counts: dict[str, Any] = profile_tokens(packed.rows)
    counts |= {"num_examples": num_blocks, "mean_tokens": counts["num_tokens"] / num_blocks}
    profile = DatasetProfile(
        split=split,
        file=str(part.path),
        sha256=part.source.sha256,
        shape=part.source.shape,
        shape_reason=part.source.shape_reason,
        num_rows=len(part.examples),
        num_dropped=0,
        packed=packed.profile,
        **counts,
    )
    blocks = packed.blocks
    if split == "replay":
        blocks = tuple(tuple(replace(piece, is_replayed=True) for piece in block) for block in blocks)
    rows = tuple(piece for block in blocks for piece in block)
    return PreparedSplit(profile, tuple(part.examples), rows, blocks=blocks)
