"""The bar of an evaluation: what was asked for, or what the recipe of the judged run asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.evaluation_plan import Bar
from luthier.core.evaluation_recipe import GoodEnoughRecipe, MetricName
from luthier.core.ids import is_id
from luthier.features.recipes.checks import agreed_rows, resolve_bar
from luthier.platform.home.context import Context


def bar_of(
    context: Context,
    asked: GoodEnoughRecipe | None,
    candidate: str,
    metrics: Sequence[MetricName],
    examples: Sequence[Example],
    train: Sequence[Example],
    file: Path,
) -> tuple[Bar | None, tuple[str, ...]]:
    """What the candidate has to reach, and a note where the bar of its run does not fit these rows.

    file: of the judged rows.

    Raises:
        RequestError: what is asked for itself cannot be held against.
    """
    if asked is not None or not is_id(candidate, "run"):
        return resolve_bar(asked, metrics, examples, train, file=file), ()
    own = context.runs.plan(candidate).evaluation.good_enough
    if own is None:
        return None, ()
    wanted = {"value": own.value} if own.agreement is None else {"agreement": own.agreement}
    again = GoodEnoughRecipe.model_validate({"metric": own.metric, **wanted})
    try:
        return resolve_bar(again, metrics, examples, train, file=file), ()
    except RequestError as error:
        # Nobody asked for it here: rows that have no place for it are judged all the same.
        return None, (_not_held_against(own, error.came),)


def on_judged_rows(
    bar: Bar | None, file: Path | None, examples: Sequence[Example]
) -> tuple[Bar | None, Mapping[str, bool]]:
    """A bar of agreement on the judged rows alone, and on which of them two people agree; another bar as it is.

    Args:
        bar: Of all held-out rows.
        file: They were read from.
        examples: The judged ones.
    """
    from luthier.ml.evaluation.verdict import bar_of_agreement

    if bar is None or bar.agreement is None:
        return bar, {}
    agreed = agreed_rows(bar.metric, bar.agreement, examples, file)
    # Without any of them the verdict says so.
    return (bar_of_agreement(bar.metric, bar.agreement, agreed) if agreed else bar), agreed


def _not_held_against(bar: Bar, why: str) -> str:
    return f"The bar of the run, {bar.value:g} by {bar.metric}, was not held against: {why}."


def comparable_bar(
    bar: Bar | None, num_systems: int, judged: str, is_asked: bool
) -> tuple[Bar | None, tuple[str, ...]]:
    """The bar where there is a verdict; None with a note where there is none, RequestError if it was asked for."""
    if bar is None or num_systems > 1:
        return bar, ()
    if not is_asked:
        return None, (_not_held_against(bar, "there is nothing to compare with, so no verdict"),)
    raise RequestError(
        f"{bar.value:g} by {bar.metric} asked for, and nothing to compare {judged} with",
        expected="another system on the same rows: whether a model is good enough is a part of the verdict",
        do="name one, such as the base model: --against BASE",
    )
