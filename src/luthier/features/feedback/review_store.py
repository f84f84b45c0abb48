"""The queue in which people look at exchanges before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, func, select

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.feedback import ReviewItem, ReviewStatus
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import review_items

_ITEMS: Final = RecordTable(
    review_items,
    ReviewItem,
    key="review_id",
    clock="created_at",
    missing=Missing(
        "nothing to review has the id {key!r}",
        "an item of this project's queue",
        "open /review, or see `luthier feedback list`",
    ),
)


class ReviewStore(Store):
    """The review items of all projects."""

    def add(self, items: Sequence[ReviewItem]) -> list[ReviewItem]:
        """Add those whose id is new, with the time of the database; returns these."""
        added = []
        with self._write() as connection:
            now = self._database.clock(connection)
            for item in items:
                # Inside the write transaction: two requests that queue one correction add it once.
                if _ITEMS.first(connection, review_id=item.review_id) is None:
                    added.append(_ITEMS.insert(connection, item, now))
        return added

    def get(self, review_id: str, project_id: str) -> ReviewItem:
        """One item. Raises NotFoundError; also for another project's."""
        return self._get(_ITEMS, review_id, project_id=project_id)

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
        with self._write() as connection:
            # SELECT ... FOR UPDATE where the database has it: the comparison and the write below are one step.
            now = _ITEMS.get(connection, item.review_id, is_locked=True, project_id=item.project_id)
            if now != seen:
                who = now.decided_by or "somebody"
                raise ConflictError(
                    f"{who} has changed the item {item.review_id} meanwhile: it is {now.status}",
                    expected="an item as you saw it",
                    do="look at it again, then decide",
                )
            _ITEMS.change(connection, item.review_id, _ITEMS.row(item))

    def remove(self, review_id: str, project_id: str) -> None:
        """Forget an item; one that is gone already changes nothing."""
        with self._write() as connection:
            is_it = (review_items.c.review_id == review_id) & (review_items.c.project_id == project_id)
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
        order = [review_items.c.number]
        return self._list(_ITEMS, order=order, project_id=project_id, model=model, status=status, limit=limit)

    def ids(self, project_id: str, *, model: str | None = None, status: ReviewStatus | None = None) -> Sequence[str]:
        """The ids of items, in the order in which they came."""
        which = _ITEMS.where(project_id=project_id, model=model, status=status)
        return self._scalars(select(review_items.c.review_id).where(*which).order_by(review_items.c.number))

    def counts(self, project_id: str) -> dict[tuple[str, ReviewStatus], int]:
        """How many items there are, by model and status."""
        by = (review_items.c.model, review_items.c.status)
        query = select(*by, func.count().label("num")).where(review_items.c.project_id == project_id).group_by(*by)
        return {(row["model"], row["status"]): row["num"] for row in self._rows(query)}

    def exchange_ids(self, project_id: str) -> set[str]:
        """The exchanges that were ever queued."""
        of_project = review_items.c.project_id == project_id
        return set(self._scalars(select(review_items.c.exchange_id).where(of_project).distinct()))
