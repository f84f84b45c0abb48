"""Rows that a recipe adds to its own: memorisation probes, and general rows that it replays against forgetting.

Memorisation probes (canaries) are made-up secrets, planted among the training rows and searched for after training. Of
the general rows some are trained on, and others measure forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, Shape, Split
from luthier.core.errors import LeakageError, RecipeError
from luthier.core.plan import CanariesPlan, Plan, ReplayPlan
from luthier.core.recipe import Recipe
from luthier.core.records.canary import ROW_FILE, Canary, digest_of, make_canaries
from luthier.core.text.counted import counted
from luthier.features.planning.data_sources import LocatedRows
from luthier.ml.data.files.sequences import chained, selected

if TYPE_CHECKING:
    from luthier.features.planning.training_data import PreparedSplit
    from luthier.ml.data.files.spill import Spill
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.data.tokenise.tokenised_rows import Tokenised

_ROWS_A_CANARY: Final = 10


def planted(recipe: Recipe, shape: Shape, num_rows: int) -> tuple[Example, ...]:
    """The canaries of a recipe as examples of the same kind as its rows; none where it requests none.

    Args:
        recipe: The recipe with the canaries.
        shape: Of the training rows.
        num_rows: Training rows with them.

    Raises:
        RecipeError: More than one canary for ten rows, or rows or objectives that do not learn answers as they are.
    """
    asked = recipe.data.canaries
    if asked is None:
        return ()
    objective = recipe.objective
    if shape in ("preference", "unpaired") or (objective is not None and objective.rewards is not None):
        raise RecipeError(
            f"data.canaries with {shape} rows and objective {objective.name if objective else 'sft'}",
            expected="an objective that learns the answers of its rows as they are, such as sft or pretraining",
            do="remove data.canaries",
        )
    if asked.num * _ROWS_A_CANARY > num_rows:
        raise RecipeError(
            f"data.canaries {asked.num:,} among {counted(num_rows, 'training row')}",
            expected=f"at most one for {_ROWS_A_CANARY} rows ({num_rows // _ROWS_A_CANARY:,} here): with more of them "
            "the model would learn lockers instead of your task",
            do="lower data.canaries, or remove it",
        )
    return tuple(_example(canary, shape) for canary in make_canaries(asked.num, asked.seed))


def canaries_plan(recipe: Recipe) -> CanariesPlan | None:
    """What a plan says of them."""
    asked = recipe.data.canaries
    if asked is None:
        return None
    return CanariesPlan(num=asked.num, seed=asked.seed, sha256=digest_of(make_canaries(asked.num, asked.seed)))


def canaries_of(plan: Plan) -> tuple[Canary, ...]:
    """The canaries that a run was trained on."""
    found = plan.data.canaries
    return () if found is None else make_canaries(found.num, found.seed)


def refuse_cut_canaries(made: Tokenised) -> None:
    """Raises RecipeError where a canary was dropped or cut as too long: nothing could be measured by it."""
    lost = [row for row in (*made.dropped_ids, *made.truncated_ids) if row.startswith(f"{ROW_FILE}:")]
    if lost:
        raise RecipeError(
            f"{len(lost):,} canaries do not fit into training.max_length_tokens",
            expected="room for a row of about 40 tokens",
            do="raise training.max_length_tokens, or remove data.canaries",
        )


def _example(canary: Canary, shape: Shape) -> Example:
    if shape == "text":
        return Example(id=canary.id, text=canary.text)
    turns = (Message(role="user", content=canary.question), Message(role="assistant", content=canary.secret))
    return Example(id=canary.id, conversation=Conversation(messages=turns))


def split_seed(recipe: Recipe) -> int:
    """The seed of what is taken out as a fraction, of the rows of the task and of the general ones.

    `data.split_seed` where it is given, so that trials of another training seed judge on the same rows; else the
    training's.
    """
    if recipe.data.split_seed is not None:
        return recipe.data.split_seed
    return recipe.training.seed if recipe.training and recipe.training.seed is not None else 0


ReplayPart = tuple["LoadedFile", Path, Sequence[Example]]


def load_replay(rows: LocatedRows, base_dir: Path, spill: Spill | None = None) -> dict[Split, ReplayPart]:
    """Read the general rows that a recipe names: `replay` is trained on, `replay_held_out` never; none where not asked.

    Raises:
        RecipeError: A replay that neither trains nor measures anything, or rows that nothing would judge.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.split.own_groups import own_group_of_file
    from luthier.ml.data.split.split import split_by_fraction
    from luthier.ml.planning import defaults
    from luthier.ml.planning.resolve_objective import check_shape

    recipe = rows.recipe
    asked = recipe.data.replay
    if asked is None:
        return {}
    fraction = defaults.REPLAY_FRACTION[0] if asked.fraction is None else asked.fraction
    held_out = asked.held_out
    if held_out is not None and recipe.data.held_out is None:
        raise RecipeError(
            f"data.replay.held_out is {held_out}, but the recipe names no held-out rows of the task",
            expected="data.held_out, since what is forgotten is measured when the run is evaluated",
            do="add data.held_out, or remove data.replay.held_out",
        )
    if held_out is None and recipe.data.held_out is not None:
        held_out = defaults.REPLAY_HELD_OUT[0]
    if not fraction and held_out is None:
        raise RecipeError(
            "data.replay with fraction 0 and nothing held out",
            expected="rows to train on, or rows to measure what is forgotten",
            do="set data.replay.fraction above 0, or add data.held_out",
        )
    path = base_dir / asked.file
    mapping, group_by = rows.mapping("replay.file"), None
    if isinstance(held_out, float):
        group_by = own_group_of_file(path, mapping, held_out=held_out, seed=split_seed(recipe))
    loaded = load_file(path, mapping=mapping, group_by=group_by, spill=spill)
    check_shape(recipe.objective, loaded.shape)
    general: Sequence[Example] = loaded.examples
    found: dict[Split, ReplayPart] = {}
    if isinstance(held_out, str):
        own = base_dir / held_out
        judged = load_file(own, mapping=rows.mapping("replay.held_out"), spill=spill)
        check_shape(recipe.objective, judged.shape)
        found["replay_held_out"] = (judged, own, _that_should_stay(judged.examples, own))
    elif held_out is not None:
        # Split before anything is replayed, so that no general row both trains and measures.
        parts = split_by_fraction(
            general,
            validation=0.0,
            held_out=held_out,
            seed=split_seed(recipe),
            joins_equal=group_by is not None,
        )
        general = parts["train"]
        found["replay_held_out"] = (loaded, path, _that_should_stay(parts["held_out"], path))
    if fraction:
        found["replay"] = (loaded, path, general)
    return found


