"""What changed inside the rows that two versions of a dataset both have: which fields differ, and word by word."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.dataset import Row
from luthier.core.ids import sha256_bytes
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
            # Keyed by the line in the new file, so that the second pass finds its partner without an inverse map.
            before[of_old[row.line]] = _digests(row.fields)
    found: Counter[str] = Counter()
    for row in read_rows(open_source(new)):
        if isinstance(row, Row) and row.line in before:
            one, two = before[row.line], _digests(row.fields)
            found.update(name for name in {*one, *two} if one.get(name) != two.get(name))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _digests(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: sha256_bytes(repr(value).encode("utf-8", "surrogatepass"))[:32] for name, value in fields.items()}


Sign = Literal["=", "-", "+"]
_PIECE: Final = re.compile(r"\s+|\w+|[^\w\s]")
_MAX_PIECES: Final = 2_000
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One changed place of a row.

    Attributes:
        field: path of the place, as `messages[1].content`.
        old: value as text; None where it was not there.
        new: value as text; None where it was removed.
        spans: (sign, text): "=" in both, "-" only in the old, "+" only in the new; the texts of "=" and "-" joined are
            the old value, those of "=" and "+" the new one.
    """

    field: str
    old: str | None
    new: str | None
    spans: tuple[tuple[Sign, str], ...]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldChange]:
    """The places in which two rows differ, in the order of the old row, then those that only the new one has."""
    before, after = dict(_leaf_values(old)), dict(_leaf_values(new))
    found = []
    for place in dict.fromkeys([*before, *after]):
        one, two = before.get(place, _ABSENT), after.get(place, _ABSENT)
        # Types are compared, too: 1 == True and 1 == 1.0 in Python.
        if one is _ABSENT or two is _ABSENT or type(one) is not type(two) or one != two:
            a, b = (None if value is _ABSENT else _text(value) for value in (one, two))
            found.append(FieldChange(place, a, b, word_diff(a or "", b or "")))
    return found


def word_diff(old: str, new: str) -> tuple[tuple[Sign, str], ...]:
    """The shortest-looking way from one text to the other in whole words.

    What both begin and end with is taken off first; if more than 2,000 words and marks are left on a side, they count
    as replaced as a whole, since the search is quadratic.
    """
    a, b = _PIECE.findall(old), _PIECE.findall(new)
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    # The common end must not overlap the common start, as in "aba" against "ababa".
    most = min(len(a), len(b)) - start
    end = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    spans: list[tuple[Sign, str]] = [("=", "".join(a[:start]))]
    if max(len(middle_a), len(middle_b)) > _MAX_PIECES:
        spans += [("-", "".join(middle_a)), ("+", "".join(middle_b))]
    else:
        # autojunk would take frequent words such as "the" for noise in long texts.
        for tag, i, j, k, m in difflib.SequenceMatcher(None, middle_a, middle_b, autojunk=False).get_opcodes():
            if tag == "equal":
                spans.append(("=", "".join(middle_a[i:j])))
            else:
                spans += [("-", "".join(middle_a[i:j])), ("+", "".join(middle_b[k:m]))]
    spans.append(("=", "".join(a[len(a) - end :])))
    return tuple(span for span in _joined(spans) if span[1])


def shortened(spans: Sequence[tuple[Sign, str]], around: int) -> tuple[tuple[Sign, str], ...]:
    """The same with unchanged text far from a change left out: `around` characters stay on either side."""
    made: list[tuple[Sign, str]] = []
    for index, (sign, text) in enumerate(spans):
        first, last = index == 0, index == len(spans) - 1
        head, tail = (0 if first else around), (0 if last else around)
        if sign == "=" and len(text) > head + tail + 3:
            text = f"{text[:head]} … {text[len(text) - tail :]}"
        elif sign != "=" and len(text) > 8 * around:
            text = f"{text[: 8 * around]}… ({len(text) - 8 * around:,} more characters)"
        made.append((sign, text))
    return tuple(made)


def _joined(spans: Sequence[tuple[Sign, str]]) -> Iterator[tuple[Sign, str]]:
    """Neighbours of one sign become one; a single white space between two changes is part of them."""
    held: dict[Sign, str] = {"-": "", "+": ""}
    equal = ""
    for sign, text in spans:
        if not text:
            continue
        if sign == "=":
            equal += text
            continue
        if equal and equal.isspace() and (held["-"] or held["+"]):
            # A blank between two changed words goes into both sides, so that they read as one change.
            held = {mark: held[mark] + equal for mark in held}
        elif equal:
            yield from _released(held)
            held = {"-": "", "+": ""}
            yield "=", equal
        equal = ""
        held[sign] += text
    yield from _released(held)
    if equal:
        yield "=", equal


def _released(held: Mapping[Sign, str]) -> Iterator[tuple[Sign, str]]:
    yield "-", held["-"]
    yield "+", held["+"]


def _leaf_values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf value of a row with its path, as `messages[1].content`; empty objects and lists too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaf_values(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaf_values(inner, f"{name}[{index}]")
    elif name:
        yield name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
