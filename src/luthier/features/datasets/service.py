"""Use cases: the datasets of a project: create one, add a version, list versions, find their files, save a test case.

A saved case is a conversation with the answer that it should have had, as a row of a dataset.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.conversation import Message
from luthier.core.data_sources import DATA_SUFFIXES
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.system.files import file_lock
from luthier.features.datasets.rows import look
from luthier.features.datasets.store import Dataset, DatasetVersion, Origin
from luthier.ml.data.files.source import WORKBOOKS
from luthier.ml.data.rows.outputs import json_line
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redacted_errors

MAX_NAME_CHARACTERS: Final = 100
MAX_NOTE_CHARACTERS: Final = 1000


def create_dataset(
    context: Context,
    caller: Caller,
    name: str,
    file: StoredFile,
    *,
    origin: Origin = "upload",
    note: str = "",
    details: dict[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[Dataset, DatasetVersion]:
    """Make a dataset of a file of the project.

    Args:
        context: of the home.
        caller: whose project gets it.
        name: of the dataset; unique in the project.
        file: its rows, the first version.
        origin: where the rows are from.
        note: on the version.
        details: facts about the origin.
        columns: which column is which field of a shape; None where the file shows it.

    Returns:
        The dataset and its first version.

    Raises:
        RequestError: the name cannot be one.
        ConflictError: the name is taken.
    """
    name = checked_name(name)
    dataset = Dataset(dataset_id=new_id("data"), project_id=caller.project_id, name=name)
    first = _version(context, caller, dataset.dataset_id, file, origin, None, note, details, columns)
    with context.database.transaction():
        made = context.datasets.add(dataset, first)
        record(context, caller, "dataset.created", dataset.dataset_id, {"name": name, "file": file.file_id})
    return made


def checked_name(name: str) -> str:
    """The name of a dataset without outer spaces. Raises RequestError for one that cannot be."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: MAX_NAME_CHARACTERS + 1]!r} for a dataset",
            expected=f"1 to {MAX_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    return name


def free_name(context: Context, project_id: str, name: str) -> str:
    """The name, cut to its length, with a number behind it where the project has a dataset of that name."""
    name = "".join(character for character in name if character.isprintable()).strip() or "data"
    found, number = name[:MAX_NAME_CHARACTERS], 1
    while context.datasets.find(project_id, found) is not None:
        number += 1
        found = f"{name[: MAX_NAME_CHARACTERS - len(f' {number}')]} {number}"
    return found


