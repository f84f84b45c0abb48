"""Use cases: what a home keeps of a person beside rows, review and feedback: found, and removed where it can be.

tables       every table that keeps texts (`platform/db/stored_texts.py`): deleted, blanked, or named
traffic      the texts of logged requests: removed, the rest of a request stays
files        files of the project that are no rows of a dataset: named
folders      text files in the folders of runs, jobs, exports, workflows and studies: named
caches       copies of rows and what was found about them, named by digests: deleted, since all is made again
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.dataset import Row
from luthier.core.errors import LuthierError
from luthier.core.ids import sha256_bytes
from luthier.features.planning.data_cache import names_held_by_runs
from luthier.features.traffic import files as traffic_files
from luthier.platform.db.stored_texts import (
    FORGOTTEN_KIND,
    Holds,
    StoredText,
    find_stored_texts,
    forget_stored_text,
    parsed,
    value_holds,
)
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context

MatchAction = Literal["deleted", "blanked", "kept"]
_TEXT_SUFFIXES: Final = (
    ".csv", ".html", ".json", ".jsonl", ".log", ".md", ".partial", ".tsv", ".txt", ".yaml", ".yml", "",
)  # fmt: skip
_OF_MODELS: Final = (
    "added_tokens.json", "config.json", "generation_config.json", "merges.txt", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files of models, which hold no rows: a name may be in a vocabulary."""
_MAX_FILE_BYTES: Final = 1 << 28
_MAX_CACHED_BYTES: Final = 1 << 30
"""Of a cached file that is searched; a cache may take a hundred times as much."""
_MAX_SHOWN: Final = 5
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class TextMatches:
    """Records or files of one kind that hold the words.

    Attributes:
        what: What one of them is called.
        ids: Their ids, each once.
        num: How many there are.
        action: What forgetting does, or has done: deletes them, blanks their texts, or keeps and names them.
        do: How those are removed that are kept; empty where nothing is known.
    """

    what: str
    ids: tuple[str, ...]
    num: int
    action: MatchAction
    do: str = ""

    def as_json(self) -> dict[str, Any]:
        """One entry of `stored` in the documents of `luthier data forget --json`."""
        return {"what": self.what, "num": self.num, "ids": list(self.ids), "action": self.action, "do": self.do}

    @property
    def shown_ids(self) -> str:
        """Some of their ids."""
        more = f" and {len(self.ids) - _MAX_SHOWN:,} more" if len(self.ids) > _MAX_SHOWN else ""
        return f"{', '.join(self.ids[:_MAX_SHOWN])}{more}"

    @property
    def sentence(self) -> str:
        """What is kept, as a sentence of what is left."""
        do = f": {self.do}" if self.do else ""
        return f"{self.what} ({self.shown_ids}) keeps it{do}"


@dataclass(frozen=True, slots=True)
class Found:
    """What was found beside the rows.

    Attributes:
        stored: By kind.
        unread: What could not be searched; a sentence each.
    """

    stored: tuple[TextMatches, ...] = ()
    unread: tuple[str, ...] = ()


def holds_of(wanted: str) -> Holds:
    """Whether a text contains the words, after the normalisation of both, or a number equals them."""
    from luthier.ml.data.text.normalise import normalised

    words = normalised(wanted)

    def holds(value: Any, is_id: bool) -> bool:
        if isinstance(value, str):
            text = normalised(value)
            return text == words if is_id else words in text
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value) == wanted

    return holds


def find_other_texts(context: Context, caller: Caller, wanted: str) -> Found:
    """What keeps the words beside datasets, review and feedback. Nothing is changed.

    Args:
        context: The home.
        caller: Whose project it is.
        wanted: The words, or an id.
    """
    return _with_files(context, caller, wanted, find_stored(context, caller, wanted))


def find_stored(context: Context, caller: Caller, wanted: str) -> list[StoredText]:
    """The records of tables that hold the words: for `forget_stored`, before its transaction, since it takes long."""
    return find_stored_texts(context.database, caller.project_id, holds_of(wanted))


def forget_stored(context: Context, stored: Sequence[StoredText], wanted: str) -> list[StoredText]:
    """Delete or blank records, in a transaction of the caller.

    Args:
        context: The home.
        stored: What was found.
        wanted: The words, or an id.

    Returns:
        Those that still hold the words.
    """
    holds = holds_of(wanted)
    with context.database.write() as connection:
        left = [one for one in stored if not forget_stored_text(connection, one, holds)]
    if any(one.where.action == "blank" for one in stored):
        # Servers have evaluations in memory.
        context.watches.put(DEFAULT_PROJECT, FORGOTTEN_KIND, "", str(context.access.now()))
    return left


