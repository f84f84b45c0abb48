"""Use case: the map of a version's prompts, drawn once and kept."""

from __future__ import annotations

from typing import Any

from luthier.core.access import Caller
from luthier.features.datasets.records import DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation


def map_of(context: Context, caller: Caller, version: DatasetVersion, *, again: bool = False) -> CachedResult:
    """The map, as `dataset_questions.map_answer` says it; begun where nobody has looked at it yet.

    again: start it again where it failed. Raises NotFoundError.
    """
    file = files.get_file(context, caller.project_id, version.file_id)
    # The same rows in two datasets share one map.
    subject = Subject(file.sha256, "map", {"suffix": files.suffix_of(file.filename)})
    found = cached_result(context, subject)
    if found.state == "unasked" or (again and found.state == "failed"):
        return start_computation(
            context, subject, lambda: answer_about(context, caller.project_id, "map", file.file_id, {})
        )
    return found


def rows_of_group(drawn: dict[str, Any], group: int) -> list[dict[str, Any]]:
    """The points of a group in the order of the file; -1: those of none."""
    return [point for point in drawn["points"] if point["group"] == group]
