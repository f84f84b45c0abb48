"""Datasets of a project: the records of datasets, versions and row decisions, and their store.

A dataset is a name with versions; a version never changes once it is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field
from sqlalchemy import Select, bindparam, delete, func, insert, select

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import Progress, SilentProgress
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import dataset_versions, datasets, files, row_decisions
from luthier.platform.files.store import hold_file

Origin = Literal[
    "upload", "import", "repair", "split", "annotation", "test case", "review", "documents", "questions"
]  # fmt: skip
"""How a version was made: uploaded by somebody, from an address, of documents, written from passages, or from an
earlier version."""
Decision = Literal["accept", "reject", "edit"]


class Dataset(FrozenModel):
    """A name for rows.

    Attributes:
        dataset_id: Its id.
        project_id: The project that owns it.
        name: Unique in the project.
        created_at: Seconds since 1970.
    """

    dataset_id: str
    project_id: str
    name: str
    created_at: float = 0.0


class DatasetVersion(FrozenModel):
    """Rows as they were at one time. The version is never changed.

    Attributes:
        dataset_id: The dataset.
        number: Counts from 1.
        file_id: The file of the project with the rows; it stays as long as the version does.
        filename: The name that it was uploaded under.
        sha256: The digest of the file.
        num_bytes: Its size.
        num_rows: How many rows it has; None where they were not, or could not be, counted.
        origin: How the version was made.
        parent: The number of the version that it was made from.
        author: Who made it.
        note: Why, in the author's words.
        details: How it was made, such as which repairs; plain JSON.
        columns: Which column is which field of a shape, as a person has chosen; empty where the file shows it.
        created_at: Seconds since 1970.
    """

    dataset_id: str
    number: int
    file_id: str
    filename: str
    sha256: str
    num_bytes: int
    num_rows: int | None
    origin: Origin
    parent: int | None = None
    author: str = "local"
    note: str = ""
    details: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    created_at: float = 0.0


class RowDecision(FrozenModel):
    """A person's decision about one row.

    Attributes:
        row: The line of the row in the file, from 1 on.
        decision: What is to become of it.
        edited: The row as it should be, for an edit.
        author: Who decided.
        decided_at: Seconds since 1970.
    """

    row: int
    decision: Decision
    edited: dict[str, Any] | None = None
    author: str = "local"
    decided_at: float = 0.0


_DATASETS: Final = RecordTable(
    datasets,
    Dataset,
    key="dataset_id",
    clock="created_at",
    missing=Missing("no dataset {key!r}", "the id of a dataset of this project", "see the list of datasets"),
)
_VERSIONS: Final = RecordTable(dataset_versions, DatasetVersion, clock="created_at")
_DECISIONS: Final = RecordTable(row_decisions, RowDecision)
_WITH_VERSIONS: Final = select(*datasets.c, dataset_versions.c.document).join(
    dataset_versions, dataset_versions.c.dataset_id == datasets.c.dataset_id
)
_NEWEST: Final = (
    select(dataset_versions.c.dataset_id, func.max(dataset_versions.c.number).label("number"))
    .group_by(dataset_versions.c.dataset_id)
    .subquery()
)
# Built once: pages ask for these again and again.
_NEWEST_VERSIONS: Final = _WITH_VERSIONS.join(
    _NEWEST,
    (_NEWEST.c.dataset_id == dataset_versions.c.dataset_id) & (_NEWEST.c.number == dataset_versions.c.number),
).where(datasets.c.project_id == bindparam("its_project"))
_DECIDED: Final = (
    select(row_decisions.c.dataset_id, row_decisions.c.version, func.count().label("num"))
    .join(
        _NEWEST,
        (row_decisions.c.dataset_id == _NEWEST.c.dataset_id) & (row_decisions.c.version == _NEWEST.c.number),
    )
    .group_by(row_decisions.c.dataset_id, row_decisions.c.version)
    .subquery()
)
_ANNOTATED: Final = (
    _WITH_VERSIONS.add_columns(_DECIDED.c.num)
    .join(
        _DECIDED,
        (dataset_versions.c.dataset_id == _DECIDED.c.dataset_id) & (dataset_versions.c.number == _DECIDED.c.version),
    )
    .where(datasets.c.project_id == bindparam("its_project"))
    .order_by(datasets.c.name)
)
_OF_FILES: Final = files.c.file_id == dataset_versions.c.file_id

_PORTION: Final = 500

DatasetAndVersion = tuple[Dataset, DatasetVersion]


class DatasetStore(Store):
    """The datasets of all projects."""

    def add(self, dataset: Dataset, first: DatasetVersion) -> DatasetAndVersion:
        """Store a new dataset with its first version, whose file will not expire any more.

        Args:
            dataset: The dataset.
            first: Its version 1.

        Raises:
            ConflictError: The project has a dataset of the name.
            NotFoundError: The file of the version is gone.
        """
        conflict = ConflictError(
            f"a dataset {dataset.name!r} exists already",
            expected="a name that is free",
            do="choose another name, or add the file as a new version of that one",
        )
        with self._write(conflict) as connection:
            # In the same transaction as the version: a file cannot expire between the check and the insert.
            hold_file(connection, self._database, dataset.project_id, first.file_id)
            now = self._database.clock(connection)
            made = _DATASETS.insert(connection, dataset, now)
            return made, _VERSIONS.insert(connection, first.model_copy(update={"number": 1}), now)

    def add_version(self, version: DatasetVersion) -> DatasetVersion:
        """Store a version under the next number, replacing its own; its file no longer expires.

        Raises:
            NotFoundError: There is no such dataset, or its project has no such file.
        """
        newest = select(func.max(dataset_versions.c.number)).where(dataset_versions.c.dataset_id == version.dataset_id)
        with self._write() as connection:
            dataset = _DATASETS.get(connection, version.dataset_id)
            hold_file(connection, self._database, dataset.project_id, version.file_id)
            # max + 1 inside the write transaction, so two writers cannot take one number.
            numbered = version.model_copy(update={"number": connection.execute(newest).scalar_one() + 1})
            return _VERSIONS.insert(connection, numbered, self._database.clock(connection))

    def list(self, project_id: str) -> list[DatasetAndVersion]:
        """The datasets of a project, each with its newest version; that of the newest version first."""
        found = self._with_versions(_NEWEST_VERSIONS, {"its_project": project_id})
        return sorted(found, key=lambda pair: pair[1].created_at, reverse=True)

    def get(self, project_id: str, dataset_id: str) -> Dataset:
        """One dataset.

        Raises:
            NotFoundError: The project has no such dataset.
        """
        return self._get(_DATASETS, dataset_id, project_id=project_id)

    def find(self, project_id: str, name: str) -> Dataset | None:
        """The project's dataset of this name; None where there is none."""
        return self._find(_DATASETS, datasets.c.name == name, project_id=project_id)

    def versions(self, dataset_id: str) -> Sequence[DatasetVersion]:
        """All versions of a dataset, newest first."""
        return self._list(_VERSIONS, dataset_id=dataset_id)

    def of_rows(self, project_id: str, digests: Sequence[str]) -> Sequence[DatasetAndVersion]:
        """The versions of a project whose rows have one of these digests (SHA-256 of the file), oldest first."""
        query = _WITH_VERSIONS.join(files, _OF_FILES).order_by(datasets.c.number, dataset_versions.c.number)
        return self._with_versions(query.where(datasets.c.project_id == project_id, files.c.sha256.in_(digests)))

    def splits_of(self, sha256: str) -> Sequence[dict[str, Any]]:
        """The documents of the splits that made a file of this digest, newest first, of any project.

        A split is found by the rows that it made, so a caller who has these rows does not learn whose they are: what
        a document says of the file that was split is left out.
        """
        found = self._records(_VERSIONS, _VERSIONS.select.join(files, _OF_FILES).where(files.c.sha256 == sha256))
        made = [one for one in found if one.origin == "split" and "split" in one.details]
        # By time: versions of different datasets have no common number to sort by.
        documents = [one.details["split"] for one in sorted(made, key=lambda one: -one.created_at)]
        # The name of the file that was split could reveal another project's data.
        return [{name: value for name, value in one.items() if name != "file"} for one in documents]

    def all_versions(self, project_id: str, limit: int) -> Sequence[DatasetAndVersion]:
        """The newest versions of all datasets of a project, at most `limit`, the newest first."""
        found = self._with_versions(_WITH_VERSIONS.where(datasets.c.project_id == project_id))
        # Sorted and cut in Python: the time is inside the JSON document, not in a column.
        return sorted(found, key=lambda pair: (pair[1].created_at, pair[1].number), reverse=True)[:limit]

    def learn_num_rows(self, file_id: str, num_rows: int) -> None:
        """Fill in how many rows a file has, in the versions whose rows were not counted when they were added.

        Args:
            file_id: The file.
            num_rows: Its rows.
        """
        query = _VERSIONS.query(file_id=file_id)
        with self._write() as connection:
            for row in connection.execute(query).mappings().all():
                version = _VERSIONS.of_row(row)
                # Versions never change, except for this one field, which is filled in once.
                if version.num_rows is None:
                    _VERSIONS.put(connection, version.model_copy(update={"num_rows": num_rows}))

    def choose_columns(self, dataset_id: str, number: int, columns: Mapping[str, str]) -> DatasetVersion:
        """Store with a version which of its columns is which field. The rows stay as they are.

        Args:
            dataset_id: The dataset.
            number: Of the version.
            columns: Field of the shape -> column of the file.

        Raises:
            NotFoundError: There is no such version.
        """
        with self._write() as connection:
            known = _VERSIONS.first(connection, is_locked=True, dataset_id=dataset_id, number=number)
            if known is None:
                raise NotFoundError(
                    f"no version {number} of dataset {dataset_id}",
                    expected="a version of the dataset",
                    do="see the versions of the dataset",
                )
            # The rows stay as they are: only how they are read is written down.
            made = known.model_copy(update={"columns": dict(columns)})
            _VERSIONS.put(connection, made)
            return made

    def columns_of_file(self, project_id: str, file_id: str) -> dict[str, str]:
        """Which column of a file is which field, as chosen for the newest version with these rows; else empty."""
        query = _WITH_VERSIONS.where(datasets.c.project_id == project_id, dataset_versions.c.file_id == file_id)
        found = [version for _, version in self._with_versions(query) if version.columns]
        return max(found, key=lambda one: one.created_at).columns if found else {}

    def files_in_use(self, file_ids: Sequence[str]) -> set[str]:
        """Those of these files that hold the rows of a version, in one query."""
        if not file_ids:
            return set()
        its = dataset_versions.c.file_id
        return set(self._scalars(select(its).where(its.in_(file_ids)).distinct()))

    def remove(self, project_id: str, dataset_id: str) -> None:
        """Delete a dataset, its versions and the decisions about their rows; files stay.

        Raises:
            NotFoundError: The project has no such dataset.
        """
        with self._write() as connection:
            _DATASETS.remove(connection, dataset_id, project_id=project_id)

    def decide(self, dataset_id: str, version: int, decision: RowDecision) -> RowDecision:
        """Store the decision about a row, in place of an earlier one.

        Args:
            dataset_id: The dataset.
            version: Number of the version.
            decision: With the line of its row; its time is set here, by the database's clock.
        """
        with self._write() as connection:
            # The time of the database orders decisions of people whose servers differ.
            made = decision.model_copy(update={"decided_at": self._database.clock(connection)})
            _DECISIONS.put(connection, made, dataset_id=dataset_id, version=version)
        return made

    def decide_open(
        self,
        dataset_id: str,
        version: int,
        lines: Sequence[int],
        decision: Decision,
        author: str,
        *,
        progress: Progress | None = None,
    ) -> Sequence[int]:
        """Store one decision about all of these rows that have none yet.

        In one transaction: a decision that somebody else stores meanwhile is never replaced.

        Args:
            dataset_id: The dataset.
            version: Number of the version.
            lines: The rows, by their lines in the file; a line that is named twice counts once.
            decision: The same for all of them.
            author: Whoever decides, as the entry names them.
            progress: Shows how many are stored; None shows nothing.

        Returns:
            The lines that got the decision.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            known = set(connection.execute(select(row_decisions.c.row).where(*_of(dataset_id, version))).scalars())
            made = [line for line in dict.fromkeys(lines) if line not in known]
            rows = [
                _DECISIONS.row(RowDecision(row=line, decision=decision, author=author, decided_at=now))
                | {"dataset_id": dataset_id, "version": version}
                for line in made
            ]
            with (progress or SilentProgress()).task("Storing decisions", len(rows), "rows") as task:
                for start in range(0, len(rows), _PORTION):
                    portion = rows[start : start + _PORTION]
                    connection.execute(insert(row_decisions), portion)
                    task.advance(len(portion))
        return made

    def undo_decision(self, dataset_id: str, version: int, row: int) -> None:
        """Delete the decision about a row, if there is one.

        Args:
            dataset_id: The dataset.
            version: Number of the version.
            row: Its line in the file.
        """
        with self._write() as connection:
            connection.execute(delete(row_decisions).where(*_of(dataset_id, version), row_decisions.c.row == row))

    def undo_decisions(self, dataset_id: str, version: int, rows: Sequence[int]) -> None:
        """Delete the decisions about several rows.

        Args:
            dataset_id: The dataset.
            version: Number of the version.
            rows: Their lines in the file; those without a decision change nothing.
        """
        with self._write() as connection:
            # In portions: databases limit the number of parameters of one statement.
            for start in range(0, len(rows), _PORTION):
                some = row_decisions.c.row.in_(rows[start : start + _PORTION])
                connection.execute(delete(row_decisions).where(*_of(dataset_id, version), some))

    def decisions(self, dataset_id: str, version: int) -> Sequence[RowDecision]:
        """The decisions about rows of a version, in their order."""
        return self._list(_DECISIONS, *_of(dataset_id, version), order=[row_decisions.c.row])

    def annotated(self, project_id: str) -> Sequence[tuple[Dataset, DatasetVersion, int]]:
        """Datasets of whose newest version rows were decided, with how many, in the order of their names."""
        rows = self._rows(_ANNOTATED, {"its_project": project_id})
        return [(_DATASETS.of_row(row), _VERSIONS.of_row(row), int(row["num"])) for row in rows]

    def _with_versions(
        self, query: Select[Any], values: Mapping[str, Any] | None = None
    ) -> Sequence[DatasetAndVersion]:
        return [(_DATASETS.of_row(row), _VERSIONS.of_row(row)) for row in self._rows(query, values)]


def _of(dataset_id: str, version: int) -> tuple[Any, Any]:
    return row_decisions.c.dataset_id == dataset_id, row_decisions.c.version == version
