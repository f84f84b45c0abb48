"""Use case: keep a conversation with the answer it should have had, as a row of a dataset: a test case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.system.file_lock import file_lock
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.records import Dataset, DatasetVersion
from luthier.ml.data.rows.write_rows import json_line
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

DEFAULT_NAME: Final = "test cases"
_FILENAME: Final = "test-cases.jsonl"
_BLOCK_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 64 << 20
_LOCK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class SavedCase:
    """Where a test case was stored: it is the last row of that version.

    Attributes:
        dataset: The dataset.
        version: Its new version.
    """

    dataset: Dataset
    version: DatasetVersion


def save_case(
    context: Context, caller: Caller, conversation: Sequence[Message], reference: str, *, dataset: str, model: str
) -> SavedCase:
    """Add a row to the project's dataset of this name, as its next version; a missing dataset is made.

    Earlier answers in the conversation get weight 0: a model wrote them, and nobody has checked them.

    Args:
        conversation: Ends with a turn of the user.
        reference: The answer as it should be.
        dataset: The name of the dataset.
        model: Who wrote the first draft of the answer, for the version's details.

    Raises:
        RequestError: An empty reference or conversation, or a name that cannot be.
        ConflictError: The newest version holds other rows than conversations in JSONL, or is larger than 64 MiB.
    """
    if not conversation or conversation[-1].role != "user" or not reference.strip():
        raise RequestError(
            "a test case without a question or without an answer",
            expected="a conversation that ends with a question, and the answer that it should have",
            do="write the answer",
        )
    line = json_line(_row(conversation, reference)) + b"\n"
    details = {"model": model}
    # Two who save at once must not each make the next version of the same one: the row of one would be lost.
    with file_lock(context.home / "test-cases.lock", what="saving test cases", timeout_seconds=_LOCK_SECONDS):
        found = context.datasets.find(caller.project_id, dataset.strip())
        if found is None:
            file = dataset_versions.keep_rows(context, caller, [line], _FILENAME)
            try:
                return SavedCase(
                    *dataset_versions.create_dataset(
                        context, caller, dataset, file, origin="test case", details=details
                    )
                )
            except LuthierError:  # the name cannot be
                files.delete_file(context, caller.project_id, file.file_id)
                raise
        newest = dataset_versions.get_version(context, caller, found.dataset_id)
        rows = _checked(found, newest, dataset_versions.path_of(context, caller, newest))
        file = dataset_versions.keep_rows(context, caller, _appended(rows, line), newest.filename)
        version = dataset_versions.add_version(
            context, caller, found.dataset_id, file, origin="test case", parent=newest.number, details=details
        )
    return SavedCase(found, version)


def _row(conversation: Sequence[Message], reference: str) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for message in conversation:
        # Weight 0 is OpenAI's field for "not learned"; the last answer has none and is learned.
        unlearned = {"weight": 0} if message.role == "assistant" else {}
        turns.append({"role": message.role, "content": message.content or "", **unlearned})
    return {"messages": [*turns, {"role": "assistant", "content": reference.strip()}]}


def _checked(dataset: Dataset, version: DatasetVersion, path: Path) -> Path:
    is_fit = version.num_bytes <= _MAX_BYTES and path.suffix in (".jsonl", ".ndjson")
    if is_fit:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
        try:
            row = json.loads(first)
        except ValueError:
            row = None
        is_fit = isinstance(row, dict) and isinstance(row.get("messages"), list)
    if not is_fit:
        raise ConflictError(
            f"the dataset {dataset.name!r} holds {version.filename}, to which no conversation can be added",
            expected="a dataset of conversations ({'messages': [...]}) in JSONL, of at most 64 MiB",
            do="choose another name for the test cases",
        )
    return path


def _appended(path: Path, line: bytes) -> Iterator[bytes]:
    block = b""
    with path.open("rb") as file:
        while more := file.read(_BLOCK_BYTES):
            block = more
            yield block
    # The last line of an uploaded file may lack its line feed; without one the new row would join it.
    if not block.endswith(b"\n"):
        yield b"\n"
    yield line
