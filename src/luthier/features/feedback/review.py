"""Use cases: the queue in which people look at exchanges before anything is trained on them.

What comes in: corrections, of themselves; answers that people liked and samples of traffic, where a user requests
them. Of each exchange the words must have been kept. What comes out: `accepted`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.records.traffic import Feedback, ReviewItem, ReviewStatus
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.traffic import Exchange

MAX_QUEUED: Final = 1_000
MAX_CHARACTERS: Final = 400_000
LIKED_SCORE: Final = 0.8
"""An answer that was given at least this counts as liked, as one with a thumb up does."""
_TICK_SECONDS: Final = 0.001

Decision = Literal["accept", "reject"]
_STATUS_OF: Final[dict[Decision, ReviewStatus]] = {"accept": "accepted", "reject": "rejected"}


@dataclass(frozen=True, slots=True)
class Queued:
    """The outcome of queueing exchanges for review.

    Attributes:
        num_queued: New items.
        num_known: Exchanges that were queued before.
        num_wordless: Exchanges whose text was not stored.
    """

    num_queued: int
    num_known: int
    num_wordless: int


def accepted(context: Context, project_id: str, model: str | None = None) -> list[ReviewItem]:
    """What may be trained on, in the order in which it was queued.

    Args:
        context: The home.
        project_id: The project.
        model: None for all models of the project.
    """
    return list(context.review_items.list(project_id, model=model, status="accepted"))


def counts(context: Context, project_id: str) -> dict[tuple[str, ReviewStatus], int]:
    """How many items there are, by model and status."""
    return context.review_items.counts(project_id)


def show_item(context: Context, project_id: str, review_id: str) -> ReviewItem:
    """One item.

    Raises:
        NotFoundError: the project has no such item.
    """
    return context.review_items.get(_known(review_id), project_id)


def neighbours(
    context: Context, project_id: str, review_id: str | None, *, model: str | None, status: ReviewStatus | None
) -> tuple[str | None, str | None]:
    """The ids before and after an item among those that are shown; after None comes the first.

    Ids begin with the time of their making, so that an item which is shown no more keeps its place.
    """
    ids = list(context.review_items.ids(project_id, model=model, status=status))
    if review_id is None:
        return None, ids[0] if ids else None
    if review_id in ids:
        place = ids.index(review_id)
        return ids[place - 1] if place else None, ids[place + 1] if place + 1 < len(ids) else None
    every = list(context.review_items.ids(project_id, model=model))
    # The item may have left the filtered list by the decision just made; its place in the full list remains.
    place = every.index(review_id) if review_id in every else 0
    shown = set(ids)
    before = next((one for one in reversed(every[:place]) if one in shown), None)
    return before, next((one for one in every[place:] if one in shown), None)


def queue_correction(context: Context, given: Feedback, exchange: Exchange, *, is_changed: bool) -> bool:
    """Have a correction reviewed; returns whether it waits.

    Args:
        context: of the home.
        given: the feedback with the correction.
        exchange: the request and answer that it corrects.
        is_changed: whether its author gave another one before; this one replaces it, even where that was decided.
    """
    item = _item(exchange, "correction", review_id=review_id_of(given), correction=given.correction)
    known = context.review_items.find(item.review_id, given.project_id)
    if known is None:
        context.review_items.add([item])
        return True
    # A new correction replaces the decided one: what was accepted is not what the author says now.
    if is_changed:
        context.review_items.save(item.model_copy(update={"created_at": known.created_at}), seen=known)
        return True
    return known.status == "waiting"


def withdraw_correction(context: Context, given: Feedback) -> None:
    """The author has taken a correction back: it waits no more. What was decided of it stays."""
    known = context.review_items.find(review_id_of(given), given.project_id)
    if known is not None and known.status == "waiting":
        context.review_items.remove(known.review_id, given.project_id)


def queue_exchange(context: Context, caller: Caller, exchange_id: str) -> Queued:
    """Have one exchange reviewed. Raises NotFoundError for one that is not known."""
    exchange = traffic.exchange(context, caller.project_id, exchange_id)
    if exchange_id in context.review_items.exchange_ids(caller.project_id):
        return Queued(0, 1, 0)
    return _queue(context, [exchange], "traffic")


def queue_sample(
    context: Context, caller: Caller, model: str, num: int, *, since: float = 0.0, seed: int | None = None
) -> Queued:
    """Queue exchanges with a model for review, drawn at random from those that were answered and never queued.

    Args:
        context: the home.
        caller: whose project it is.
        model: the model or deployment.
        num: how many, at least 1.
        since: only exchanges of this time and later, in seconds since 1970.
        seed: of the draw; None for another one each time.

    Raises:
        RequestError: `num` is below 1, or above `MAX_QUEUED`.
    """
    if not 1 <= num <= MAX_QUEUED:
        raise RequestError(f"a sample of {num:,}", expected=f"from 1 to {MAX_QUEUED:,}", do="choose such a number")
    with context.progress.task("Reading answers", None, "answers") as task:
        answered, with_words = _answered(context, caller.project_id, model, since)
        task.advance(len(answered))
    known = context.review_items.exchange_ids(caller.project_id)
    fresh = sorted(with_words - known)
    # `fresh` is sorted above: a set has another order in each process, and the seed would mean nothing.
    drawn = random.Random(seed).sample(fresh, min(num, len(fresh)))  # noqa: S311 - no secret hangs on it
    made = _queue(context, _exchanges(context, caller.project_id, model, since, drawn), "traffic")
    return Queued(made.num_queued, len(with_words) - len(fresh), len(answered) - len(with_words))


def queue_liked(context: Context, caller: Caller, model: str, *, since: float = 0.0) -> Queued:
    """Have the answers of a model reviewed that people gave a thumb up, or a score of at least 0.8, and no one the
    contrary. At most 1,000 in one call, the newest first.

    Args:
        context: the home.
        caller: whose project it is.
        model: the name that clients ask for.
        since: of the feedback, in seconds since 1970.
    """
    liked: dict[str, bool] = {}
    for one in context.feedback.list(caller.project_id, model=model, since=since):
        is_low = one.score is not None and one.score < LIKED_SCORE
        is_liked = one.thumb != "down" and not is_low and not one.correction
        # One contrary voice is enough to keep an answer out of what is trained on.
        liked[one.exchange_id] = liked.get(one.exchange_id, True) and is_liked
    wanted = [exchange_id for exchange_id, is_liked in liked.items() if is_liked]
    known = context.review_items.exchange_ids(caller.project_id)
    fresh = [one for one in wanted if one not in known]
    _, with_words = _answered(context, caller.project_id, model, 0.0)
    # The bound counts what can be queued: under `sampled` the newest 1,000 may nearly all be without their text.
    kept = [one for one in fresh if one in with_words]
    made = _queue(context, _exchanges(context, caller.project_id, model, 0.0, kept[:MAX_QUEUED]), "rating")
    return Queued(made.num_queued, sum(one in known for one in wanted), len(fresh) - len(kept))


def decide(
    context: Context, caller: Caller, seen: ReviewItem, decision: Decision, *, edited: str | None = None
) -> ReviewItem:
    """Store the caller's decision on an item.

    Args:
        context: of the home.
        caller: who decides.
        seen: the item as it was shown.
        decision: of the caller.
        edited: what is to be learned instead of the answer; None leaves it as it is.

    Raises:
        NotFoundError: no such item.
        ConflictError: somebody has decided meanwhile.
        RequestError: the text is empty or too long.
    """
    changes: dict[str, Any] = {"status": _STATUS_OF[decision], "decided_by": caller.name}
    if edited is not None:
        text = edited.strip()
        if not text or len(text) > MAX_CHARACTERS:
            raise RequestError(
                f"an answer of {len(text):,} characters",
                expected=f"from 1 to {MAX_CHARACTERS:,}: it is what the model is to learn",
                do="write the answer, or reject the item",
            )
        # The answer itself is no correction of itself; the item then counts as accepted unchanged.
        changes["correction"] = None if text == seen.answer.strip() else text
    if decision == "accept" and not (edited or seen.learned).strip():
        raise RequestError("an empty answer", expected="a text that can be learned", do="edit it, or reject it")
    before = last_of(context, caller)
    # The database's clock counts milliseconds: two decisions of one person keep their order all the same.
    earliest = 0.0 if before is None or before.decided_at is None else before.decided_at + _TICK_SECONDS
    decided = seen.model_copy(update=changes | {"decided_at": max(context.access.now(), earliest)})
    # `seen` makes the write conditional: of two reviewers of one item the second gets a ConflictError.
    context.review_items.save(decided, seen=seen)
    return decided


def undo(context: Context, caller: Caller, review_id: str) -> ReviewItem:
    """Have an item wait again; its edited text stays.

    Raises:
        NotFoundError: there is none in the project.
        ConflictError: it waits.
    """
    seen = show_item(context, caller.project_id, review_id)
    if seen.status == "waiting":
        raise ConflictError(f"{review_id} is already undecided", expected="an item that was decided", do="decide it")
    again = seen.model_copy(update={"status": "waiting", "decided_by": "", "decided_at": None})
    context.review_items.save(again, seen=seen)
    return again


def last_of(context: Context, caller: Caller) -> ReviewItem | None:
    """What the caller has decided last; None where there is nothing."""
    every = context.review_items.list(caller.project_id)
    own = [one for one in every if one.decided_by == caller.name and one.decided_at is not None]
    return max(own, key=lambda one: one.decided_at or 0.0, default=None)


def _answered(context: Context, project_id: str, model: str, since: float) -> tuple[set[str], set[str]]:
    """The ids of exchanges that were answered well, and of those of them whose words were kept."""
    found = traffic.exchanges(context, project_id, model=model, since=since)
    found = found.filter((found["status"] >= 200) & (found["status"] < 300))
    # Two sets, so that the caller can say how many answers were skipped because their text is missing.
    return set(found["exchange_id"].to_list()), set(found.filter(found["has_text"])["exchange_id"].to_list())


def _exchanges(
    context: Context, project_id: str, model: str, since: float, exchange_ids: Sequence[str]
) -> list[Exchange]:
    from luthier.ml.drift.traffic.log import exchange_of

    if not exchange_ids:
        return []
    found = traffic.exchanges(context, project_id, model=model, since=since, with_text=True)
    chosen = found.filter(found["exchange_id"].is_in(list(exchange_ids))).unique("exchange_id", maintain_order=True)
    return [exchange_of(row) for row in chosen.iter_rows(named=True)]


def _queue(context: Context, exchanges: Sequence[Exchange], source: Literal["traffic", "rating"]) -> Queued:
    with_words = [one for one in exchanges if one.messages is not None and one.answer is not None]
    ids = set[str]()
    while len(ids) < len(with_words):  # of many in one second, two may be the same
        ids.add(new_id("review"))
    items = [_item(one, source, review_id=review_id) for one, review_id in zip(with_words, ids, strict=True)]
    added = context.review_items.add(items)
    return Queued(len(added), 0, len(exchanges) - len(with_words))


def _item(
    exchange: Exchange,
    source: Literal["correction", "traffic", "rating"],
    *,
    review_id: str,
    correction: str | None = None,
) -> ReviewItem:
    assert exchange.messages is not None  # asked by who calls
    return ReviewItem(
        review_id=review_id,
        project_id=exchange.project_id,
        model=exchange.model,
        source=source,
        exchange_id=exchange.exchange_id,
        messages=exchange.messages,
        answer=exchange.answer or "",
        correction=correction,
    )


def review_id_of(given: Feedback) -> str:
    """The id of the item that a correction waits as: the same for all that one author says of one answer."""
    # Derived, so a correction that is sent twice is one item, without a lookup.
    return given.feedback_id.replace("feedback", "review", 1)


def _known(review_id: str) -> str:
    if not is_id(review_id, "review"):
        raise NotFoundError(
            f"{review_id[:100]!r} is not the id of an item", expected="an item of the queue", do="open /review"
        )
    return review_id
