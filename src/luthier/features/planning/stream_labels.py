"""The labels of streamed rows of this machine: all rows are read for them once in a home.

What was found is stored under a digest of all that decides it. The workers of a study, the attempts of a job, a resume
and the forms of the server take it from there, and a process that starts meanwhile waits for the one that reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.errors import ConflictError, DataError
from luthier.core.ids import sha256_document
from luthier.core.ports import Progress
from luthier.core.system.files import file_lock, sync
from luthier.core.system.libraries import version

if TYPE_CHECKING:
    from luthier.features.planning.streamed_rows import StreamedRows

_MAX_KEPT: Final = 4
_MAX_ANSWERS: Final = 100_000
"""Different answers of rows that are to have labels."""
_MAX_BYTES: Final = 64 << 20
"""Of all stored answers; those that were used longest ago are removed."""
_WAIT_SECONDS: Final = 3600.0
"""For a process that reads the same rows; then this one reads them, too."""
_FILE: Final = "answers.json"
_counted: Final[dict[str, Counter[str]]] = {}
"""Answers of streams that this process knows, by what decides them."""


class StreamLabels:
    """Reads the answers of all streamed rows, or takes them from where a process has stored them.

    Args:
        folder: Where they are stored; made when the first are.
        progress: Shows the reading.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress

    def of(self, stream: StreamedRows) -> Counter[str]:
        """Each answer of all streamed rows with its number of rows, without rows of other splits.

        Raises:
            DataError: A row that cannot be read, has another shape or no answer; or more different answers than labels.
        """
        shapes = [[one.shape, dict(one.mapping)] for one in stream.shapes]
        key = sha256_document([version("luthier"), stream.digest, shapes, sorted(stream.left_out)])
        if key not in _counted:
            found = self._stored_or_read(self._folder / key, stream)
            for oldest in list(_counted)[: max(0, len(_counted) + 1 - _MAX_KEPT)]:
                del _counted[oldest]
            _counted[key] = found
        return _counted[key]

    def _stored_or_read(self, place: Path, stream: StreamedRows) -> Counter[str]:
        if (found := _stored(place)) is not None:
            return found
        with self._alone(place):
            # Another process may have read them while this one waited.
            if (found := _stored(place)) is not None:
                return found
            found = _read(stream, self._progress)
            try:
                _keep(place, found)
            except OSError as error:
                with self._progress.task(f"Labels are not kept: {error.strerror or error}", total=None, unit="rows"):
                    pass
        return found

    @contextmanager
    def _alone(self, place: Path) -> Iterator[None]:
        """Wait until no other process of the home reads these rows; without a place for the lock nobody waits."""
        lock, what = place / "lock", "the reading of labels"
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(lock, what=what, timeout_seconds=0))
            except ConflictError:
                waits = self._progress.task("Another process reads the labels", total=None, unit="rows")
                with waits, suppress(ConflictError):
                    held.enter_context(file_lock(lock, what=what, timeout_seconds=_WAIT_SECONDS))
            except OSError:
                pass
            yield


def _stored(place: Path) -> Counter[str] | None:
    """What was stored; None where nothing was, or the file is damaged."""
    from luthier.ml.data.files.bounded_folder import mark_used

    try:
        document = json.loads((place / _FILE).read_bytes())
        found = Counter({str(answer): int(num) for answer, num in document["answers"]})
        if found.total() != document["num_rows"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    mark_used(place / _FILE)
    return found


def _keep(place: Path, found: Counter[str]) -> None:
    from luthier.ml.data.files.bounded_folder import remove_least_used

    place.mkdir(parents=True, exist_ok=True)
    partial = place / f"{_FILE}.partial"
    partial.write_text(json.dumps({"num_rows": found.total(), "answers": list(found.items())}), encoding="ascii")
    sync(partial)
    partial.replace(place / _FILE)
    remove_least_used(place.parent, _MAX_BYTES, newest=place)


def _read(stream: StreamedRows, progress: Progress) -> Counter[str]:
    from luthier.ml.data.stream.reading import all_records
    from luthier.ml.data.stream.rows import mapped
    from luthier.ml.data.text.normalise import content_key

    found = Counter[str]()
    shards = [shard for lane in stream.lanes for shard in lane]
    with progress.task("Reading labels", total=None, unit="rows") as task:
        for record in all_records(shards, stream.selections):
            task.advance()
            example = mapped(record, stream.shapes[record.source])
            if stream.left_out and content_key(example) in stream.left_out:
                continue
            if example.prompt is None or not (example.reference or "").strip():
                raise DataError(
                    f"row {example.id} of a streamed source has no label in words, or no prompt",
                    expected="a prompt and a label in every row",
                    do="give the row its label, or take it out",
                )
            found[example.reference or ""] += 1
            if len(found) > _MAX_ANSWERS:
                raise DataError(
                    f"the first {sum(found.values()):,} streamed rows have {len(found):,} different answers",
                    expected=f"labels: at most {_MAX_ANSWERS:,} different ones",
                    do="check data.columns: is the label in the column that is read as answer?",
                )
    return found