def forget_others(
    context: Context, caller: Caller, wanted: str, stored: Sequence[StoredText], left: Sequence[StoredText]
) -> Found:
    """Remove the texts of logged requests that hold the words, look for files that do, and say what was done and stays.

    Args:
        context: The home.
        caller: Whose project it is.
        wanted: The words, or an id.
        stored: The records that held them.
        left: Those of them that still do.
    """
    return _with_files(context, caller, wanted, stored, left, digest=sha256_bytes(wanted.encode()))


def _with_files(
    context: Context,
    caller: Caller,
    wanted: str,
    stored: Sequence[StoredText],
    left: Sequence[StoredText] = (),
    *,
    digest: str | None = None,
) -> Found:
    """What holds the words: records, logged requests, files and caches; with a digest the requests lose their texts
    and the caches what holds them."""
    holds = holds_of(wanted)
    num_logged, unread = _logged(context, caller, holds, digest=digest)
    kept, more = _files(context, caller, holds)
    cached, of_cache = _cached(context, caller, holds, removes=digest is not None)
    logged = (TextMatches("logged request", (), num_logged, "blanked"),) if num_logged else ()
    return Found((*_by_kind(stored, left), *logged, *kept, *cached), (*unread, *more, *of_cache))


def _by_kind(stored: Sequence[StoredText], left: Sequence[StoredText] = ()) -> Iterator[TextMatches]:
    """What was found, by its table; `left` could not be blanked."""
    actions: dict[str, MatchAction] = {"delete": "deleted", "blank": "blanked", "keep": "kept"}
    kinds: dict[tuple[str, MatchAction], list[StoredText]] = {}
    still = {(one.where.title, one.key) for one in left}
    for one in stored:
        action = "kept" if (one.where.title, one.key) in still else actions[one.where.action]
        kinds.setdefault((one.where.title, action), []).append(one)
    for (title, action), these in kinds.items():
        ids = tuple(dict.fromkeys(one.shown_id for one in these))
        yield TextMatches(title, ids, len(these), action, these[0].where.do)


def _logged(
    context: Context, caller: Caller, holds: Holds, *, digest: str | None = None
) -> tuple[int, tuple[str, ...]]:
    """The logged requests whose texts hold the words, and notes on files that could not be searched."""
    if not context.traffic.list(caller.project_id) and not context.settings.traffic_folder.is_dir():
        return 0, ()

    def holds_any(messages: str | None, answer: str | None) -> bool:
        return any(value_holds(parsed(text), holds) for text in (messages, answer))

    try:
        num, unreadable = traffic_files.forget_texts(context, caller, holds_any, digest=digest)
    except LuthierError as error:
        return 0, (f"the log of requests was not searched: {error.came}; {error.do}",)
    return num, tuple(f"the file {file} of logged requests cannot be read, and may hold it" for file in unreadable)


def _files(context: Context, caller: Caller, holds: Holds) -> tuple[list[TextMatches], list[str]]:
    """Files of the project and of its runs, jobs and other work that hold the words, and those that may."""
    kept, unread = list[TextMatches](), list[str]()
    of_datasets = {
        version.file_id
        for dataset, _ in context.datasets.list(caller.project_id)
        for version in context.datasets.versions(dataset.dataset_id)
    }
    found_ids = []
    for file in _project_files(context, caller.project_id):
        if file.file_id in of_datasets:
            continue
        try:
            its = _file_holds(files.local_path(context, file), holds)
        except (LuthierError, OSError):
            its = None
        if its is None:
            unread.append(f"the file {file.file_id} ({file.filename}) cannot be searched, and may hold it")
        elif its:
            found_ids.append(file.file_id)
    if found_ids:
        kept.append(TextMatches("file", tuple(found_ids), len(found_ids), "kept", "delete the file"))
    for noun, ids, do in _owned(context, caller.project_id):
        holding = []
        for folder in _folders(context, ids):
            names = [path.relative_to(context.home).as_posix() for path in _texts_in(folder, holds, unread, context)]
            holding += names
        if holding:
            kept.append(TextMatches(f"file in the folder of {noun}", tuple(holding), len(holding), "kept", do))
    return kept, unread


def _cached(context: Context, caller: Caller, holds: Holds, *, removes: bool) -> tuple[list[TextMatches], list[str]]:
    """Entries of caches that hold the words, of whichever project: digests name them, and they are made again.

    Tokens are no text that could be searched: all are deleted. What a run that has not ended reads is kept, and named.
    """
    settings, held = context.settings, names_held_by_runs(context)
    deleted, kept, unread = 0, list[str](), list[str]()
    for folder in (
        settings.answers_folder,
        settings.labels_folder,
        settings.mixtures_folder,
        settings.remote_data_folder / "files",
    ):
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            its = _entry_holds(entry, holds)
            if its is None:
                name = entry.relative_to(context.home).as_posix()
                unread.append(f"the file {name} cannot be searched, and may hold it")
            elif its and entry.name in held:
                kept.append(entry.name)
            elif its:
                deleted += 1
                if removes:
                    _remove(entry)
    found = [TextMatches("entry of a cache", (), deleted, "deleted")] if deleted else []
    if kept:
        do = "wait until the runs that read it have ended, then forget the row again"
        found.append(TextMatches("entry of a cache", tuple(kept), len(kept), "kept", do))
    tokens = list(settings.tokenised_folder.iterdir()) if settings.tokenised_folder.is_dir() else []
    if tokens and removes:
        for entry in tokens:
            _remove(entry)
        found.append(TextMatches("file of tokenised rows in the cache", (), len(tokens), "deleted"))
    elif tokens:
        unread.append("the cache of tokenised rows cannot be searched: it is emptied with the removal, and made again")
    found += _teacher_batches(context, caller, holds)
    return found, unread


