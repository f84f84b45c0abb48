"""Use case: the difference between two versions of a dataset, found once and kept as long as the newer file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.access import Caller
from luthier.core.dataset_version import DatasetVersion
from luthier.core.errors import RequestError
from luthier.service import dataset_versions
from luthier.service.context import Context
from luthier.service.dataset_rows import answer_name, keep_answer, kept_answer
from luthier.service.questions import answer_to


def known_difference(
    context: Context, caller: Caller, old: DatasetVersion, new: DatasetVersion, key: str | None = None
) -> dict[str, Any] | None:
    """The difference, where it was found already. Raises NotFoundError."""
    return kept_answer(context, caller, new, _name(old, key))


def difference(
    context: Context, caller: Caller, old: DatasetVersion, new: DatasetVersion, key: str | None = None
) -> dict[str, Any]:
    """What changed from one version to another, as `dataset_questions.diff_answer` says it.

    key: the field that names a row; None takes its id, else its prompt, else its place.

    Raises NotFoundError, DataError (files that cannot be read, rows without the key), WorkError, and RequestError for a
    version against itself.
    """
    if old.number == new.number:
        raise RequestError(
            f"version {old.number} against itself", expected="two versions", do="choose another one of the two"
        )

    def ask(path: Path) -> dict[str, Any]:
        before = dataset_versions.path_of(context, caller, old)
        return answer_to(context, "diff", {"old": str(before), "new": str(path), "key": key})

    return keep_answer(context, caller, new, _name(old, key), ask)


def _name(old: DatasetVersion, key: str | None) -> str:
    return answer_name("diff", {"old": old.sha256, "filename": old.filename, "key": key})
