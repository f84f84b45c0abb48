"""Panels of people who rate answers: what is shown, who rates, and what was said. Of links only digests are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.results.rating import Rater, Rating, RatingItem, RatingPanel
from luthier.core.text.suggest import suggest_ids
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.store import append_audit_event
from luthier.platform.db.database import Database
from luthier.platform.db.tables import raters, rating_items, rating_panels, ratings

_NO_LINK = "none:"
"""What a digest begins with where there is none: no SHA-256 does."""


@dataclass(frozen=True, slots=True)
class PanelCounts:
    """A panel as a list shows it. num_ratings: of all raters together."""

    panel: RatingPanel
    num_raters: int
    num_ratings: int


class RatingPanelStore:
    """The panels of all projects. Every method is one short transaction, which writes the audit events too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        project_id: str,
        panel: RatingPanel,
        items: Sequence[RatingItem],
        people: Sequence[tuple[Rater, str]],
        audit_event: AuditEvent | None = None,
    ) -> RatingPanel:
        """Keep a new panel with all that is shown, and its raters, each with the digest of their link."""
        with self._database.write() as connection:
            made = panel.model_copy(update={"created_at": self._database.clock(connection)})
            values = {"panel_id": made.panel_id, "project_id": project_id, "name": made.name}
            document = made.model_dump_json()
            connection.execute(
                insert(rating_panels).values(**values, document=document, created_at=made.created_at, closed_at=None)
            )
            rows = [
                {"panel_id": made.panel_id, "item": item.item, "document": item.model_dump_json()} for item in items
            ]
            connection.execute(insert(rating_items), rows)
            for rater, digest in people:
                self._add_rater(connection, rater, digest, made.created_at)
            self._log(connection, audit_event)
        return made

    def get(self, project_id: str, panel_id: str) -> RatingPanel:
        """One panel. Raises NotFoundError, also for another project's."""
        of_project = rating_panels.c.project_id == project_id
        is_it = rating_panels.c.panel_id == panel_id
        with self._database.read() as connection:
            row = connection.execute(select(rating_panels).where(of_project, is_it)).mappings().first()
            if row is None:
                newest = select(rating_panels.c.panel_id).where(of_project).order_by(rating_panels.c.number.desc())
                known = connection.execute(newest).scalars().all()
                raise NotFoundError(
                    f"no panel {panel_id!r}; {suggest_ids(panel_id, known)}",
                    expected="the id of a panel of this project",
                    do="take the id that `luthier human-eval create` gave, or see the list of panels",
                )
        return _panel(row)

    def list(self, project_id: str) -> Sequence[PanelCounts]:
        """The panels of a project, newest first."""
        num_raters = select(func.count()).where(raters.c.panel_id == rating_panels.c.panel_id).scalar_subquery()
        num_ratings = select(func.count()).where(ratings.c.panel_id == rating_panels.c.panel_id).scalar_subquery()
        query = (
            select(rating_panels, num_raters.label("num_raters"), num_ratings.label("num_ratings"))
            .where(rating_panels.c.project_id == project_id)
            .order_by(rating_panels.c.number.desc())
        )
        with self._database.read() as connection:
            found = connection.execute(query).mappings().all()
        return [PanelCounts(_panel(row), row["num_raters"], row["num_ratings"]) for row in found]

    def items(self, panel_id: str) -> Sequence[RatingItem]:
        """All that is shown, by its numbers."""
        query = select(rating_items.c.document).where(rating_items.c.panel_id == panel_id).order_by(rating_items.c.item)
        with self._database.read() as connection:
            return [RatingItem.model_validate_json(document) for document in connection.execute(query).scalars()]

    def item(self, panel_id: str, number: int) -> RatingItem:
        """One of them. Raises NotFoundError."""
        is_it = (rating_items.c.panel_id == panel_id) & (rating_items.c.item == number)
        with self._database.read() as connection:
            document = connection.execute(select(rating_items.c.document).where(is_it)).scalar()
        if document is None:
            raise NotFoundError(f"no item {number} in this panel", expected="one of its items", do="reload the page")
        return RatingItem.model_validate_json(document)

    def raters(self, panel_id: str) -> Sequence[Rater]:
        """Who rates, in the order in which they were made."""
        query = select(raters).where(raters.c.panel_id == panel_id).order_by(raters.c.number)
        with self._database.read() as connection:
            return [_rater(row) for row in connection.execute(query).mappings()]

    def rater(self, panel_id: str, rater_id: str) -> Rater:
        """One of them. Raises NotFoundError."""
        is_it = (raters.c.panel_id == panel_id) & (raters.c.rater_id == rater_id)
        with self._database.read() as connection:
            row = connection.execute(select(raters).where(is_it)).mappings().first()
        if row is None:
            raise _no_such_rater(rater_id)
        return _rater(row)

    def by_link(self, digest: str) -> tuple[Rater, RatingPanel] | None:
        """Whom a link lets in, and to which panel; None where it lets nobody in."""
        query = select(raters).where(raters.c.digest == digest)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
            if row is None or row["digest"].startswith(_NO_LINK):
                return None
            is_it = rating_panels.c.panel_id == row["panel_id"]
            panel = connection.execute(select(rating_panels).where(is_it)).mappings().one()
        return _rater(row), _panel(panel)

    def add_rater(self, rater: Rater, digest: str, audit_event: AuditEvent | None = None) -> Rater:
        """Have one more rate. Raises ConflictError where the panel has one of this name, or is closed."""
        try:
            with self._database.write() as connection:
                self._check_open(connection, rater.panel_id)
                made = self._add_rater(connection, rater, digest, self._database.clock(connection))
                self._log(connection, audit_event)
        except IntegrityError as error:
            raise ConflictError(
                f"the panel has a rater {rater.name!r} already", expected="a name that is free", do="choose another"
            ) from error
        return made

    def change_link(
        self, panel_id: str, rater_id: str, digest: str | None, audit_event: AuditEvent | None = None
    ) -> Rater:
        """Let a rater in by another link, or, with None, by none; what they said stays. Raises NotFoundError."""
        is_it = (raters.c.panel_id == panel_id) & (raters.c.rater_id == rater_id)
        kept = f"{_NO_LINK}{rater_id}"[:64] if digest is None else digest
        with self._database.write() as connection:
            if digest is not None:
                self._check_open(connection, panel_id)
            connection.execute(update(raters).where(is_it).values(digest=kept))
            row = connection.execute(select(raters).where(is_it)).mappings().first()
            if row is None:
                raise _no_such_rater(rater_id)
            self._log(connection, audit_event)
        return _rater(row)

    def ratings(self, panel_id: str, rater_id: str | None = None) -> Sequence[Rating]:
        """What was said, by all or by one, in the order of time."""
        query = select(ratings.c.document).where(ratings.c.panel_id == panel_id)
        if rater_id is not None:
            query = query.where(ratings.c.rater_id == rater_id)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(ratings.c.rated_at, ratings.c.item)).scalars()
            return [Rating.model_validate_json(document) for document in found]

    def keep(self, panel_id: str, rating: Rating) -> Rating:
        """Keep what was said of an item, in place of what the rater said before. Raises ConflictError (closed)."""
        try:
            return self._keep_one(panel_id, rating)
        except IntegrityError:  # the same form was sent twice at once, and the other was first
            return self._keep_one(panel_id, rating)

    def keep_all(
        self,
        panel_id: str,
        people: Sequence[Rater],
        said: Sequence[Rating],
        audit_event: AuditEvent | None = None,
    ) -> None:
        """Keep ratings that come from elsewhere, all or none; `people` are new raters, who have no link.

        A rating that says when it was given keeps that time. Raises ConflictError where the panel is closed.
        """
        with self._database.write() as connection:
            self._check_open(connection, panel_id)
            now = self._database.clock(connection)
            for rater in people:
                self._add_rater(connection, rater, f"{_NO_LINK}{rater.rater_id}"[:64], now)
            for rating in said:
                self._keep(connection, panel_id, rating, rating.rated_at or now)
            self._log(connection, audit_event)

    def take_back(self, panel_id: str, rater_id: str) -> int | None:
        """Forget the newest thing that a rater said; returns the item, None where they said nothing yet.

        Raises ConflictError where the panel is closed.
        """
        theirs = (ratings.c.panel_id == panel_id) & (ratings.c.rater_id == rater_id)
        newest = select(ratings.c.item).where(theirs).order_by(ratings.c.rated_at.desc(), ratings.c.item.desc())
        with self._database.write() as connection:
            self._check_open(connection, panel_id)
            item = connection.execute(newest.limit(1)).scalar()
            if item is None:
                return None
            connection.execute(delete(ratings).where(theirs, ratings.c.item == item))
        return int(item)

    def close(self, project_id: str, panel_id: str, audit_event: AuditEvent | None = None) -> RatingPanel:
        """Take no more ratings. Raises NotFoundError, and ConflictError where it is closed already."""
        self.get(project_id, panel_id)
        is_it = rating_panels.c.panel_id == panel_id
        with self._database.write() as connection:
            self._check_open(connection, panel_id)
            connection.execute(update(rating_panels).where(is_it).values(closed_at=self._database.clock(connection)))
            row = connection.execute(select(rating_panels).where(is_it)).mappings().one()
            self._log(connection, audit_event)
        return _panel(row)

    def _keep_one(self, panel_id: str, rating: Rating) -> Rating:
        with self._database.write() as connection:
            self._check_open(connection, panel_id)
            return self._keep(connection, panel_id, rating, self._database.clock(connection))

    def _check_open(self, connection: Connection, panel_id: str) -> None:
        query = select(rating_panels.c.closed_at).where(rating_panels.c.panel_id == panel_id)
        if connection.execute(query).scalar() is not None:
            raise ConflictError(
                "this panel is closed",
                expected="a panel that still takes ratings",
                do="ask whoever gave you the link; a new panel can be made at any time",
            )

    def _keep(self, connection: Connection, panel_id: str, rating: Rating, when: float) -> Rating:
        made = rating.model_copy(update={"rated_at": when})
        is_it = (ratings.c.panel_id == panel_id) & (ratings.c.item == made.item) & (ratings.c.rater_id == made.rater_id)
        connection.execute(delete(ratings).where(is_it))
        values = {"panel_id": panel_id, "item": made.item, "rater_id": made.rater_id, "rated_at": when}
        connection.execute(insert(ratings).values(**values, document=made.model_dump_json()))
        return made

    def _add_rater(self, connection: Connection, rater: Rater, digest: str, now: float) -> Rater:
        made = rater.model_copy(update={"created_at": now, "has_link": not digest.startswith(_NO_LINK)})
        connection.execute(insert(raters).values(**made.model_dump(exclude={"has_link"}), digest=digest))
        return made

    def _log(self, connection: Connection, audit_event: AuditEvent | None) -> None:
        if audit_event is not None:
            append_audit_event(connection, self._database.now, audit_event)


def _panel(row: RowMapping) -> RatingPanel:
    made = RatingPanel.model_validate_json(row["document"])
    return made.model_copy(update={"closed_at": row["closed_at"]})


def _rater(row: RowMapping) -> Rater:
    values = {name: row[name] for name in ("rater_id", "panel_id", "name", "created_at")}
    return Rater(**values, has_link=not row["digest"].startswith(_NO_LINK))


def _no_such_rater(rater_id: str) -> NotFoundError:
    return NotFoundError(f"no rater {rater_id!r} in this panel", expected="one of its raters", do="see its status")
