"""Datasets with their versions, and what people said of rows. A version, once made, is never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.features.datasets.records import Dataset, DatasetVersion, RowDecision
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.store import append_audit_event
from luthier.platform.db.database import Database
from luthier.platform.db.tables import dataset_versions, datasets, files, row_decisions
from luthier.platform.files.store import hold_file


class DatasetStore:
    """The datasets of all projects. Every method is one short transaction, which writes the audit events too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, dataset: Dataset, first: DatasetVersion, audit_event: AuditEvent | None = None
    ) -> tuple[Dataset, DatasetVersion]:
        """Keep a new dataset with its first version, whose file will not expire any more.

        Raises ConflictError where the project has one of the name, NotFoundError where the file is gone.
        """
        try:
            with self._database.write() as connection:
                hold_file(connection, self._database, dataset.project_id, first.file_id)
                made = dataset.model_copy(update={"created_at": self._database.clock(connection)})
                connection.execute(insert(datasets).values(**made.model_dump()))
                version = self._add_version(connection, first.model_copy(update={"number": 1}), made.created_at)
                self._log(connection, audit_event)
        except IntegrityError as error:
            raise ConflictError(
                f"a dataset {dataset.name!r} exists already",
                expected="a name that is free",
                do="choose another name, or bring the file as a new version of that one",
            ) from error
        return made, version

    def add_version(self, version: DatasetVersion, audit_event: AuditEvent | None = None) -> DatasetVersion:
        """Keep a version under the next number, whatever number it has; its file will not expire any more.

        Raises NotFoundError, for the dataset or the file.
        """
        owner = select(datasets.c.project_id).where(datasets.c.dataset_id == version.dataset_id)
        with self._database.write() as connection:
            numbers = select(func.max(dataset_versions.c.number))
            newest = connection.execute(numbers.where(dataset_versions.c.dataset_id == version.dataset_id)).scalar()
            if newest is None:
                raise no_such_dataset(version.dataset_id)
            project_id = connection.execute(owner).scalar_one()
            hold_file(connection, self._database, project_id, version.file_id)
            numbered = version.model_copy(update={"number": newest + 1})
            made = self._add_version(connection, numbered, self._database.clock(connection))
            self._log(connection, audit_event)
        return made

    def list(self, project_id: str) -> list[tuple[Dataset, DatasetVersion]]:
        """The datasets of a project, each with its newest version; that of the newest version first."""
        newest = (
            select(dataset_versions.c.dataset_id, func.max(dataset_versions.c.number).label("number"))
            .group_by(dataset_versions.c.dataset_id)
            .subquery()
        )
        query = (
            select(datasets, dataset_versions.c.document)
            .join(newest, newest.c.dataset_id == datasets.c.dataset_id)
            .join(
                dataset_versions,
                (dataset_versions.c.dataset_id == newest.c.dataset_id) & (dataset_versions.c.number == newest.c.number),
            )
            .where(datasets.c.project_id == project_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        found = [(_dataset(row), DatasetVersion.model_validate_json(row["document"])) for row in rows]
        return sorted(found, key=lambda pair: pair[1].created_at, reverse=True)

    def get(self, project_id: str, dataset_id: str) -> Dataset:
        """One dataset. Raises NotFoundError, also for another project's."""
        is_it = (datasets.c.project_id == project_id) & (datasets.c.dataset_id == dataset_id)
        with self._database.read() as connection:
            row = connection.execute(select(datasets).where(is_it)).mappings().first()
        if row is None:
            raise no_such_dataset(dataset_id)
        return _dataset(row)

    def find(self, project_id: str, name: str) -> Dataset | None:
        """The project's dataset of this name; None where there is none."""
        is_it = (datasets.c.project_id == project_id) & (datasets.c.name == name)
        with self._database.read() as connection:
            row = connection.execute(select(datasets).where(is_it)).mappings().first()
        return None if row is None else _dataset(row)

    def versions(self, dataset_id: str) -> Sequence[DatasetVersion]:
        """All versions of a dataset, newest first."""
        query = select(dataset_versions.c.document).where(dataset_versions.c.dataset_id == dataset_id)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(dataset_versions.c.number.desc())).scalars()
            return [DatasetVersion.model_validate_json(document) for document in found]

    def of_rows(self, project_id: str, digests: Sequence[str]) -> Sequence[tuple[Dataset, DatasetVersion]]:
        """The versions of a project whose rows have one of these digests (SHA-256 of the file), oldest first."""
        query = (
            select(datasets, dataset_versions.c.document)
            .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.dataset_id)
            .join(files, files.c.file_id == dataset_versions.c.file_id)
            .where(datasets.c.project_id == project_id, files.c.sha256.in_(digests))
            .order_by(datasets.c.number, dataset_versions.c.number)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [(_dataset(row), DatasetVersion.model_validate_json(row["document"])) for row in rows]

    def splits_of(self, sha256: str) -> Sequence[dict[str, Any]]:
        """The documents of the splits that made a file of this digest, newest first, whichever project split it.

        A split is found by the rows that it made, so a caller who has these rows learns nothing of whose they are: what
        a document says of the file that was split is left out.
        """
        query = (
            select(dataset_versions.c.document)
            .join(files, files.c.file_id == dataset_versions.c.file_id)
            .where(files.c.sha256 == sha256)
        )
        with self._database.read() as connection:
            found = [DatasetVersion.model_validate_json(one) for one in connection.execute(query).scalars()]
        made = [one for one in found if one.origin == "split" and "split" in one.details]
        documents = [one.details["split"] for one in sorted(made, key=lambda one: -one.created_at)]
        return [{name: value for name, value in one.items() if name != "file"} for one in documents]

    def all_versions(self, project_id: str, limit: int) -> Sequence[tuple[Dataset, DatasetVersion]]:
        """The newest versions of all datasets of a project, at most `limit`, the newest first."""
        query = (
            select(datasets, dataset_versions.c.document)
            .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.dataset_id)
            .where(datasets.c.project_id == project_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        found = [(_dataset(row), DatasetVersion.model_validate_json(row["document"])) for row in rows]
        return sorted(found, key=lambda pair: (pair[1].created_at, pair[1].number), reverse=True)[:limit]

    def learn_num_rows(self, file_id: str, num_rows: int) -> None:
        """Write down how many rows a file has with the versions whose rows were not counted when they came."""
        of_file = dataset_versions.c.file_id == file_id
        with self._database.write() as connection:
            rows = connection.execute(select(dataset_versions).where(of_file)).mappings().all()
            for row in rows:
                version = DatasetVersion.model_validate_json(row["document"])
                counted = version.model_copy(update={"num_rows": num_rows})
                is_it = (dataset_versions.c.dataset_id == version.dataset_id) & (
                    dataset_versions.c.number == version.number
                )
                if version.num_rows is None:
                    document = counted.model_dump_json()
                    connection.execute(update(dataset_versions).where(is_it).values(document=document))

    def using_file(self, file_id: str) -> Sequence[tuple[str, int]]:
        """The names of datasets, with the numbers of their versions, that a file holds the rows of."""
        query = (
            select(datasets.c.name, dataset_versions.c.number)
            .join(datasets, datasets.c.dataset_id == dataset_versions.c.dataset_id)
            .where(dataset_versions.c.file_id == file_id)
        )
        with self._database.read() as connection:
            return [(name, number) for name, number in connection.execute(query)]

    def remove(self, project_id: str, dataset_id: str, audit_event: AuditEvent | None = None) -> None:
        """Forget a dataset, its versions and what was said of their rows; files stay. Raises NotFoundError."""
        is_it = (datasets.c.project_id == project_id) & (datasets.c.dataset_id == dataset_id)
        with self._database.write() as connection:
            if connection.execute(delete(datasets).where(is_it)).rowcount == 0:
                raise no_such_dataset(dataset_id)
            self._log(connection, audit_event)

    def decide(self, dataset_id: str, version: int, decision: RowDecision) -> RowDecision:
        """Keep what was said of a row; what was said of it before is forgotten."""
        values = {"dataset_id": dataset_id, "version": version, "row": decision.row}
        is_it = (
            (row_decisions.c.dataset_id == dataset_id)
            & (row_decisions.c.version == version)
            & (row_decisions.c.row == decision.row)
        )
        with self._database.write() as connection:
            made = decision.model_copy(update={"decided_at": self._database.clock(connection)})
            connection.execute(delete(row_decisions).where(is_it))
            connection.execute(insert(row_decisions).values(**values, document=made.model_dump_json()))
        return made

    def undo_decision(self, dataset_id: str, version: int, row: int) -> None:
        """Forget what was said of a row."""
        is_it = (
            (row_decisions.c.dataset_id == dataset_id)
            & (row_decisions.c.version == version)
            & (row_decisions.c.row == row)
        )
        with self._database.write() as connection:
            connection.execute(delete(row_decisions).where(is_it))

    def decisions(self, dataset_id: str, version: int) -> Sequence[RowDecision]:
        """What was said of rows of a version, in their order."""
        is_it = (row_decisions.c.dataset_id == dataset_id) & (row_decisions.c.version == version)
        query = select(row_decisions.c.document).where(is_it).order_by(row_decisions.c.row)
        with self._database.read() as connection:
            return [RowDecision.model_validate_json(document) for document in connection.execute(query).scalars()]

    def _add_version(self, connection: Connection, version: DatasetVersion, now: float) -> DatasetVersion:
        made = version.model_copy(update={"created_at": now})
        values = {"dataset_id": made.dataset_id, "number": made.number, "file_id": made.file_id}
        connection.execute(insert(dataset_versions).values(**values, document=made.model_dump_json()))
        return made

    def _log(self, connection: Connection, audit_event: AuditEvent | None) -> None:
        if audit_event is not None:
            append_audit_event(connection, self._database.now, audit_event)


def no_such_dataset(dataset_id: str) -> NotFoundError:
    """What to tell who asks for a dataset that the project has not."""
    return NotFoundError(
        f"no dataset {dataset_id!r}", expected="the id of a dataset of this project", do="see the list of datasets"
    )


def _dataset(row: RowMapping) -> Dataset:
    return Dataset(**{name: value for name, value in row.items() if name not in ("number", "document")})
