"""What people write about runs: name, note, tags, group, star and archive; and saved views of the list of runs.

Until somebody names a run, it is called by what its request asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from sqlalchemy import delete, insert, select, update

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.features.runs.store import DELETED
from luthier.platform.audit_log.service import record
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import run_labels, run_tags, run_values, run_views
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

MAX_NAME: Final = 200
MAX_NOTE: Final = 10_000
MAX_GROUP: Final = 100
MAX_TAG: Final = 50
MAX_TAGS: Final = 20
MAX_VIEWS: Final = 100
VIEW_FIELDS: Final = ("filter", "status", "text", "sort", "columns", "archived")
"""Parameters of the list that a view keeps; the page within the list is none of them."""
_MAX_QUERY: Final = 4_000


@dataclass(frozen=True, slots=True)
class RunLabels:
    """What was written about a run.

    Attributes:
        name: Its name; empty: its default name.
        note: Free text.
        group: The group that it is listed with; empty for none.
        is_starred: Whether it has a star.
        is_archived: Whether the list hides it.
        tags: In the order of the alphabet.
    """

    name: str = ""
    note: str = ""
    group: str = ""
    is_starred: bool = False
    is_archived: bool = False
    tags: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As answers of the API and of commands have it."""
        return {
            "name": self.name,
            "note": self.note,
            "group": self.group,
            "is_starred": self.is_starred,
            "is_archived": self.is_archived,
            "tags": list(self.tags),
        }


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """What is to change; None leaves a field as it is. tags: all of them; add_tags, remove_tags: some."""

    name: str | None = None
    note: str | None = None
    group: str | None = None
    is_starred: bool | None = None
    is_archived: bool | None = None
    tags: Sequence[str] | None = None
    add_tags: Sequence[str] = ()
    remove_tags: Sequence[str] = ()

    def applied(self, old: RunLabels) -> RunLabels:
        """The labels after the change.

        Raises:
            RequestError: A text that is too long, or a bad tag.
        """
        kept = [tag for tag in (old.tags if self.tags is None else self.tags) if tag not in set(self.remove_tags)]
        given = {"is_starred": self.is_starred, "is_archived": self.is_archived}
        # None stays None here: a field that was not given is not changed, an empty text clears it.
        texts = {
            "name": _text("name", self.name, MAX_NAME),
            "note": _text("note", self.note, MAX_NOTE, is_one_line=False),
            "group": _text("group", self.group, MAX_GROUP),
        }
        changed: dict[str, Any] = {name: value for name, value in (given | texts).items() if value is not None}
        return replace(old, **changed, tags=_tags([*kept, *self.add_tags]))


class SavedView(FrozenModel):
    """A saved view of the list of runs.

    Attributes:
        name: Unique in its project.
        query: The parameters of its address.
        created_by: Who saved it.
        created_at: Seconds since 1970 by the database's clock.
    """

    name: str
    query: str
    created_by: str
    created_at: float = 0.0


_VIEWS: Final = RecordTable(
    run_views,
    SavedView,
    key="name",
    missing=Missing("no view {key!r}", "the name of a saved view of this project", "open the list of runs"),
    clock="created_at",
)


