"""Use cases: what a rater sees next, what they say of it, and taking it back. Nothing here names a system.

The order of items, and which of two answers comes first, follow from the panel's seed and the rater: they are the same
whenever the rater comes back. Each answer of a pair comes first in half of what a rater sees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from luthier.core.errors import RequestError
from luthier.core.ids import sha256_document
from luthier.core.results.human_eval import (
    MAX_COMMENT_CHARACTERS,
    Preference,
    Rater,
    Rating,
    RatingItem,
    RatingPanel,
)
from luthier.core.results.suite import Criterion
from luthier.features.human_eval.items import has_forgotten_text
from luthier.platform.home.context import Context

MOST_SECONDS: Final = 3600.0
"""A longer time on one item was not spent on it: it is not kept."""


@dataclass(frozen=True, slots=True)
class RatingView:
    """The state of the rating page.

    Attributes:
        panel: The panel.
        rater: Who rates.
        item: The item to rate; None where all are rated.
        shown_first: Which answer is shown first.
        num_rated: Items that this rater has rated.
        num_items: All items.
        shown_at: When the page was made, in seconds since 1970.
    """

    panel: RatingPanel
    rater: Rater
    item: RatingItem | None
    shown_first: Literal["a", "b"]
    num_rated: int
    num_items: int
    shown_at: float

    @property
    def is_begun(self) -> bool:
        """Whether the rater has rated anything."""
        return self.num_rated > 0

    @property
    def shown(self) -> tuple[str, ...]:
        """The texts in the order in which they are on the page."""
        if self.item is None:
            return ()
        texts = tuple(answer.text for answer in self.item.answers)
        return texts[::-1] if self.shown_first == "b" else texts


def order_of(panel: RatingPanel, rater_id: str) -> list[int]:
    """The numbers of the items in the order in which this rater sees them."""
    # A hash as a shuffle: no state to store, and each rater has their own order.
    return sorted(range(panel.num_items), key=lambda item: sha256_document([panel.seed, rater_id, "order", item]))


def shown_first(panel: RatingPanel, rater_id: str, item: int) -> Literal["a", "b"]:
    """Which answer of an item comes first for this rater."""
    if panel.kind == "likert":
        return "a"
    return _first_sides(panel.seed, rater_id, panel.num_items)[item]


# Kept: exports ask for each item of a panel, and the order of all items decides each.
@lru_cache(maxsize=32)
def _first_sides(seed: int, rater_id: str, num_items: int) -> tuple[Literal["a", "b"], ...]:
    # Ranked and split by parity, not one coin an item: exactly half of the items are turned for each rater.
    ranked = sorted(range(num_items), key=lambda one: sha256_document([seed, rater_id, "side", one]))
    sides: list[Literal["a", "b"]] = ["a"] * num_items
    for item in ranked[1::2]:
        sides[item] = "b"
    return tuple(sides)


def next_item(context: Context, panel: RatingPanel, rater: Rater) -> RatingView:
    """The first item, in the rater's order, without a rating; one whose texts were forgotten is left out."""
    rated = {rating.item for rating in context.rating_panels.ratings(panel.panel_id, rater.rater_id)}
    left = (one for one in order_of(panel, rater.rater_id) if one not in rated)
    # One at a time: items may be long, and the first is mostly the one.
    found = (context.rating_panels.item(panel.panel_id, number) for number in left)
    item = next((one for one in found if not has_forgotten_text(one)), None)
    first: Literal["a", "b"] = "a" if item is None else shown_first(panel, rater.rater_id, item.item)
    return RatingView(panel, rater, item, first, len(rated), panel.num_items, time.time())


def keep_preference(
    context: Context,
    panel: RatingPanel,
    rater: Rater,
    item: int,
    choice: str,
    *,
    comment: str = "",
    shown_at: float | None = None,
) -> Rating:
    """Store which of two answers is better.

    Args:
        context: The home.
        panel: The panel.
        rater: Whoever has rated.
        item: The number of the item.
        choice: `first` or `second` as they are on the page of this rater, or `tie`.
        comment: What the rater has added.
        shown_at: When the page was shown, in seconds since 1970; None where that is not known.

    Raises:
        RequestError: Another choice, a panel of scores, or no such item.
        ConflictError: The panel is closed.
    """
    _check(panel, "pairwise", item)
    # Derived again, never taken from the form, so a manipulated form cannot swap the answers.
    first = shown_first(panel, rater.rater_id, item)
    other: Literal["a", "b"] = "b" if first == "a" else "a"
    meant: dict[str, Preference] = {"first": first, "second": other, "tie": "tie"}
    if choice not in meant:
        raise RequestError(
            "none of the three choices was selected", expected="A is better, B is better, or a tie", do="choose one"
        )
    rating = Rating(
        item=item,
        rater_id=rater.rater_id,
        preference=meant[choice],
        comment=_comment(comment),
        shown_first=first,
        seconds=_seconds(shown_at),
    )
    return context.rating_panels.keep(panel.panel_id, rating)


def keep_scores(
    context: Context,
    panel: RatingPanel,
    rater: Rater,
    item: int,
    scores: Mapping[Criterion, int],
    *,
    comment: str = "",
    shown_at: float | None = None,
) -> Rating:
    """Store a score for each criterion of the panel.

    Args:
        context: The home.
        panel: The panel.
        rater: Whoever has rated.
        item: The number of the item.
        scores: From 1 to 5, for each criterion.
        comment: What the rater has added.
        shown_at: When the page was shown, in seconds since 1970; None where that is not known.

    Raises:
        RequestError: A score is missing or not from 1 to 5, a panel of pairs, or no such item.
        ConflictError: The panel is closed.
    """
    _check(panel, "likert", item)
    missing = [name for name in panel.criteria if name not in scores]
    if missing or not all(1 <= score <= 5 for score in scores.values()) or set(scores) - set(panel.criteria):
        raise RequestError(
            f"no score for {', '.join(missing)}" if missing else "a score that is not from 1 to 5",
            expected=f"1 to 5 for each of {', '.join(panel.criteria)}",
            do="choose one number in each line",
        )
    rating = Rating(
        item=item,
        rater_id=rater.rater_id,
        scores=dict(scores),
        comment=_comment(comment),
        seconds=_seconds(shown_at),
    )
    return context.rating_panels.keep(panel.panel_id, rating)


def take_back(context: Context, panel: RatingPanel, rater: Rater) -> int | None:
    """Forget the rater's newest rating, whose item is next then; None where there is none.

    Raises:
        ConflictError: The panel is closed.
    """
    return context.rating_panels.take_back(panel.panel_id, rater.rater_id)


def _check(panel: RatingPanel, kind: str, item: int) -> None:
    if panel.kind != kind or not 0 <= item < panel.num_items:
        raise RequestError(
            f"item {item} of a panel that is {panel.kind}",
            expected=f"an item from 0 to {panel.num_items - 1}, rated as shown on its page",
            do="open the link again",
        )


def _comment(text: str) -> str:
    text = text.strip()
    if len(text) > MAX_COMMENT_CHARACTERS:
        raise RequestError(
            f"a comment of {len(text):,} characters",
            expected=f"at most {MAX_COMMENT_CHARACTERS:,}",
            do="shorten it",
        )
    return text


def _seconds(shown_at: float | None) -> float | None:
    """From when the page was made until now; None where that cannot be true, or the rater was away."""
    if shown_at is None:
        return None
    seconds = time.time() - shown_at
    # The time comes from a form field: negative or huge values are dropped, not trusted.
    return round(seconds, 3) if 0 <= seconds <= MOST_SECONDS else None
