"""Stores of feedback: the newest rating of each author on each answer, and the review queue of exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import sha256_bytes
from luthier.core.records.traffic import Feedback, ReviewItem, ReviewStatus
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import feedback, review_items

_MAX_NAMED: Final = 500
_FEEDBACK: Final = RecordTable(feedback, Feedback, key="feedback_id")


class FeedbackStore(Store):
    """The feedback of all projects."""

    def put(self, given: Feedback) -> tuple[Feedback, Feedback | None]:
        """Store an author's feedback on an answer, in place of earlier feedback; returns both.

        Who says the same again changes nothing, and gets what is kept. What replaces another keeps its id. The time is
        the database's.
        """
        try:
            return self._put(given)
        except IntegrityError:  # concurrent feedback of the same author: this replaces it
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

    def change_each(self, project_id: str, change: Callable[[Feedback], Feedback | None]) -> int:
        """Change all feedback of a project in one transaction.

        Args:
            project_id: The project.
            change: Called with each; what it returns is stored in its place, and None removes it.

        Returns:
            How many were changed or removed.
        """
        num_changed = 0
        with self._write() as connection:
            # Locked, so that feedback which its author replaces meanwhile is not overwritten with what it was.
            query = _FEEDBACK.query(order=[feedback.c.number], project_id=project_id).with_for_update()
            for row in connection.execute(query).mappings().all():
                given = _FEEDBACK.of_row(row)
                changed = change(given)
                if changed is None:
                    _FEEDBACK.remove(connection, given.feedback_id, project_id=project_id)
                elif changed != given:
                    _FEEDBACK.change(connection, given.feedback_id, _FEEDBACK.row(changed), project_id=project_id)
                num_changed += changed != given
        return num_changed

    def list(
        self,
        project_id: str,
        *,
        model: str | None = None,
        since: float = 0.0,
        until: float | None = None,
        limit: int | None = None,
    ) -> Sequence[Feedback]:
        """Feedback of a project, newest first.

        Args:
            project_id: The project.
            model: Only feedback on answers of this model; None for all.
            since: In seconds since 1970; feedback of that moment is included.
            until: In seconds since 1970, not included; None for no end.
            limit: The most entries; None for all.
        """
        when = feedback.c.created_at
        where = [when >= since] if until is None else [when >= since, when < until]
        order = [when.desc(), feedback.c.number.desc()]
        return self._list(_FEEDBACK, *where, order=order, project_id=project_id, model=model, limit=limit)

    def of_exchanges(self, project_id: str, exchange_ids: Iterable[str]) -> Sequence[Feedback]:
        """Feedback on these answers, oldest first."""
        ids, order = sorted(set(exchange_ids)), [feedback.c.number]
        # In parts, since databases bound the variables of one statement.
        parts = [
            feedback.c.exchange_id.in_(ids[start : start + _MAX_NAMED]) for start in range(0, len(ids), _MAX_NAMED)
        ]
        # One snapshot over all parts, else feedback given in between could appear in one part only.
        with self._database.snapshot():
            return [one for part in parts for one in self._list(_FEEDBACK, part, order=order, project_id=project_id)]


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


# Built once: the navigation of every page counts what waits.
_WAITING: Final = (
    select(
        review_items.c.model,
        func.count().label("num"),
        func.min(review_items.c.review_id).label("first"),
        func.max(review_items.c.number).label("newest"),
    )
    .where(review_items.c.project_id == bindparam("its_project"), review_items.c.status == "waiting")
    .group_by(review_items.c.model)
    .order_by(review_items.c.model)
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
        """One item.

        Raises:
            NotFoundError: The project has no such item.
        """
        return self._get(_ITEMS, review_id, project_id=project_id)

    def find(self, review_id: str, project_id: str) -> ReviewItem | None:
        """One item; None where there is none."""
        try:
            return self.get(review_id, project_id)
        except NotFoundError:
            return None

    def save(self, item: ReviewItem, *, seen: ReviewItem) -> None:
        """Store the new state of an item.

        Args:
            item: The new state.
            seen: The state that the decision was made on.

        Raises:
            NotFoundError: The item is gone.
            ConflictError: Someone else has changed it since.
        """
        with self._write() as connection:
            # SELECT ... FOR UPDATE where the database has it: the comparison and the write below are one step.
            now = _ITEMS.get(connection, item.review_id, is_locked=True, project_id=item.project_id)
            if now != seen:
                who = now.decided_by or "somebody"
                raise ConflictError(
                    f"{who} has changed the item {item.review_id} in the meantime: it is {now.status}",
                    expected="an item as you saw it",
                    do="read it again, then decide",
                )
            _ITEMS.change(connection, item.review_id, _ITEMS.row(item))

    def remove(self, review_id: str, project_id: str) -> None:
        """Delete an item; a missing one changes nothing."""
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
        """Items of the review queue in the order in which they came.

        Args:
            project_id: The project.
            model: Only answers of this model; None for all.
            status: Only items in this status; None for all.
            limit: The most items; None for all.
        """
        order = [review_items.c.number]
        return self._list(_ITEMS, order=order, project_id=project_id, model=model, status=status, limit=limit)

    def ids(self, project_id: str, *, model: str | None = None, status: ReviewStatus | None = None) -> Sequence[str]:
        """The ids of items of the review queue, in the order in which they came.

        Args:
            project_id: The project.
            model: Only answers of this model; None for all.
            status: Only items in this status; None for all.
        """
        which = _ITEMS.where(project_id=project_id, model=model, status=status)
        return self._scalars(select(review_items.c.review_id).where(*which).order_by(review_items.c.number))

    def counts(self, project_id: str) -> dict[tuple[str, ReviewStatus], int]:
        """How many items there are, by model and status."""
        by = (review_items.c.model, review_items.c.status)
        query = select(*by, func.count().label("num")).where(review_items.c.project_id == project_id).group_by(*by)
        return {(row["model"], row["status"]): row["num"] for row in self._rows(query)}

    def waiting(self, project_id: str) -> Sequence[tuple[str, int, str, int]]:
        """Of each model with items that wait: its name, how many, the id of the first and the number of the newest."""
        rows = self._rows(_WAITING, {"its_project": project_id})
        return [(row["model"], int(row["num"]), str(row["first"]), int(row["newest"])) for row in rows]

    def exchange_ids(self, project_id: str) -> set[str]:
        """The exchanges that were ever queued."""
        of_project = review_items.c.project_id == project_id
        return set(self._scalars(select(review_items.c.exchange_id).where(of_project).distinct()))