class RunLabelStore(Store):
    """Labels of runs, and saved views."""

    def of_runs(self, run_ids: Sequence[str]) -> dict[str, RunLabels]:
        """The labels of these runs; of each, also where nothing was written."""
        if not run_ids:  # as on pages of a project without runs: queries for nothing
            return {}
        tags: dict[str, list[str]] = {}
        with self._database.read() as connection:
            rows = connection.execute(select(run_labels).where(run_labels.c.run_id.in_(run_ids))).mappings().all()
            # Two queries and not a join: a run with twenty tags would be twenty rows with the same note.
            for run_id, tag in connection.execute(select(run_tags).where(run_tags.c.run_id.in_(run_ids))).all():
                tags.setdefault(run_id, []).append(tag)
        found = {row["run_id"]: row for row in rows}
        return {run_id: _labels(found.get(run_id), tags.get(run_id, ())) for run_id in run_ids}

    def is_deleted(self, run_id: str) -> bool:
        """Whether the run was deleted, and only its job is still there."""
        mark = self._scalar(select(run_labels.c.is_archived).where(run_labels.c.run_id == run_id))
        return bool(mark == DELETED)

    def deleted_of(self, run_ids: Sequence[str]) -> set[str]:
        """Those of these runs that were deleted, and of which only the job is still there."""
        if not run_ids:
            return set()
        found = select(run_labels.c.run_id).where(run_labels.c.run_id.in_(run_ids), run_labels.c.is_archived == DELETED)
        return set(self._scalars(found))

    def default_names(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The default names of the runs that have begun."""
        is_name = run_values.c.run_id.in_(run_ids) & (run_values.c.key == "name")
        return {row["run_id"]: row["text"] for row in self._rows(select(run_values).where(is_name))}

    def names(self, run_ids: Sequence[str]) -> dict[str, str]:
        """What people call these runs: the name that was given, else the default one, else the id."""
        if not run_ids:
            return {}
        labels, defaults = self.of_runs(run_ids), self.default_names(run_ids)
        return {run_id: labels[run_id].name or defaults.get(run_id, run_id) for run_id in run_ids}

    def put(self, run_id: str, labels: RunLabels) -> None:
        """Write the labels of a run in place of the old ones."""
        values = {
            "name": labels.name,
            "note": labels.note,
            "group_name": labels.group,
            "is_starred": int(labels.is_starred),
            "is_archived": int(labels.is_archived),
        }
        with self._write() as connection:
            changed = update(run_labels).where(run_labels.c.run_id == run_id).values(**values)
            # Update first, insert where nothing was changed: an upsert is another statement in each database.
            if connection.execute(changed).rowcount == 0:
                connection.execute(insert(run_labels).values(run_id=run_id, **values))
            # All tags are replaced: at most MAX_TAGS rows, and no difference to compute.
            connection.execute(delete(run_tags).where(run_tags.c.run_id == run_id))
            if labels.tags:
                connection.execute(insert(run_tags), [{"run_id": run_id, "tag": tag} for tag in labels.tags])

    def views(self, project_id: str) -> list[SavedView]:
        """The saved views of a project, by name."""
        return self._list(_VIEWS, order=[run_views.c.name], project_id=project_id)

    def add_view(self, project_id: str, view: SavedView) -> None:
        """Save a view.

        Raises:
            ConflictError: The project has one of that name, or too many.
        """
        taken = ConflictError(
            f"a view {view.name!r} exists", expected="a new name", do="choose another name, or delete the old view"
        )
        # Two at once may exceed the limit by one, which does no harm: it only bounds the list.
        if len(self.views(project_id)) >= MAX_VIEWS:
            raise ConflictError(
                f"{MAX_VIEWS} saved views", expected=f"fewer than {MAX_VIEWS}", do="delete views that are not used"
            )
        with self._write(taken) as connection:
            _VIEWS.insert(connection, view, self._database.clock(connection), project_id=project_id)

    def delete_view(self, project_id: str, name: str) -> None:
        """Delete a view.

        Raises:
            NotFoundError: The project has no such view.
        """
        self._delete(_VIEWS, name, project_id=project_id)


def save_view(context: Context, caller: Caller, name: str, query: str) -> SavedView:
    """Keep parameters of the list under a name.

    Raises:
        RequestError: The name is empty or too long, or the query is too long.
        ConflictError: The project has a view of that name, or too many views.
    """
    shown = _text("name of the view", name, MAX_GROUP)
    if not shown:
        raise RequestError("a view without a name", expected="a name", do="write a name for the view")
    kept = view_query(dict(parse_qsl(query)))
    if len(kept) > _MAX_QUERY:
        raise RequestError(
            f"a view of {len(kept):,} characters", expected=f"at most {_MAX_QUERY:,}", do="use fewer columns"
        )
    view = SavedView(name=shown, query=kept, created_by=caller.name)
    with context.database.transaction():
        context.run_labels.add_view(caller.project_id, view)
        record(context, caller, "run_view.saved", shown, {"query": kept})
    return view


def delete_view(context: Context, caller: Caller, name: str) -> None:
    """Delete a saved view of the project.

    Raises:
        NotFoundError: The project has no such view.
    """
    with context.database.transaction():
        context.run_labels.delete_view(caller.project_id, name)
        record(context, caller, "run_view.deleted", name[:MAX_GROUP])


def view_query(given: Mapping[str, str]) -> str:
    """The parameters of a view as text, in one order: equal lists have equal addresses."""
    return urlencode({name: given[name] for name in VIEW_FIELDS if given.get(name)})


def _labels(row: Any, tags: Sequence[str]) -> RunLabels:
    if row is None:
        return RunLabels(tags=tuple(sorted(tags)))
    return RunLabels(
        row["name"],
        row["note"],
        row["group_name"],
        bool(row["is_starred"]),
        bool(row["is_archived"]),
        tuple(sorted(tags)),
    )


def _text(what: str, value: str | None, most: int, *, is_one_line: bool = True) -> str | None:
    if value is None:
        return None
    # Line breaks and runs of spaces in a name would break tables and commands.
    shown = " ".join(value.split()) if is_one_line else value.replace("\r\n", "\n").strip()
    if len(shown) > most:
        raise RequestError(
            f"a {what} of {len(shown):,} characters", expected=f"at most {most:,} characters", do="shorten it"
        )
    # PostgreSQL cannot store NUL in a text, SQLite can: refused for both.
    if "\0" in shown:
        raise RequestError(f"a {what} with a NUL character", expected="text", do="remove the character")
    return shown


def _tags(given: Sequence[str]) -> tuple[str, ...]:
    found = sorted({tag for one in given if (tag := one.strip().lower())})
    for tag in found:
        if len(tag) > MAX_TAG or not all(character.isalnum() or character in "-_./" for character in tag):
            raise RequestError(
                f"the tag {tag[: MAX_TAG + 10]!r}",
                expected=f"at most {MAX_TAG} letters, digits, and - _ . /",
                do="write one word for each tag",
            )
    if len(found) > MAX_TAGS:
        raise RequestError(f"{len(found)} tags", expected=f"at most {MAX_TAGS} a run", do="remove some")
    return tuple(found)


def asked_of(job: Job | None) -> dict[str, str]:
    """Base model, method and training file of a job's request, as text, where its document has them."""
    document: dict[str, Any] = {} if job is None else job.document
    if isinstance(request := document.get("request"), dict):
        method = request.get("method") or {}
        return {
            "base_model": str(request.get("model", "")),
            "method": str(method.get("type", "supervised")),
            "train": str(request.get("training_file", "")),
        }
    recipe = document.get("recipe") or document.get("asked") or {}
    if not isinstance(recipe, dict) or not recipe:
        return {}
    method, data = recipe.get("method") or {}, recipe.get("data") or {}
    return {
        "base_model": last_part(str(recipe.get("base_model", ""))),
        "method": str(method.get("name") or "") if isinstance(method, dict) else str(method),
        "train": _rows_asked(data.get("train", "")) if isinstance(data, dict) else "",
    }


def _rows_asked(train: Any) -> str:
    """The training rows of a recipe as text: a file, or how many sources."""
    return f"{len(train)} sources" if isinstance(train, list) else last_part(str(train))


def last_part(name: str) -> str:
    """The last part of a path of this machine; other names as they are."""
    return name.rsplit("/", 1)[-1] if name.startswith("/") else name
