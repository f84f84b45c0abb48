"""Records of workflows, stored after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.workflows.pipeline import Pipeline, PipelineKind
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import pipelines

_PIPELINES: Final = RecordTable(
    pipelines,
    Pipeline,
    key="pipeline_id",
    clock="created_at",
    missing=Missing(
        "no workflow {key!r}",
        "the id that it was given when it began",
        "list them: luthier pipelines list",
        suggests=True,
    ),
)


class PipelineStore(Store):
    """The pipelines of all projects."""

    def create(self, pipeline: Pipeline, project_id: str) -> Pipeline:
        """Add one, with the time of the database."""
        return self._insert(_PIPELINES, pipeline, project_id=project_id)

    def save(self, pipeline: Pipeline) -> None:
        """Store the progress of a workflow.

        Raises:
            NotFoundError: There is no such workflow.
        """
        self._save(_PIPELINES, pipeline)

    def get(self, pipeline_id: str, project_id: str | None = None) -> Pipeline:
        """One by its id.

        Raises:
            NotFoundError: There is no such workflow, or it is of another project; the message names the nearest ids.
        """
        return self._get(_PIPELINES, pipeline_id, project_id=project_id)

    def list(
        self, project_id: str, kind: PipelineKind | None = None, *, limit: int | None = None
    ) -> Sequence[Pipeline]:
        """Pipelines of a project, newest first.

        Args:
            project_id: The project.
            kind: Only pipelines of this kind; None for all.
            limit: The most pipelines; None for all.
        """
        return self._list(_PIPELINES, project_id=project_id, kind=kind, limit=limit)
