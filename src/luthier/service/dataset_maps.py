"""Use case: the map of a version's prompts, drawn once and kept as long as its file is."""

from __future__ import annotations

from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.service.context import Context
from luthier.service.dataset_rows import keep_answer, kept_answer
from luthier.service.questions import answer_to

_NAME: Final = "map"


def known_map(context: Context, caller: Caller, version: DatasetVersion) -> dict[str, Any] | None:
    """The map, as `dataset_questions.map_answer` says it, where it was drawn already. Raises NotFoundError."""
    return kept_answer(context, caller, version, _NAME)


def draw_map(context: Context, caller: Caller, version: DatasetVersion) -> dict[str, Any]:
    """The map; drawn by a process of its own where it was not yet.

    Raises NotFoundError, DataError (a file that cannot be read), WorkError.
    """
    return keep_answer(context, caller, version, _NAME, lambda path: answer_to(context, "map", {"file": str(path)}))


def rows_of_group(drawn: dict[str, Any], group: int) -> list[dict[str, Any]]:
    """The points of a group in the order of the file; -1: those of none."""
    return [point for point in drawn["points"] if point["group"] == group]
