"""Projects and keys. Of a key only its digest is kept, so the database gives none away."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.access import ApiKey, Project
from luthier.core.errors import ConflictError, NotFoundError
from luthier.store.database import Database
from luthier.store.tables import api_keys, projects


class AccessStore:
    """Who may come in. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_project(self, project_id: str, name: str) -> Project:
        """Make a project. Raises ConflictError where the id or the name is taken."""
        try:
            with self._database.write() as connection:
                now = connection.execute(select(self._database.now)).scalar_one()
                project = Project(project_id=project_id, name=name, created_at=now)
                connection.execute(insert(projects).values(**project.model_dump()))
                return project
        except IntegrityError as error:
            raise ConflictError(
                f"a project {name!r} exists already", expected="a new name", do="use that one, or choose another name"
            ) from error

    def projects(self) -> list[Project]:
        """All projects, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(projects).order_by(projects.c.number)).mappings()
            return [Project(**{k: v for k, v in row.items() if k != "number"}) for row in rows]

    def project(self, name_or_id: str) -> Project:
        """One project. Raises NotFoundError."""
        known = self.projects()
        for project in known:
            if name_or_id in (project.project_id, project.name):
                return project
        raise NotFoundError(
            f"no project {name_or_id!r}",
            expected=f"one of {', '.join(project.name for project in known)}",
            do="correct the name, or make it: luthier projects create NAME",
        )

    def add_key(self, key: ApiKey, digest: str) -> ApiKey:
        """Keep a key by the SHA-256 of its text; the time of its making is the database's."""
        with self._database.write() as connection:
            now = connection.execute(select(self._database.now)).scalar_one()
            made = key.model_copy(update={"created_at": now})
            values = made.model_dump() | {"scopes": " ".join(made.scopes), "digest": digest}
            connection.execute(insert(api_keys).values(**values))
            return made

    def key_of(self, digest: str) -> ApiKey | None:
        """The key with this digest, be it revoked or expired or not; None where there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.digest == digest)).mappings().first()
            return None if row is None else _key(row)

    def now(self) -> float:
        """The database's clock."""
        with self._database.read() as connection:
            return float(connection.execute(select(self._database.now)).scalar_one())

    def keys(self, project_id: str | None = None) -> list[ApiKey]:
        """All keys, newest first, or those of one project."""
        query = select(api_keys).order_by(api_keys.c.number.desc())
        if project_id is not None:
            query = query.where(api_keys.c.project_id == project_id)
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def revoke(self, key_id: str, project_id: str | None = None) -> ApiKey:
        """Let a key in no longer; a second time changes nothing. Raises NotFoundError, also for another project's."""
        is_it: ColumnElement[Any] = api_keys.c.key_id == key_id
        if project_id is not None:
            is_it &= api_keys.c.project_id == project_id
        with self._database.write() as connection:
            now = connection.execute(select(self._database.now)).scalar_one()
            connection.execute(update(api_keys).where(is_it, api_keys.c.revoked_at.is_(None)).values(revoked_at=now))
            row = connection.execute(select(api_keys).where(is_it)).mappings().first()
        if row is None:
            raise NotFoundError(f"no key {key_id!r}", expected="the id of a key", do="see `luthier keys list`")
        return _key(row)


def _key(row: RowMapping) -> ApiKey:
    values = {name: value for name, value in row.items() if name not in ("number", "digest")}
    return ApiKey(**(values | {"scopes": tuple(values["scopes"].split())}))
