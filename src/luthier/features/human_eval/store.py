"""Panels of people who rate answers: what is shown, the raters, and the ratings. Only digests of links are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.results.human_eval import Rater, Rating, RatingItem, RatingPanel
from luthier.platform.db.store import Codec, Missing, RecordTable, Store
from luthier.platform.db.tables import raters, rating_items, rating_panels, ratings

_NO_LINK: Final = "none:"
"""What a digest begins with where there is none: no SHA-256 does."""
_PANELS: Final = RecordTable(
    rating_panels,
    RatingPanel,
    key="panel_id",
    clock="created_at",
    overlay=("closed_at",),
    missing=Missing(
        "no panel {key!r}",
        "the id of a panel of this project",
        "take the id that `luthier human-eval create` gave, or see the list of panels",
        suggests=True,
    ),
)
_ITEMS: Final = RecordTable(rating_items, RatingItem)
_RATERS: Final = RecordTable(
    raters,
    Rater,
    key="rater_id",
    clock="created_at",
    renamed={"digest": "has_link"},
    codecs={"digest": Codec(str, lambda digest: not digest.startswith(_NO_LINK))},  # insert's caller gives the digest
    missing=Missing("no rater {key!r} in this panel", "one of its raters", "see its status"),
)
_RATINGS: Final = RecordTable(ratings, Rating)


@dataclass(frozen=True, slots=True)
class PanelCounts:
    """A panel as a list shows it.

    Attributes:
        panel: The panel.
        num_raters: Its raters.
        num_ratings: The ratings of all raters together.
    """

    panel: RatingPanel
    num_raters: int
    num_ratings: int

    @property
    def num_wanted(self) -> int:
        """The ratings that there are when every rater has rated everything."""
        return self.num_raters * self.panel.num_items


class RatingPanelStore(Store):
    """The panels of all projects."""

    def add(
        self,
        project_id: str,
        panel: RatingPanel,
        items: Sequence[RatingItem],
        people: Sequence[tuple[Rater, str]],
    ) -> RatingPanel:
        """Store a new panel with all that it shows, and its raters.

        Args:
            project_id: The project that the panel belongs to.
            panel: Without times, which are set here.
            items: All that raters see, in the order of their numbers.
            people: Each rater with the SHA-256 digest of their link; the link itself is not stored.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            # Panel, items, raters and log entry in one transaction: a link never leads to half a panel.
            made = _PANELS.insert(connection, panel, now, project_id=project_id)
            connection.execute(insert(rating_items), [_ITEMS.row(item) | {"panel_id": made.panel_id} for item in items])
            for rater, digest in people:
                _add_rater(connection, rater, digest, now)
        return made

    def get(self, project_id: str, panel_id: str) -> RatingPanel:
        """One panel.

        Raises:
            NotFoundError: The project has no such panel.
        """
        return self._get(_PANELS, panel_id, project_id=project_id)

    def list(self, project_id: str) -> Sequence[PanelCounts]:
        """The panels of a project, newest first."""
        num_raters, num_ratings = (
            select(func.count()).where(table.c.panel_id == rating_panels.c.panel_id).scalar_subquery()
            for table in (raters, ratings)
        )
        counts = (num_raters.label("num_raters"), num_ratings.label("num_ratings"))
        rows = self._rows(_PANELS.query(project_id=project_id).add_columns(*counts))
        return [PanelCounts(_PANELS.of_row(row), row["num_raters"], row["num_ratings"]) for row in rows]

    def items(self, panel_id: str) -> Sequence[RatingItem]:
        """All that is shown, by its numbers."""
        return self._list(_ITEMS, order=[rating_items.c.item], panel_id=panel_id)

    def item(self, panel_id: str, number: int) -> RatingItem:
        """One item of a panel, by its number.

        Raises:
            NotFoundError: The panel has no such item.
        """
        found = self._find(_ITEMS, panel_id=panel_id, item=number)
        if found is None:
            raise NotFoundError(f"no item {number} in this panel", expected="one of its items", do="reload the page")
        return found

    def raters(self, panel_id: str) -> Sequence[Rater]:
        """Who rates, in the order in which they were made."""
        return self._list(_RATERS, order=[raters.c.number], panel_id=panel_id)

    def rater(self, panel_id: str, rater_id: str) -> Rater:
        """One rater of a panel.

        Raises:
            NotFoundError: The panel has no such rater.
        """
        return self._get(_RATERS, rater_id, panel_id=panel_id)

    def by_link(self, digest: str) -> tuple[Rater, RatingPanel] | None:
        """The rater and panel of a link; None where it is invalid."""
        with self._database.read() as connection:
            # Revoked links hold "none:ID" in this column, which no digest of a token equals.
            rater = _RATERS.first(connection, digest=digest)
            if rater is None or not rater.has_link:
                return None
            return rater, _PANELS.get(connection, rater.panel_id)

    def by_id(self, rater_id: str) -> tuple[Rater, RatingPanel, str] | None:
        """A rater of any project, with the panel and the project of it; None where there is none."""
        with self._database.read() as connection:
            rater = _RATERS.first(connection, rater_id=rater_id)
            if rater is None:
                return None
            project = select(rating_panels.c.project_id).where(rating_panels.c.panel_id == rater.panel_id)
            return rater, _PANELS.get(connection, rater.panel_id), str(connection.execute(project).scalar_one())

    def check_open(self, panel_id: str) -> None:
        """Whether a panel still takes ratings.

        Raises:
            ConflictError: The panel is closed.
        """
        with self._database.read() as connection:
            _check_open(connection, panel_id)

    def add_rater(self, rater: Rater, digest: str) -> Rater:
        """Add a rater to a panel.

        Args:
            rater: Names the panel.
            digest: SHA-256 of the rater's link.

        Raises:
            ConflictError: The panel has a rater of this name, or is closed.
        """
        conflict = ConflictError(
            f"the panel has a rater {rater.name!r} already", expected="a name that is free", do="choose another"
        )
        with self._write(conflict) as connection:
            # In the same transaction as the insert, so that a panel cannot be closed between the two.
            _check_open(connection, rater.panel_id)
            return _add_rater(connection, rater, digest, self._database.clock(connection))

    def change_link(self, panel_id: str, rater_id: str, digest: str | None) -> Rater:
        """Replace or withdraw the link of a rater; their ratings stay.

        Args:
            panel_id: The panel.
            rater_id: The rater.
            digest: SHA-256 of the new link; None withdraws the old one.

        Raises:
            NotFoundError: The panel has no such rater.
            ConflictError: The panel is closed; a link can still be withdrawn.
        """
        with self._write() as connection:
            if digest is not None:
                _check_open(connection, panel_id)
            values = {"digest": _no_link(rater_id) if digest is None else digest}
            _RATERS.change(connection, rater_id, values, panel_id=panel_id)
            return _RATERS.get(connection, rater_id)

    def ratings(self, panel_id: str, rater_id: str | None = None) -> Sequence[Rating]:
        """Ratings of a panel, in the order of time.

        Args:
            panel_id: The panel.
            rater_id: Only those of this rater; None for all.
        """
        order = [ratings.c.rated_at, ratings.c.item]
        return self._list(_RATINGS, order=order, panel_id=panel_id, rater_id=rater_id)

    def keep(self, panel_id: str, rating: Rating) -> Rating:
        """Store the rating of an item, in place of the rater's earlier one.

        Args:
            panel_id: The panel.
            rating: Names the rater and the item; its time is set here.

        Raises:
            ConflictError: The panel is closed.
        """
        try:
            return self._keep_one(panel_id, rating)
        except IntegrityError:  # the same form was sent twice together, and the other was first
            return self._keep_one(panel_id, rating)

    def keep_all(
        self,
        panel_id: str,
        people: Sequence[Rater],
        said: Sequence[Rating],
    ) -> None:
        """Store ratings that come from elsewhere, all or none.

        Args:
            panel_id: The panel.
            people: The raters that are new here; they have no link.
            said: Their ratings. One that has a time keeps it, others get that of the database.

        Raises:
            ConflictError: The panel is closed.
        """
        with self._write() as connection:
            _check_open(connection, panel_id)
            now = self._database.clock(connection)
            for rater in people:
                _add_rater(connection, rater, _no_link(rater.rater_id), now)
            for rating in said:
                # 0 means "no time given" in an import.
                _keep(connection, panel_id, rating, rating.rated_at or now)

    def take_back(self, panel_id: str, rater_id: str) -> int | None:
        """Delete the newest rating of a rater.

        Args:
            panel_id: The panel.
            rater_id: The rater.

        Returns:
            The number of the item; None where there is no rating.

        Raises:
            ConflictError: The panel is closed.
        """
        theirs = (ratings.c.panel_id == panel_id) & (ratings.c.rater_id == rater_id)
        # The item breaks ties of the clock, so that undo is deterministic.
        newest = select(ratings.c.item).where(theirs).order_by(ratings.c.rated_at.desc(), ratings.c.item.desc())
        with self._write() as connection:
            _check_open(connection, panel_id)
            item = connection.execute(newest.limit(1)).scalar()
            if item is None:
                return None
            connection.execute(delete(ratings).where(theirs, ratings.c.item == item))
        return int(item)

    def close(self, project_id: str, panel_id: str) -> RatingPanel:
        """Take no more ratings.

        Raises:
            NotFoundError: There is none in the project.
            ConflictError: It is closed already.
        """
        with self._write() as connection:
            _PANELS.get(connection, panel_id, project_id=project_id)
            _check_open(connection, panel_id)
            _PANELS.change(connection, panel_id, {"closed_at": self._database.clock(connection)})
            return _PANELS.get(connection, panel_id)

    def _keep_one(self, panel_id: str, rating: Rating) -> Rating:
        with self._write() as connection:
            _check_open(connection, panel_id)
            return _keep(connection, panel_id, rating, self._database.clock(connection))


def _check_open(connection: Connection, panel_id: str) -> None:
    query = select(rating_panels.c.closed_at).where(rating_panels.c.panel_id == panel_id)
    if connection.execute(query).scalar() is not None:
        raise ConflictError(
            "this panel is closed",
            expected="a panel that still takes ratings",
            do="ask the sender of the link; a new panel can be made at any time",
        )


def _keep(connection: Connection, panel_id: str, rating: Rating, when: float) -> Rating:
    made = rating.model_copy(update={"rated_at": when})
    _RATINGS.put(connection, made, panel_id=panel_id)
    return made


def _add_rater(connection: Connection, rater: Rater, digest: str, now: float) -> Rater:
    made = rater.model_copy(update={"has_link": not digest.startswith(_NO_LINK)})
    return _RATERS.insert(connection, made, now, digest=digest)


def _no_link(rater_id: str) -> str:
    # The column is unique, so raters without a link need values that differ; 64 is its width.
    return f"{_NO_LINK}{rater_id}"[:64]
