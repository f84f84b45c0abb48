"""The documents that a task's answers are held against: the texts of a folder or a file, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from luthier.core.errors import DataError, RowProblem

_ROWS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".gz")


def load_documents(place: Path) -> dict[str, str]:
    """Text of each document by its name; of a file of rows, of each row by its id.

    Raises NotFoundError (nothing there), DataError (a document that cannot be read, or none).
    """
    from luthier.data.documents import find_documents
    from luthier.data.formats import load_file
    from luthier.data.readers.signature import check_signature
    from luthier.data.readers.table import READERS, load_reader

    if place.is_file() and place.suffix.lower() in _ROWS:
        loaded = load_file(place)
        return {one.id: one.text or one.reference or "" for one in loaded.examples}
    found, _ = find_documents([place], kinds=set(READERS))
    texts: dict[str, str] = {}
    problems = []
    for one in found:
        try:
            check_signature(one.path)
            document = load_reader(READERS[one.path.suffix.lower()])(one.path)
        except (DataError, OSError, ValueError) as error:
            problems.append(RowProblem(one.name, 0, "", "", str(error).splitlines()[0]))
            continue
        texts[one.name] = "\n\n".join(section.text for section in document.sections)
    if problems or not texts:
        raise DataError(
            f"{len(problems):,} of {len(found):,} documents of {place} cannot be read",
            expected="at least one document, and every one readable",
            do="repair these documents or take them out of the corpus",
            problems=problems,
        )
    return texts