def _teacher_batches(context: Context, caller: Caller, holds: Holds) -> list[TextMatches]:
    """Prompts that wait for their answers at the Batch API of a provider, which has them, too."""
    folder = context.settings.teacher_batches_folder
    if caller.project_id != DEFAULT_PROJECT:
        folder /= caller.project_id
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    names = [path.relative_to(context.home).as_posix() for path in files if _file_holds(path, holds)]
    do = "let the command that waits for its answers end, or cancel the batch at the provider and delete the file"
    return [TextMatches("batch of prompts at a provider", tuple(names), len(names), "kept", do)] if names else []


def _entry_holds(entry: Path, holds: Holds) -> bool | None:
    """Whether an entry of a cache holds the words; None where that cannot be known of one of its files."""
    is_known = True
    for path in sorted(entry.rglob("*")) if entry.is_dir() else (entry,):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            its = _file_holds(path, holds) if path.stat().st_size <= _MAX_CACHED_BYTES else None
        except FileNotFoundError:  # another process has removed it
            continue
        except OSError:
            its = None
        if its:
            return True
        is_known &= its is not None
    return False if is_known else None


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _project_files(context: Context, project_id: str) -> Iterator[StoredFile]:
    after: str | None = None
    while True:
        page, has_more = context.files.list(project_id, after=after, limit=_PAGE)
        yield from page
        if not has_more:
            return
        after = page[-1].file_id


def _owned(context: Context, project_id: str) -> Iterator[tuple[str, frozenset[str], str]]:
    """What a project has that has a folder: what it is called, the ids, and how it is removed."""
    by_hand = "delete it if nothing needs it any longer"
    runs = context.runs.of_project(project_id, limit=100_000)
    yield "a run", frozenset(one.run_id for one in runs), "delete the run"
    yield "a job", frozenset(one.job_id for one in context.jobs.list(project_id=project_id)), by_hand
    yield "an export", frozenset(one.export_id for one in context.exports.list(project_id)), by_hand
    yield "a workflow", frozenset(one.pipeline_id for one in context.pipelines.list(project_id)), by_hand
    yield "a study", frozenset(one.study_id for one in context.studies.list(project_id)), by_hand


def _folders(context: Context, ids: frozenset[str]) -> Iterator[Path]:
    """Folders two levels below the home that are called by one of these ids, whatever made them."""
    for kind in sorted(context.home.iterdir()):
        if kind.is_dir() and not kind.is_symlink():
            yield from (one for one in sorted(kind.iterdir()) if one.name in ids and one.is_dir())


def _texts_in(folder: Path, holds: Holds, unread: list[str], context: Context) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix not in _TEXT_SUFFIXES or path.name in _OF_MODELS or path.is_symlink() or not path.is_file():
            continue
        try:
            its = _file_holds(path, holds)
        except OSError:
            its = None
        if its is None:
            unread.append(f"the file {path.relative_to(context.home).as_posix()} cannot be searched, and may hold it")
        elif its:
            yield path


def _file_holds(path: Path, holds: Holds) -> bool | None:
    """Whether a file holds the words, as rows or as text; None where that cannot be known."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    is_whole = True
    try:
        for row in read_rows(open_source(path)):
            if isinstance(row, Row):
                if value_holds(row.fields, holds):
                    return True
            else:
                is_whole = False
    except (LuthierError, ValueError):
        is_whole = False
    # Rows that cannot be read, and files that are no rows: as text.
    return False if is_whole else _text_holds(path, holds)


def _text_holds(path: Path, holds: Holds) -> bool | None:
    if path.stat().st_size > _MAX_FILE_BYTES:
        return None
    content = path.read_bytes()
    if b"\0" in content[:4096]:
        return None
    text = content.decode("utf-8", errors="replace")
    readings: tuple[Callable[[str], str], ...] = (str, html.unescape)
    if any(holds(read(text), False) for read in readings):
        return True
    # Escapes of JSON, such as of umlauts, also of a log whose lines are JSON.
    return any(value_holds(_json(line), holds) for line in [text, *text.splitlines()] if "\\" in line)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
