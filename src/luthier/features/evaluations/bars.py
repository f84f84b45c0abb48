"""The bar of an evaluation: the requested one, or that of the evaluated run's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.evaluation_plan import Bar, GoodEnoughRecipe, MetricName
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
    """The bar for the candidate, and a note if the bar of its run does not fit these rows.

    Args:
        context: of the home.
        asked: the requested bar; None takes that of the candidate's run.
        candidate: its name.
        metrics: that are evaluated.
        examples: the evaluated rows.
        train: the rows that were trained on, if they are known.
        file: of the evaluated rows.

    Raises:
        RequestError: the requested bar cannot be applied.
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
        # Not requested explicitly: rows for which it does not apply are evaluated anyway.
        return None, (_not_held_against(own, error.came),)


def on_judged_rows(
    bar: Bar | None, file: Path | None, examples: Sequence[Example], canonical: Callable[[str], str] | None
) -> tuple[Bar | None, Mapping[str, bool]]:
    """A bar of agreement on the evaluated rows, and on which of them two people agree; other bars unchanged.

    Args:
        bar: Of all held-out rows.
        file: They were read from.
        examples: The evaluated ones.
        canonical: As for `agreed_rows`: people are compared as models are.
    """
    from luthier.ml.evaluation.verdict import bar_of_agreement

    if bar is None or bar.agreement is None:
        return bar, {}
    agreed = agreed_rows(bar.metric, bar.agreement, examples, file, canonical)
    # The verdict reports if there are none.
    return (bar_of_agreement(bar.metric, bar.agreement, agreed) if agreed else bar), agreed


def _not_held_against(bar: Bar, why: str) -> str:
    return f"The bar of the run, {bar.value:g} by {bar.metric}, was not applied: {why}."


def comparable_bar(
    bar: Bar | None, num_systems: int, judged: str, is_asked: bool
) -> tuple[Bar | None, tuple[str, ...]]:
    """The bar if there is a verdict; otherwise None with a note.

    Args:
        bar: what the last system has to reach; None for nothing.
        num_systems: that are compared; one alone has no verdict.
        judged: name of the last system.
        is_asked: whether the bar was requested for this evaluation.

    Raises:
        RequestError: it was requested, and there is nothing to compare with.
    """
    if bar is None or num_systems > 1:
        return bar, ()
    if not is_asked:
        return None, (_not_held_against(bar, "there is nothing to compare with, so no verdict"),)
    raise RequestError(
        f"{bar.value:g} by {bar.metric} required, and nothing to compare {judged} with",
        expected="another system on the same rows: whether a model is good enough is a part of the verdict",
        do="name one, such as the base model: --against BASE",
    )
