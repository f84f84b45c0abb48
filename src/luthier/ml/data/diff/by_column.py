"""In which fields the rows differ that two versions of a dataset both have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from luthier.core.dataset import Row
from luthier.core.digest import sha256_bytes
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.rows import read_rows


def changed_columns(old: Path, new: Path, pairs: Iterable[tuple[int, int]]) -> dict[str, int]:
    """For each field of a row in how many of the pairs it is not the same, most first.

    Memory: a digest for each field of such a row.

    Args:
        old: file of the old version.
        new: file of the new version.
        pairs: lines of rows in the old and in the new file.
    """
    of_old = dict(pairs)
    before: dict[int, dict[str, str]] = {}
    for row in read_rows(open_source(old)):
        if isinstance(row, Row) and row.line in of_old:
            before[of_old[row.line]] = _digests(row.fields)
    found: Counter[str] = Counter()
    for row in read_rows(open_source(new)):
        if isinstance(row, Row) and row.line in before:
            one, two = before[row.line], _digests(row.fields)
            found.update(name for name in {*one, *two} if one.get(name) != two.get(name))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _digests(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: sha256_bytes(repr(value).encode("utf-8", "surrogatepass"))[:32] for name, value in fields.items()}
