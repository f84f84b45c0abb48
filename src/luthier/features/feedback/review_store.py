"""The queue in which people look at exchanges before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.feedback import ReviewItem, ReviewStatus
from luthier.platform.db.database import Database
from luthier.platform.db.tables import review_items


class ReviewStore:
    """The review items of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, items: Sequence[ReviewItem]) -> list[ReviewItem]:
        """Add those whose id is new, with the time of the database; returns these."""
        added = []
        with self._database.write() as connection:
            now = self._database.clock(connection)
            for item in items:
                known = select(review_items.c.number).where(review_items.c.review_id == item.review_id)
                if connection.execute(known).first() is None:
                    made = item.model_copy(update={"created_at": now})
                    place = made.model_dump(include={"review_id", "project_id", "model", "exchange_id"})
                    connection.execute(insert(review_items).values(**place, **_values(made)))
                    added.append(made)
        return added

    def get(self, review_id: str, project_id: str) -> ReviewItem:
        """One item. Raises NotFoundError; also for another project's."""
        with self._database.read() as connection:
            return _item(connection, review_id, project_id)

    def find(self, review_id: str, project_id: str) -> ReviewItem | None:
        """One item; None where there is none."""
        try:
            return self.get(review_id, project_id)
        except NotFoundError:
            return None

    def save(self, item: ReviewItem, *, seen: ReviewItem) -> None:
        """Write an item as it is now. seen: as it was when that was decided.

        Raises NotFoundError where it is gone, ConflictError where somebody else has changed it since.
        """
        with self._database.write() as connection:
            now = _item(connection, item.review_id, item.project_id, is_write=True)
            if now != seen:
                who = now.decided_by or "somebody"
                raise ConflictError(
                    f"{who} has changed the item {item.review_id} meanwhile: it is {now.status}",
                    expected="an item as you saw it",
                    do="look at it again, then decide",
                )
            is_it = review_items.c.review_id == item.review_id
            connection.execute(update(review_items).where(is_it).values(**_values(item)))

    def remove(self, review_id: str, project_id: str) -> None:
        """Forget an item; one that is gone already changes nothing."""
        is_it = (review_items.c.review_id == review_id) & (review_items.c.project_id == project_id)
        with self._database.write() as connection:
            connection.execute(delete(review_items).where(is_it))

    def list(
        self,
        project_id: str,
        *,
        model: str | None = None,
        status: ReviewStatus | None = None,
        limit: int | None = None,
    ) -> Sequence[ReviewItem]:
        """Items in the order in which they came."""
        query = select(review_items.c.document).where(_which(project_id, model, status)).order_by(review_items.c.number)
        with self._database.read() as connection:
            found = connection.execute(query.limit(limit)).scalars()
            return [ReviewItem.model_validate_json(document) for document in found]

    def ids(self, project_id: str, *, model: str | None = None, status: ReviewStatus | None = None) -> Sequence[str]:
        """The ids of items, in the order in which they came."""
        which = _which(project_id, model, status)
        query = select(review_items.c.review_id).where(which).order_by(review_items.c.number)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def counts(self, project_id: str) -> dict[tuple[str, ReviewStatus], int]:
        """How many items there are, by model and status."""
        table = review_items
        query = select(table.c.model, table.c.status, func.count()).where(table.c.project_id == project_id)
        with self._database.read() as connection:
            found = connection.execute(query.group_by(table.c.model, table.c.status))
            return {(model, status): num for model, status, num in found}

    def exchange_ids(self, project_id: str) -> set[str]:
        """The exchanges that were ever queued."""
        query = select(review_items.c.exchange_id).where(review_items.c.project_id == project_id).distinct()
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())


def _item(connection: Connection, review_id: str, project_id: str, *, is_write: bool = False) -> ReviewItem:
    is_it = (review_items.c.review_id == review_id) & (review_items.c.project_id == project_id)
    query = select(review_items.c.document).where(is_it)
    document = connection.execute(query.with_for_update() if is_write else query).scalar()
    if document is None:
        raise NotFoundError(
            f"nothing to review has the id {review_id!r}",
            expected="an item of this project's queue",
            do="open /review, or see `luthier feedback list`",
        )
    return ReviewItem.model_validate_json(document)


def _values(item: ReviewItem) -> dict[str, str]:
    return {"status": item.status, "document": item.model_dump_json()}


def _which(project_id: str, model: str | None, status: ReviewStatus | None) -> ColumnElement[bool]:
    which = review_items.c.project_id == project_id
    if model is not None:
        which &= review_items.c.model == model
    return which if status is None else which & (review_items.c.status == status)
