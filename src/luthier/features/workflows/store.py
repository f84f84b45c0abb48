"""Work in stages, as it is written down after each."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select, update

from luthier.core.errors import NotFoundError
from luthier.core.text.suggest import suggest_ids
from luthier.core.workflows.pipeline import Pipeline, PipelineKind
from luthier.platform.db.database import Database
from luthier.platform.db.tables import pipelines


class PipelineStore:
    """The pipelines of all projects. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, pipeline: Pipeline, project_id: str) -> Pipeline:
        """Add one, with the time of the database."""
        with self._database.write() as connection:
            made = pipeline.model_copy(update={"created_at": self._database.clock(connection)})
            values = {"pipeline_id": made.pipeline_id, "project_id": project_id, "kind": made.kind}
            connection.execute(insert(pipelines).values(**values, document=made.model_dump_json()))
        return made

    def save(self, pipeline: Pipeline) -> None:
        """Write down how far one is. Raises NotFoundError."""
        is_it = pipelines.c.pipeline_id == pipeline.pipeline_id
        with self._database.write() as connection:
            changed = connection.execute(update(pipelines).where(is_it).values(document=pipeline.model_dump_json()))
            if changed.rowcount == 0:
                raise self._unknown(pipeline.pipeline_id)

    def get(self, pipeline_id: str, project_id: str | None = None) -> Pipeline:
        """One by its id. Raises NotFoundError, naming the nearest ids of the project, or of all where none is given."""
        query = select(pipelines.c.document).where(pipelines.c.pipeline_id == pipeline_id)
        if project_id is not None:
            query = query.where(pipelines.c.project_id == project_id)
        with self._database.read() as connection:
            document = connection.execute(query).scalar()
        if document is None:
            raise self._unknown(pipeline_id, project_id)
        return Pipeline.model_validate_json(document)

    def list(
        self, project_id: str, kind: PipelineKind | None = None, *, limit: int | None = None
    ) -> Sequence[Pipeline]:
        """A project's pipelines, newest first; of one kind, where it is given, and at most `limit`."""
        query = select(pipelines.c.document).where(pipelines.c.project_id == project_id)
        if kind is not None:
            query = query.where(pipelines.c.kind == kind)
        query = query.order_by(pipelines.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [Pipeline.model_validate_json(document) for document in connection.execute(query).scalars()]

    def _unknown(self, pipeline_id: str, project_id: str | None = None) -> NotFoundError:
        newest_first = select(pipelines.c.pipeline_id).order_by(pipelines.c.number.desc())
        if project_id is not None:
            newest_first = newest_first.where(pipelines.c.project_id == project_id)
        with self._database.read() as connection:
            known = connection.execute(newest_first).scalars().all()
        return NotFoundError(
            f"nothing under way {pipeline_id!r}; {suggest_ids(pipeline_id, known)}",
            expected="the id that it was given when it began",
            do="list them: luthier pipelines list",
        )
