"""Use case: the difference between two versions of a dataset, found once and kept."""

from __future__ import annotations

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.features.datasets.records import DatasetVersion
from luthier.features.files.references import answer_about
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation


def difference(
    context: Context,
    caller: Caller,
    old: DatasetVersion,
    new: DatasetVersion,
    *,
    key: str | None = None,
    again: bool = False,
) -> CachedResult:
    """The changes from one version to another, as `analysis.diff_answer` returns them; started on first request.

    Args:
        key: The field that names a row; None takes its id, else its prompt, else its place.
        again: Start again where it failed.

    Raises:
        NotFoundError: The file of a version is gone.
        RequestError: A version against itself.
    """
    if old.number == new.number:
        raise RequestError(
            f"version {old.number} against itself", expected="two versions", do="choose another one of the two"
        )
    before, after = (files.get_file(context, caller.project_id, one.file_id) for one in (old, new))
    # The suffix decides how bytes are parsed, so it belongs to the cache key beside the digests.
    suffixes = [files.suffix_of(file.filename) for file in (before, after)]
    subject = Subject(after.sha256, "diff", {"old": before.sha256, "suffixes": suffixes, "key": key})
    found = cached_result(context, subject)
    if found.state != "unasked" and not (again and found.state == "failed"):
        return found
    return start_computation(
        context,
        subject,
        lambda: answer_about(context, caller.project_id, "diff", after.file_id, {"key": key}, against=before.file_id),
    )