def add_version(
    context: Context,
    caller: Caller,
    dataset_id: str,
    file: StoredFile,
    *,
    origin: Origin,
    parent: int | None,
    note: str = "",
    details: dict[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    is_next: bool = False,
) -> DatasetVersion:
    """Add a version to a dataset of the project.

    Args:
        context: of the home.
        caller: whose project the dataset belongs to.
        dataset_id: of the dataset.
        file: the rows of the version.
        origin: where the rows are from.
        parent: number of the version that it was made from; None for none.
        note: on the version.
        details: facts about the origin.
        columns: which column is which field; None takes those that were chosen for the parent.
        is_next: whether the rows are those of the newest version with a change. Rows of a version that somebody else
            has added meanwhile would not be in the newest one any more.

    Raises:
        NotFoundError: no such dataset or parent.
        ConflictError: with `is_next`, the parent is not the newest version any more.
    """
    context.datasets.get(caller.project_id, dataset_id)
    if parent is not None:
        before = get_version(context, caller, dataset_id, parent)
        columns = before.columns if columns is None else columns
    version = _version(context, caller, dataset_id, file, origin, parent, note, details, columns)
    with context.database.transaction():
        if is_next:
            _check_newest(context, dataset_id, parent)
        made = context.datasets.add_version(version)
        record(context, caller, "dataset.version_added", dataset_id, {"file": file.file_id, "origin": origin})
    return made


def _check_newest(context: Context, dataset_id: str, number: int | None) -> None:
    newest = context.datasets.versions(dataset_id)[0].number
    if newest != number:
        raise ConflictError(
            f"version {newest} was added to {dataset_id} while the next one was made from version {number}",
            expected="a dataset that nobody else changes at the same time",
            do="try again: nothing was changed",
        )


def check_filename(filename: str) -> None:
    """Refuse what holds no rows by its name, and say what makes rows of it.

    Raises:
        RequestError: the name does not end as that of a file of rows.
    """
    suffix = files.suffix_of(filename)
    if suffix.removesuffix(".gz") in DATA_SUFFIXES:
        return
    from luthier.ml.data.readers.document import CONVERT_FIRST, READERS

    is_document = suffix in READERS or suffix in CONVERT_FIRST
    raise RequestError(
        f"{files.safe_filename(filename)!r} is a document, not a file of rows"
        if is_document
        else f"{files.safe_filename(filename)!r} does not have the extension of a file of rows",
        expected=f"a file that ends in {', '.join(DATA_SUFFIXES)}, each also with .gz",
        do="turn it into rows first: luthier data ingest FILE --output rows.jsonl"
        if is_document
        else "rename it to match its content, or export the rows as JSONL or CSV",
    )


def bring_file(context: Context, caller: Caller, incoming: IncomingFile, filename: str) -> StoredFile:
    """Make a file of the project from an upload, if it can contain rows; else nothing of it is kept.

    Raises:
        RequestError: the name does not end as that of a file of rows.
        DataError: the content cannot be rows.
        StorageFullError: the disk has no room for it.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_as

    check_filename(filename)
    file = files.keep_file(context, caller.project_id, incoming, filename=filename, purpose="fine-tune")
    try:
        path = files.local_path(context, file)
        # The caller knows the name of the upload; path and name on this machine stay private.
        with redacted_errors({str(path): file.filename, path.name: file.filename}):
            # Opening checks what the name cannot: compression, encoding and the magic bytes of the format.
            source = open_source(path)
            if source.format in WORKBOOKS:
                read_as(source)  # which sheet holds the rows: with two, the file cannot be used
    # A file without usable rows must not stay behind as a file of the project.
    except BaseException:
        files.delete_file(context, caller.project_id, file.file_id)
        raise
    return file


def check_header(context: Context, file: StoredFile) -> None:
    """Refuse a table whose header cannot be used, such as one with two columns of one name; no other row is read.

    Raises:
        DataError: the header cannot be used.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    path = files.local_path(context, file)
    with redacted_errors({str(path): file.filename, path.name: file.filename}):
        source = open_source(path)
        if source.format in ("csv", *WORKBOOKS):
            next(read_rows(source), None)


def adopt_file(context: Context, caller: Caller, name: str, file_id: str, *, note: str = "") -> DatasetVersion:
    """Make a dataset of a file that the API has brought; it stays the API's when the dataset is removed.

    Raises:
        NotFoundError: there is none in the project.
        RequestError: it holds no rows.
        ConflictError: the name is taken.
    """
    file = files.get_file(context, caller.project_id, file_id)
    check_filename(file.filename)
    return create_dataset(context, caller, name, file, note=note, details={"adopted": True})[1]


def keep_rows(
    context: Context, caller: Caller, blocks: Iterable[bytes], filename: str, *, is_result: bool = False
) -> StoredFile:
    """Make a file of the project, to train on, of what is written; for `create_dataset` and `add_version`.

    Args:
        context: the home.
        caller: whose project it is.
        blocks: the content.
        filename: its name for people.
        is_result: whether it is kept whatever the quota of the project.

    Raises:
        FileQuotaError: the files of the project would take more than they may.
    """
    with files.incoming_file(context) as incoming:
        for block in blocks:
            incoming.write(block)
        return files.keep_file(
            context, caller.project_id, incoming, filename=filename, purpose="fine-tune", is_result=is_result
        )


def list_datasets(context: Context, caller: Caller) -> list[tuple[Dataset, DatasetVersion]]:
    """The datasets of the caller's project with their newest versions; what was changed last comes first."""
    return context.datasets.list(caller.project_id)


def show_dataset(context: Context, caller: Caller, dataset_id: str) -> tuple[Dataset, Sequence[DatasetVersion]]:
    """A dataset and its versions, newest first.

    Raises:
        NotFoundError: the project has no such dataset.
    """
    dataset = context.datasets.get(caller.project_id, dataset_id)
    return dataset, context.datasets.versions(dataset_id)


def get_version(context: Context, caller: Caller, dataset_id: str, number: int | None = None) -> DatasetVersion:
    """A version of a dataset of the project; None: the newest.

    Raises:
        NotFoundError: the project has no such dataset, or the dataset no such version.
    """
    _, versions = show_dataset(context, caller, dataset_id)
    for version in versions:
        if number in (None, version.number):
            return version
    raise _no_version(dataset_id, number, versions[0].number)


def ancestry(context: Context, caller: Caller, version: DatasetVersion) -> Iterator[DatasetVersion]:
    """A version and those that it was made from, one after another, with one query for all of them.

    Raises:
        NotFoundError: An earlier version that it was made from no longer exists.
    """
    yield version
    if version.parent is None:
        return
    known = {one.number: one for one in show_dataset(context, caller, version.dataset_id)[1]}
    while version.parent is not None:
        if version.parent not in known:
            raise _no_version(version.dataset_id, version.parent, max(known))
        version = known[version.parent]
        yield version


def _no_version(dataset_id: str, number: int | None, newest: int) -> NotFoundError:
    return NotFoundError(
        f"no version {number} of dataset {dataset_id}",
        expected=f"a number from 1 to {newest}",
        do="see the versions of the dataset",
    )


def path_of(context: Context, caller: Caller, version: DatasetVersion) -> Path:
    """The rows of a version, as a file that is proved by its digest and read-only.

    Raises:
        NotFoundError: the project no longer has the file.
        WorkError: the content of the file is lost or damaged.
    """
    return files.local_path(context, files.get_file(context, caller.project_id, version.file_id))


def remove_dataset(context: Context, caller: Caller, dataset_id: str) -> None:
    """Forget a dataset with all versions, and delete the files that were brought or made for it alone.

    Raises:
        NotFoundError: the project has no such dataset.
    """
    dataset, versions = show_dataset(context, caller, dataset_id)
    # Versions hold their files against deletion, so they go first.
    with context.database.transaction():
        context.datasets.remove(caller.project_id, dataset_id)
        record(context, caller, "dataset.removed", dataset_id, {"name": dataset.name})
    for version in versions:
        if version.details.get("adopted"):
            continue
        with contextlib.suppress(NotFoundError, ConflictError):  # deleted already, or used by another dataset
            files.delete_file(context, caller.project_id, version.file_id)


def _version(
    context: Context,
    caller: Caller,
    dataset_id: str,
    file: StoredFile,
    origin: Origin,
    parent: int | None,
    note: str,
    details: dict[str, Any] | None,
    columns: Mapping[str, str] | None,
) -> DatasetVersion:
    if len(note) > MAX_NOTE_CHARACTERS:
        raise RequestError(
            f"a note of {len(note):,} characters",
            expected=f"at most {MAX_NOTE_CHARACTERS:,}",
            do="shorten it",
        )
    return DatasetVersion(
        dataset_id=dataset_id,
        # A placeholder: the store assigns the next number inside its transaction.
        number=1,
        file_id=file.file_id,
        filename=file.filename,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
        num_rows=_num_rows(context, caller, file),
        origin=origin,
        parent=parent,
        author=caller.name,
        note=note.strip(),
        details=details or {},
        columns=dict(columns or {}),
    )


def _num_rows(context: Context, caller: Caller, file: StoredFile) -> int | None:
    """How many rows a file has, well-formed or not; None where that cannot be found out, or not in a moment."""
    try:
        found = look(context, caller.project_id, file)
    # Counting is a convenience here: an unreadable file still becomes a version, and its page says what is wrong.
    except LuthierError:
        return None
    return None if found.answer is None else int(found.answer["num_rows"])


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

    Earlier answers in the conversation get weight 0: a model wrote them, and they were not checked.

    Args:
        context: The home.
        caller: Whose project it is.
        conversation: Ends with a turn of the user.
        reference: The answer as it should be.
        dataset: The name of the dataset.
        model: Who wrote the first draft of the answer, for the version's details.

    Raises:
        RequestError: An empty reference or conversation, or an empty or overlong name.
        ConflictError: The newest version holds other rows than conversations in JSONL, or is larger than 64 MiB, or
            another version was added meanwhile.
    """
    if not conversation or conversation[-1].role != "user" or not reference.strip():
        raise RequestError(
            "a test case without a question or without an answer",
            expected="a conversation that ends with a question, and the answer that it should have",
            do="write the answer",
        )
    line = json_line(_row(conversation, reference)) + b"\n"
    details = {"model": model}
    # Two concurrent saves must not each make the next version of the same one: the row of one would be lost.
    with file_lock(context.home / "test-cases.lock", what="saving test cases", timeout_seconds=_LOCK_SECONDS):
        found = context.datasets.find(caller.project_id, dataset.strip())
        if found is None:
            file = keep_rows(context, caller, [line], _FILENAME)
            try:
                return SavedCase(*create_dataset(context, caller, dataset, file, origin="test case", details=details))
            except LuthierError:  # the name cannot be
                files.delete_file(context, caller.project_id, file.file_id)
                raise
        newest = get_version(context, caller, found.dataset_id)
        rows = _checked(found, newest, path_of(context, caller, newest))
        file = keep_rows(context, caller, _appended(rows, line), newest.filename)
        version = add_version(
            context,
            caller,
            found.dataset_id,
            file,
            origin="test case",
            parent=newest.number,
            details=details,
            is_next=True,
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
