"""Use cases: take in what people say of answers, and have corrections looked at.

client, playground, file -> give -> feedback (newest word of each author on each answer)
                                 -> review_queue (corrections, where the words of the exchange were kept)
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, RequestError, library_reason, validation_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.json_limits import loads
from luthier.core.records.traffic import Exchange, Feedback, Thumb
from luthier.features.feedback import review as review_queue
from luthier.features.traffic import service as traffic
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

MAX_CORRECTION_CHARACTERS: Final = 100_000
MAX_COMMENT_CHARACTERS: Final = 4_000
MAX_AUTHOR_CHARACTERS: Final = 200
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_FLUSH_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.2

_ASK: Final = "what should it have said? Send it as `correction`: it then waits for review"
"""The answer to a thumb down alone: what is wrong helps nobody to train a better model."""

Outcome = Literal["new", "replaced", "same"]


class FeedbackInput(FrozenModel):
    """Feedback on an answer. exchange_id: the `id` that came with it. The rest is as in `Feedback`."""

    exchange_id: Annotated[str, Field(min_length=1, max_length=128)]
    thumb: Thumb | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    correction: Annotated[str, Field(max_length=MAX_CORRECTION_CHARACTERS)] | None = None
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARACTERS)] = ""
    author: Annotated[str, Field(max_length=MAX_AUTHOR_CHARACTERS)] = ""


@dataclass(frozen=True, slots=True)
class FeedbackResult:
    """The outcome of one piece of feedback.

    Attributes:
        feedback: As stored.
        outcome: Whether it is new, replaces an earlier one, or repeats it.
        is_queued: Whether a correction waits for review.
        why_not: Why nothing waits for review, or what would have to be sent for that; empty where nothing is missing.
    """

    feedback: Feedback
    outcome: Outcome
    is_queued: bool = False
    why_not: str = ""


@dataclass(slots=True)
class Imported:
    """The outcome of importing a file.

    Attributes:
        num_by_outcome: How many lines were new, replaced or the same.
        num_queued: Corrections that wait for review.
        refused: Line number and reason of each line that was refused.
    """

    num_by_outcome: dict[Outcome, int] = field(default_factory=lambda: {"new": 0, "replaced": 0, "same": 0})
    num_queued: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)


def give(context: Context, caller: Caller, said: FeedbackInput) -> FeedbackResult:
    """Store feedback on an answer, in place of earlier feedback by the same author.

    The same feedback a second time changes nothing. Personal data in a correction and a comment is masked as the policy
    of the project's traffic says.

    Raises:
        NotFoundError: No such answer in the project's traffic.
        RequestError: Neither a thumb, nor a score, nor a correction.
    """
    return _give(context, _exchange(context, caller.project_id, said.exchange_id), said)


def give_thumb(context: Context, caller: Caller, said: FeedbackInput) -> FeedbackResult:
    """Store a thumb of an author on an answer; what they have said of it otherwise, such as a correction, stays.

    Raises:
        NotFoundError: No such answer in the project's traffic.
    """
    author = _author(said)
    known = context.feedback.of_exchanges(caller.project_id, [said.exchange_id])
    before = next((one for one in known if one.author == author), None)
    if before is None:
        return give(context, caller, said)
    kept = {"score": before.score, "correction": before.correction, "comment": before.comment}
    return give(context, caller, said.model_copy(update=kept))


def _give(context: Context, exchange: Exchange, said: FeedbackInput) -> FeedbackResult:
    given = _feedback(context, exchange, said)
    # Feedback first, review second: a crash in between loses a place in the queue, never the feedback.
    kept, before = context.feedback.put(given)
    outcome: Outcome = "new" if before is None else "same" if before == kept else "replaced"
    if not kept.correction:
        review_queue.withdraw_correction(context, kept)
        return FeedbackResult(kept, outcome, why_not=_ASK if kept.thumb == "down" else "")
    if exchange.messages is None:
        why_not = (
            "the text of this answer was not stored (see the policy of the project's traffic), so it cannot be reviewed"
        )
        return FeedbackResult(kept, outcome, why_not=why_not)
    is_changed = before is not None and before.correction != kept.correction
    is_queued = review_queue.queue_correction(context, kept, exchange, is_changed=is_changed)
    return FeedbackResult(kept, outcome, is_queued, "" if is_queued else "this very correction was reviewed before")


def import_feedback(context: Context, caller: Caller, path: Path) -> Imported:
    """Import a file of JSON lines: `{"exchange_id": ..., "thumb": "up"}` and so on, as `FeedbackInput` has it.

    A line that is refused does not affect the others.

    Raises:
        RequestError: The file cannot be read.
    """
    came, read = Imported(), list[tuple[int, FeedbackInput]]()
    for number, line in _lines(path):
        try:
            read.append((number, _said(line)))
        except RequestError as error:
            came.refused.append((number, error.came))
    # One scan of the traffic for the whole file; looking each id up would scan it once a line.
    known = _exchanges(context, caller.project_id, [said for _, said in read])
    with context.progress.task("Storing feedback", len(read), "lines") as task:
        for number, said in read:
            try:
                if said.exchange_id not in known:
                    raise _unknown(said.exchange_id)
                given = _give(context, known[said.exchange_id], said)
            except LuthierError as error:
                came.refused.append((number, error.came))
            else:
                came.num_by_outcome[given.outcome] += 1
                came.num_queued += given.is_queued
            task.advance()
    came.refused.sort()
    counts = {str(name): num for name, num in came.num_by_outcome.items()}
    with context.database.transaction():
        facts = counts | {"refused": len(came.refused), "waiting_for_review": came.num_queued}
        record(context, caller, "feedback.imported", caller.project_id, facts)
    return came


def list_feedback(
    context: Context,
    project_id: str,
    *,
    model: str | None = None,
    since: float = 0.0,
    until: float | None = None,
    limit: int | None = None,
) -> list[Feedback]:
    """Feedback within a time (seconds since 1970, `until` not included), newest first.

    Args:
        context: of the home.
        project_id: of the feedback.
        model: as requested; None for all models.
        since: seconds since 1970.
        until: seconds since 1970, not included; None for now.
        limit: the most that is listed; None for all.
    """
    return list(context.feedback.list(project_id, model=model, since=since, until=until, limit=limit))


def feedback_of(context: Context, project_id: str, exchange_ids: Iterable[str]) -> list[Feedback]:
    """Feedback on these answers, oldest first."""
    return list(context.feedback.of_exchanges(project_id, exchange_ids))


def _feedback(context: Context, exchange: Exchange, said: FeedbackInput) -> Feedback:
    correction, comment = _masked(context, exchange.project_id, (said.correction or "").strip(), said.comment.strip())
    if said.thumb is None and said.score is None and not correction:
        raise RequestError(
            "empty feedback", expected="a thumb, a score or a correction", do="give at least one of them"
        )
    return Feedback(
        feedback_id=new_id("feedback"),
        project_id=exchange.project_id,
        exchange_id=exchange.exchange_id,
        model=exchange.model,
        thumb=said.thumb,
        score=said.score,
        correction=correction or None,
        comment=comment,
        author=_author(said),
    )


def _author(said: FeedbackInput) -> str:
    return " ".join(said.author.split())


def _masked(context: Context, project_id: str, *texts: str) -> list[str]:
    if not any(texts):
        return list(texts)
    from luthier.features.traffic.log import mask_texts
    from luthier.features.traffic.policy import traffic_policy

    if not traffic_policy(context, project_id).mask_personal_data:
        return list(texts)
    # Corrections become training rows, so they follow the same masking policy as the traffic.
    return mask_texts([texts])[0][0]


def _exchange(context: Context, project_id: str, exchange_id: str) -> Exchange:
    """The exchange, also one that is just being written.

    Raises:
        NotFoundError: The project has no such exchange, or the id is none.
    """
    if not _ID.fullmatch(exchange_id):
        raise _unknown(exchange_id)
    try:
        return traffic.exchange(context, project_id, exchange_id)
    except NotFoundError:
        # A client that was just answered may be quicker than the log, which is written in parallel.
        # A thread of the pool waits here, not the event loop: the caller is a synchronous handler.
        time.sleep(_PAUSE_SECONDS)
        context.traffic_recorder.log.flush(_FLUSH_SECONDS)
        return traffic.exchange(context, project_id, exchange_id)


def _exchanges(context: Context, project_id: str, said: Sequence[FeedbackInput]) -> dict[str, Exchange]:
    """Those of a whole file, by id, read together; with their words where any is corrected."""
    from luthier.ml.drift.traffic.log import exchange_of

    if not said:
        return {}
    with_text = any(one.correction for one in said)
    found = traffic.exchanges(context, project_id, with_text=with_text)
    chosen = found.filter(found["exchange_id"].is_in([one.exchange_id for one in said]))
    return {row["exchange_id"]: exchange_of(row) for row in chosen.iter_rows(named=True)}


def _unknown(exchange_id: str) -> NotFoundError:
    return NotFoundError(
        f"{exchange_id[:100]!r} is not the id of a stored answer",
        expected="the `id` that came with an answer to this project",
        do="send it unchanged; `luthier traffic list` shows what is stored",
    )


def _said(line: str) -> FeedbackInput:
    try:
        return FeedbackInput.model_validate(_object(line))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{place or 'the line'}: {validation_reason(first)}",
            expected="the fields of docs/feedback.md",
            do="correct it",
        ) from None


def _object(line: str) -> dict[str, Any]:
    try:
        found = loads(line)
    except ValueError as error:
        raise RequestError(
            f"no JSON: {library_reason(error)}"[:200], expected="one object a line", do="correct it"
        ) from None
    if not isinstance(found, dict):
        raise RequestError("no object", expected="one object a line", do="correct it")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold anything, with their numbers from 1 on."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # Only the first line can start with a byte order mark. surrogateescape: a bad byte fails as JSON,
                # which refuses its line and not the whole import.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
                if text:
                    yield number, text
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror or error}", expected="a file of JSON lines", do="correct the path"
        ) from error
