"""What people say of answers: of each author on each answer, the newest word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.digest import sha256_bytes
from luthier.core.records.feedback import Feedback
from luthier.platform.db.database import Database
from luthier.platform.db.tables import feedback

_MAX_NAMED: int = 500


class FeedbackStore:
    """The feedback of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        with self._database.write() as connection:
            before = _of_author(connection, given)
            if before is None:
                kept = given.model_copy(update={"created_at": self._database.clock(connection)})
                connection.execute(insert(feedback).values(**_place(kept), **_values(kept)))
                return kept, None
            same = {"feedback_id": before.feedback_id, "created_at": before.created_at}
            if given.model_copy(update=same) == before:
                return before, before
            kept = given.model_copy(update=same | {"created_at": self._database.clock(connection)})
            is_it = feedback.c.feedback_id == kept.feedback_id
            connection.execute(update(feedback).where(is_it).values(**_values(kept)))
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
        table = feedback
        query = select(table.c.document).where((table.c.project_id == project_id) & (table.c.created_at >= since))
        if until is not None:
            query = query.where(table.c.created_at < until)
        if model is not None:
            query = query.where(table.c.model == model)
        query = query.order_by(table.c.created_at.desc(), table.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [Feedback.model_validate_json(document) for document in connection.execute(query).scalars()]

    def of_exchanges(self, project_id: str, exchange_ids: Iterable[str]) -> Sequence[Feedback]:
        """What was said of these answers, oldest first."""
        ids = sorted(set(exchange_ids))
        found: Sequence[str] = ()
        with self._database.read() as connection:
            for start in range(0, len(ids), _MAX_NAMED):
                query = select(feedback.c.document).where(_is_of(project_id, ids[start : start + _MAX_NAMED]))
                found = [*found, *connection.execute(query.order_by(feedback.c.number)).scalars()]
        return [Feedback.model_validate_json(document) for document in found]


def _of_author(connection: Connection, given: Feedback) -> Feedback | None:
    is_it = (
        (feedback.c.project_id == given.project_id)
        & (feedback.c.exchange_id == given.exchange_id)
        & (feedback.c.author_digest == _place(given)["author_digest"])
    )
    document = connection.execute(select(feedback.c.document).where(is_it).with_for_update()).scalar()
    return None if document is None else Feedback.model_validate_json(document)


def _place(given: Feedback) -> dict[str, str]:
    place = {"project_id": given.project_id, "exchange_id": given.exchange_id, "feedback_id": given.feedback_id}
    return place | {"author_digest": sha256_bytes(given.author.encode())}


def _values(given: Feedback) -> dict[str, object]:
    return {"model": given.model, "document": given.model_dump_json(), "created_at": given.created_at}


def _is_of(project_id: str, exchange_ids: list[str]) -> ColumnElement[bool]:
    return (feedback.c.project_id == project_id) & feedback.c.exchange_id.in_(exchange_ids)
