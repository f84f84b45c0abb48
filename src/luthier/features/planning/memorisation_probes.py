"""Memorisation probes (canaries): made-up secrets planted among the training rows and searched for after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, Shape
from luthier.core.errors import RecipeError
from luthier.core.plan import CanariesPlan, Plan
from luthier.core.recipe import Recipe
from luthier.core.records.canary import ROW_FILE, Canary, digest_of, make_canaries
from luthier.core.text.counted import counted

if TYPE_CHECKING:
    from luthier.ml.data.tokenise.loss_mask import Tokenised

_ROWS_A_CANARY: Final = 10


def planted(recipe: Recipe, shape: Shape, num_rows: int) -> tuple[Example, ...]:
    """The canaries of a recipe as examples of the same kind as its rows; none where it requests none.

    Args:
        recipe: The recipe with the canaries.
        shape: Of the training rows.
        num_rows: Training rows with them.

    Raises:
        RecipeError: More than one canary for ten rows, or rows or objectives that do not learn answers as they stand.
    """
    asked = recipe.data.canaries
    if asked is None:
        return ()
    objective = recipe.objective
    if shape in ("preference", "unpaired") or (objective is not None and objective.rewards is not None):
        raise RecipeError(
            f"data.canaries with {shape} rows and objective {objective.name if objective else 'sft'}",
            expected="an objective that learns the answers of its rows as they stand, such as sft or pretraining",
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
