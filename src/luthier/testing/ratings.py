"""Answers to be rated, and raters of known habits: for tests of all that people's ratings go through."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from luthier.core.access import Caller
from luthier.core.results.human_eval import Rater, RatingItem, RatingKind, RatingPanel
from luthier.core.results.suite import Criterion
from luthier.features.human_eval import links as rating_links
from luthier.features.human_eval import rating_view
from luthier.features.human_eval.answers import AnsweredRow, AnsweredRows
from luthier.features.human_eval.service import NewPanel, create_panel
from luthier.platform.home.context import Context

Says = Callable[[RatingItem], str | dict[Criterion, int]]
"""What a rater thinks of an item: `a`, `b` or `tie` by its answers' own order, or scores."""
_SENTENCE: Final = "the goods come back within thirty days if the box is whole and the receipt lies beside it"


def answered_rows(
    num_rows: int, systems: Sequence[str] = ("base", "tuned"), *, with_references: bool = True
) -> AnsweredRows:
    """Rows whose answers are all different; the later a system stands, the longer its answers."""
    rows = tuple(
        AnsweredRow(
            row_id=f"rows.jsonl:{number + 1}",
            prompt=f"How do I send order {number} back?",
            messages=(),
            reference=f"Order {number}: {_SENTENCE}" if with_references else "",
            answers={
                name: f"Order {number}: {' '.join(_SENTENCE.split()[: 4 + 2 * place])}"
                for place, name in enumerate(systems)
            },
        )
        for number in range(num_rows)
    )
    return AnsweredRows(tuple(systems), "rows.jsonl", rows)


def make_panel(
    context: Context,
    *,
    kind: RatingKind = "pairwise",
    num_rows: int = 12,
    systems: Sequence[str] = ("base", "tuned"),
    raters: int | Sequence[str] = ("Ada", "Ben", "Cleo"),
    attention: float = 0.2,
    seed: int = 7,
    project_id: str = "default",
) -> NewPanel:
    """A panel of made-up answers, in a project, as the local user makes it."""
    answered = answered_rows(num_rows, systems)
    caller = Caller(project_id=project_id)
    return create_panel(context, caller, answered, kind=kind, raters=raters, attention=attention, seed=seed)


def rate_all(context: Context, made: NewPanel, place: int, says: Says, *, most: int | None = None) -> int:
    """Have a rater rate what is left, in their order, at most so many items; returns how many."""
    found = rating_links.rater_of_token(context, made.links[place].token)
    assert found is not None
    rater, panel = found
    number = 0
    while most is None or number < most:
        view = rating_view.next_item(context, panel, rater)
        if view.item is None:
            break
        say(context, panel, rater, view.item, says(view.item))
        number += 1
    return number


def say(
    context: Context, panel: RatingPanel, rater: Rater, item: RatingItem, thought: str | dict[Criterion, int]
) -> None:
    """Say it as a page would: of a pair by where the answers stand."""
    if isinstance(thought, dict):
        rating_view.keep_scores(context, panel, rater, item.item, thought)
        return
    # Raters think in the item's own order, pages ask for the side on the screen.
    first = rating_view.shown_first(panel, rater.rater_id, item.item)
    choice = "tie" if thought == "tie" else "first" if thought == first else "second"
    rating_view.keep_preference(context, panel, rater, item.item, choice)


def careful(kind: RatingKind, *, better: str = "tuned", noise: float = 0.15, seed: int = 0) -> Says:
    """Reads: passes checks, prefers one system where its answers are the better ones (two rows in three), slips rarely.

    Which rows those are is the same for all careful raters: they agree.
    """

    def says(item: RatingItem) -> str | dict[Criterion, int]:
        drawn = _drawn(seed, item)
        if item.check is not None:
            score = item.check.score or 3
            return item.check.preference or {"relevance": score, "coherence": score, "accuracy": score}
        # Seeded by the row alone: all careful raters agree on it, which gives a known agreement.
        likes_it = random.Random(item.row_id).random() < 2 / 3  # noqa: S311
        slips = drawn.random() < noise
        if kind == "pairwise":
            places = {answer.system: place for answer, place in zip(item.answers, "ab", strict=True)}
            favourite = places.get(better, "a")
            other = "b" if favourite == "a" else "a"
            return favourite if likes_it != slips else other
        good = (item.answers[0].system == better) == likes_it
        level = 4 if good != slips else 2
        return {
            "relevance": level,
            "coherence": min(5, level + drawn.choice((0, 0, 1))),
            "accuracy": max(1, level - drawn.choice((0, 0, 1))),
        }

    return says


def clicking(kind: RatingKind, *, seed: int = 0) -> Says:
    """Reads nothing, and rates at random."""

    def says(item: RatingItem) -> str | dict[Criterion, int]:
        drawn = _drawn(seed, item)
        if kind == "pairwise":
            return drawn.choice(("a", "b", "tie"))
        return {name: drawn.randint(1, 5) for name in ("relevance", "coherence", "accuracy")}

    return says


def _drawn(seed: int, item: RatingItem) -> random.Random:
    """Luck that hangs on the item, not on the order in which a rater sees them."""
    return random.Random(f"{seed} {item.item}")  # noqa: S311 - a habit, not a secret
