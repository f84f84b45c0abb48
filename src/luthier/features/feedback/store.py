"""What people say of answers: of each author on each answer, the newest word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy.exc import IntegrityError

from luthier.core.digest import sha256_bytes
from luthier.core.records.feedback import Feedback
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import feedback

_MAX_NAMED: Final = 500
_FEEDBACK: Final = RecordTable(feedback, Feedback, key="feedback_id")


class FeedbackStore(Store):
    """The feedback of all projects."""

    def put(self, given: Feedback) -> tuple[Feedback, Feedback | None]:
        """Keep what an author says of an answer, in place of what they said before; returns it, and that.

        Who says the same again changes nothing, and gets what is kept. What replaces another keeps its id. The time is
        the database's.
        """
        try:
            return self._put(given)
        except IntegrityError:  # the same author has said something at the same moment: that is what this replaces
            return self._put(given)

    def _put(self, given: Feedback) -> tuple[Feedback, Feedback | None]:
        # The unique index is over a digest: author names are longer than some databases index.
        digest = sha256_bytes(given.author.encode())
        place = {"project_id": given.project_id, "exchange_id": given.exchange_id, "author_digest": digest}
        with self._write() as connection:
            # Locked, so that two words of one author on one answer are applied one after the other.
            before = _FEEDBACK.first(connection, is_locked=True, **place)
            if before is None:
                kept = given.model_copy(update={"created_at": self._database.clock(connection)})
                return _FEEDBACK.insert(connection, kept, author_digest=digest), None
            same = {"feedback_id": before.feedback_id, "created_at": before.created_at}
            # Id and time are taken over first: they always differ and say nothing about the content.
            if given.model_copy(update=same) == before:
                return before, before
            kept = given.model_copy(update=same | {"created_at": self._database.clock(connection)})
            _FEEDBACK.change(connection, kept.feedback_id, _FEEDBACK.row(kept))
            return kept, before

    def list(
        self,
        project_id: str,
        *,
        model: str | None = None,
        since: float = 0.0,
        until: float | None = None,
        limit: int | None = None,
    ) -> Sequence[Feedback]:
        """Feedback of a project that was given in a time (`until` not included), newest first."""
        when = feedback.c.created_at
        where = [when >= since] if until is None else [when >= since, when < until]
        order = [when.desc(), feedback.c.number.desc()]
        return self._list(_FEEDBACK, *where, order=order, project_id=project_id, model=model, limit=limit)

    def of_exchanges(self, project_id: str, exchange_ids: Iterable[str]) -> Sequence[Feedback]:
        """What was said of these answers, oldest first."""
        ids, order = sorted(set(exchange_ids)), [feedback.c.number]
        # In parts, since databases bound the variables of one statement.
        parts = [
            feedback.c.exchange_id.in_(ids[start : start + _MAX_NAMED]) for start in range(0, len(ids), _MAX_NAMED)
        ]
        # One snapshot over all parts, else feedback given in between could appear in one part only.
        with self._database.snapshot():
            return [one for part in parts for one in self._list(_FEEDBACK, part, order=order, project_id=project_id)]