def _that_should_stay(examples: Sequence[Example], path: Path) -> Sequence[Example]:
    """The general rows that forgetting is measured on: of answers that are marked the good ones.

    That bad ones become less likely is what the objective is for.

    Raises:
        RecipeError: None is good.
    """
    bad = [number for number, example in enumerate(examples) if example.is_wanted is False]
    if not bad:
        return examples
    if len(bad) == len(examples):
        raise RecipeError(
            f"all {len(bad):,} general rows of {path} that are held out are answers marked as bad",
            expected="some that are marked as good: what is forgotten is measured on those",
            do="add such rows, or raise data.replay.held_out",
        )
    import numpy as np

    return selected(examples, np.delete(np.arange(len(examples)), bad))


def replay_plan(recipe: Recipe, splits: Mapping[Split, PreparedSplit]) -> ReplayPlan | None:
    """What a plan says of the general rows.

    Raises:
        LeakageError: Rows that measure what is forgotten are trained on, unless that is allowed.
        RecipeError: A share that leaves a step no row of the task.
    """
    from luthier.ml.data.split.split import leaked_ids
    from luthier.ml.planning.batch_shapes import num_replayed_per_step

    if recipe.data.replay is None:
        return None
    train, rows, held_out = splits["train"], splits.get("replay"), splits.get("replay_held_out")
    general = rows.examples if rows is not None else ()
    num_leaked = 0
    if held_out is not None:
        leakage = leaked_ids(chained(train.examples, general), held_out.examples).exact
        if leakage and not recipe.data.allow_leakage:
            raise LeakageError(
                f"{len(leakage):,} of {len(held_out.examples):,} held-out general rows are also in rows that are "
                "trained on",
                expected="general rows that training never sees, to measure what is forgotten",
                do="take them out of one of the two files, or set data.allow_leakage: true (the report will note it)",
                problems=leakage,
            )
        num_leaked = len(leakage)
    num, size = num_replayed_per_step(recipe)
    return ReplayPlan(
        num_per_step=num,
        fraction=num / size,
        rows=rows.profile if rows is not None else None,
        held_out=held_out.profile if held_out is not None else None,
        num_leaked=num_leaked,
        num_also_in_train=len(leaked_ids(train.examples, general).exact),
    )
