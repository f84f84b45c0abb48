"""Tokenised examples kept on disk, so that the same rows are not tokenised twice.

An entry is named by a digest of all that its tokens depend on: the examples themselves, the tokenizer, the template,
what is done with long rows, and the versions of what computes them. Whatever changes, the name changes with it; nothing
is ever looked up by a file's name or date. An entry is one file:

    luthier-tokenised 7                           a line
    {"num_rows": ..., "dropped_ids": [...], ...}  a line
    which examples are left, int64, and how many rows each has, int32
    of each thousand rows:
        [["rows.jsonl:1", num_tokens, ...], ...]  a line
        token ids, int32
        loss masks, a byte a token
    SHA-256 of everything above, 32 bytes

It is written and read a thousand rows at a time, so that rows that are larger than memory are kept as well.
It is written beside its place and moved there whole, so a kill leaves no half entry and two writers write the same one.
The digest is checked at each reading: a damaged entry is reported, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from pydantic_core import to_json

from luthier.core.dataset import Example, Overlong
from luthier.core.ids import sha256_bytes, sha256_document
from luthier.core.ports import Progress
from luthier.core.system.files import replace_file
from luthier.core.system.libraries import version
from luthier.ml.data.files.bounded_folder import Entry, mark_used, remove_oldest
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.loss_mask import PLAIN, Learning
from luthier.ml.data.tokenise.template import Template
from luthier.ml.data.tokenise.token_store import lengths_of, other_fields, row_of, row_writer
from luthier.ml.data.tokenise.tokenised_rows import StartWorkers, Tokenised, in_this_process, tokenise_all

DEFAULT_MAX_BYTES: Final = 1 << 30
_MAGIC: Final = b"luthier-tokenised 7\n"
_DIGEST_BYTES: Final = 32
_ROWS_AT_A_TIME: Final = 1000
_PIECE_BYTES: Final = 1 << 20
_PARTIAL_SECONDS: Final = 3600.0  # what a killed writer left; a living one is never this slow
_VERSIONS: Final = ("luthier", "tokenizers", "transformers", "jinja2")


class TokenisedCache:
    """Entries in one folder, made when the first is written.

    Args:
        folder: of the entries; the parent may be missing as well.
        max_bytes: limit for all entries together; 0 turns the cache off.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def tokenise_all(
        self,
        examples: Sequence[Example],
        template: Template,
        *,
        max_length_tokens: int,
        overlong: Overlong,
        progress: Progress,
        learning: Learning = PLAIN,
        spill: Spill | None = None,
        start_workers: StartWorkers = in_this_process,
    ) -> Tokenised:
        """What `tokenised_rows.tokenise_all` returns, read from the cache where it was made before.

        The progress shows whether it was read, and what could not be read or stored. A cache that cannot be used never
        fails the call.

        Args:
            examples: rows to tokenise.
            template: renders and encodes them.
            max_length_tokens: most tokens of a row.
            overlong: what is done with longer rows.
            learning: which tokens are learned.
            progress: shows the tokenising or the read from the cache.
            spill: the budget of memory, and where rows beyond it go; None keeps all of them in memory.
            start_workers: who tokenises what is not in the cache.

        Raises:
            OverlongError: rows are too long and `overlong` is "error".
            DataError: rows with nothing to learn, or no row is left.
            TemplateError: no mask can be proved on what the template renders.
        """
        settings = {"max_length_tokens": max_length_tokens, "overlong": overlong}
        how: dict[str, Any] = settings | {"progress": progress, "learning": learning, "spill": spill}
        how["start_workers"] = start_workers
        if not self.max_bytes:
            return tokenise_all(examples, template, **how)
        place = self.folder / key_of(examples, template, settings | {"learning": asdict(learning)})
        found, trouble = _read(place, spill)
        if found is not None:
            with progress.task("Tokens from the cache", total=len(examples), unit="rows") as task:
                task.advance(len(examples))
                task.note(place.name[:12])
            return found
        if trouble is not None:
            with progress.task(f"Rows are tokenised again: {trouble}", total=None, unit="rows"):
                pass
        made = tokenise_all(examples, template, **how)
        try:
            trouble = self._keep(place, made)
        except OSError as error:
            trouble = str(error.strerror or error)
        if trouble is not None:
            with progress.task(f"Tokens are not cached: {trouble}", total=None, unit="rows"):
                pass
        return made

    def _keep(self, place: Path, made: Tokenised) -> str | None:
        """Write an entry; why there is none where the rows are larger than the whole cache."""
        # 4 bytes for the id and 1 for the mask of each token.
        size = 5 * int(lengths_of(made.examples).sum())
        if size > self.max_bytes:
            return f"they take {size:,} bytes, and the whole cache {self.max_bytes:,}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Unique to this writer: two processes may tokenise the same rows at once.
        partial = self.folder / f".{place.name}.{uuid.uuid4().hex}.partial"
        try:
            with partial.open("wb") as file:
                digest = hashlib.sha256()
                for piece in _pieces(made):
                    digest.update(piece)
                    file.write(piece)
                file.write(digest.digest())
            # Atomic. No fsync: an entry that a power cut leaves incomplete fails its digest and is made again.
            replace_file(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        self._make_room(place)
        return None

    def _make_room(self, newest: Path) -> None:
        """Remove the entries that were read longest ago, and what killed writers left."""
        entries: list[Entry] = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process is at the same
                continue
            if path.suffix == ".partial":
                if time.time() - status.st_mtime > _PARTIAL_SECONDS:
                    path.unlink(missing_ok=True)
            else:
                entries.append(Entry(path, status.st_size, status.st_mtime))
        entries.sort(key=lambda entry: (entry.used_at, entry.num_bytes, entry.path))
        # The newest entry is never removed, or a run would evict what it has just made.
        remove_oldest(entries, self.max_bytes, newest=newest)


def key_of(examples: Sequence[Example], template: Template, settings: dict[str, Any]) -> str:
    """The name of an entry: a hex digest of all that its bytes depend on."""
    rows = hashlib.sha256()
    # Piece by piece: the JSON of all rows at once would double their memory.
    for start in range(0, len(examples), _ROWS_AT_A_TIME):
        rows.update(to_json(list(examples[start : start + _ROWS_AT_A_TIME])))
    tokenizer = template.tokenizer
    return sha256_document(
        {
            "rows": rows.hexdigest(),
            "tokenizer": sha256_bytes(tokenizer.backend_tokenizer.to_str().encode()),
            # Templates write some of them, and no other part of the key says which of the vocabulary's tokens they are.
            "special_tokens": dict(tokenizer.special_tokens_map),
            "template": [template.kind, template.end_texts, sha256_document(tokenizer.chat_template)],
            "options": dict(template.options),
            "settings": settings,
            "versions": {name: version(name) for name in _VERSIONS},
            "layout": [_MAGIC.decode(), sys.byteorder],
        }
    )


def _pieces(made: Tokenised) -> Iterator[bytes]:
    header = {
        "num_rows": len(made.examples),
        "num_kept": len(made.kept),
        "num_counts": len(made.row_counts),
        "dropped_ids": made.dropped_ids,
        "truncated_ids": made.truncated_ids,
        "rows_per_example": made.rows_per_example,
    }
    yield _MAGIC
    yield json.dumps(header).encode() + b"\n"
    yield np.asarray(made.kept, dtype=np.int64).tobytes()
    yield np.asarray(made.row_counts, dtype=np.int32).tobytes()
    for start in range(0, len(made.examples), _ROWS_AT_A_TIME):
        rows = made.examples[start : start + _ROWS_AT_A_TIME]
        yield json.dumps([[row.num_tokens, *other_fields(row)] for row in rows]).encode() + b"\n"
        yield b"".join(row.input_ids.tobytes() for row in rows)
        yield b"".join(row.loss_mask for row in rows)


def _read(place: Path, spill: Spill | None) -> tuple[Tokenised | None, str | None]:
    """An entry, or None with a word about it where it is there and cannot be used."""
    try:
        with place.open("rb") as file:
            if not _is_whole(file):
                return None, f"entry {place.name[:12]} of the cache is damaged"
            # The modification time is the time of the last read, by which _make_room removes entries. Where the entry
            # is another user's, or has just been removed, it is read all the same.
            mark_used(place)
            return _tokenised_in(file, spill), None
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"an entry of the cache cannot be read ({error.strerror or error})"


def _is_whole(file: IO[bytes]) -> bool:
    """Whether a file ends with the digest of all that is before it."""
    left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
    digest = hashlib.sha256()
    # Piece by piece: entries reach a gigabyte.
    while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
        digest.update(piece)
        left -= len(piece)
    return left == 0 and file.read() == digest.digest()


def _tokenised_in(file: IO[bytes], spill: Spill | None) -> Tokenised:
    """What an entry holds, which is known to be whole."""
    file.seek(len(_MAGIC))
    header = json.loads(file.readline())
    kept, counts = array("q"), array("i")
    kept.frombytes(file.read(kept.itemsize * header["num_kept"]))
    counts.frombytes(file.read(counts.itemsize * header["num_counts"]))
    examples = row_writer(spill)
    for _ in range(0, header["num_rows"], _ROWS_AT_A_TIME):
        found = json.loads(file.readline())
        all_ids = [array("i") for _ in found]
        for ids, (num_tokens, *_) in zip(all_ids, found, strict=True):
            ids.frombytes(file.read(ids.itemsize * num_tokens))
        for ids, (num_tokens, *others) in zip(all_ids, found, strict=True):
            examples.append(row_of(ids, file.read(num_tokens), others))
    rows = examples.sequence()
    # JSON has lists alone; Tokenised is compared and hashed with tuples, where all is in memory.
    dropped, truncated = (tuple(header[name]) for name in ("dropped_ids", "truncated_ids"))
    if isinstance(rows, tuple):
        return Tokenised(rows, dropped, truncated, tuple(kept), header["rows_per_example"], tuple(counts))
    return Tokenised(rows, dropped, truncated, kept, header["rows_per_example"], counts)
