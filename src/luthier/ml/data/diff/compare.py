"""The difference between two versions of a dataset: rows matched, changes by row and column, and figures side by side.

Rows are first matched (`match`: which row of the new version is which row of the old one); `figures` sums up both
versions, and `diff` puts the whole comparison together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from luthier.core.errors import RequestError
from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.diff.row_changes import FieldChange, changes
from luthier.ml.data.diff.version import Version, lines_of, read_version, rows_at
from luthier.ml.data.rows.columns import ValueType

KeyKind = Literal["field", "id", "prompt", "position"]

_DIGEST: Final = ("d1", "d2")
_COLUMNS: Final = {"field": ("k1", "k2"), "id": ("i1", "i2"), "prompt": ("p1", "p2")}


@dataclass(frozen=True, slots=True)
class Matched:
    """Rows in pairs and rows alone, by their place in the frames of the versions.

    Pairs of unequal order are no change: a row that was only moved is the same.

    Attributes:
        key: by what changed rows were paired.
        same: columns `old` and `new`, positions in the two frames.
        changed: the same columns, of rows that differ.
        removed: positions in the old frame.
        added: positions in the new frame.
    """

    key: KeyKind
    same: pl.DataFrame
    changed: pl.DataFrame
    removed: pl.Series
    added: pl.Series


def match(old: pl.DataFrame, new: pl.DataFrame, *, has_field: bool) -> Matched:
    """Pair the rows of two versions.

    Equal rows are pairs first, those of one side of a split before others. What is left is paired by key, in the order
    of the files where one key has several rows: the field that was requested, else the id of the row, else its prompt,
    the first of these that every row of both versions has. Where they have none, rows count as the same that follow
    the same unchanged row, first those with the same prompt.

    Args:
        old: rows of the old version, as in `Version.rows`.
        new: rows of the new version.
        has_field: a field names the rows (columns k1 and k2).
    """
    key = _key(old, new, has_field)
    left, right = old.with_row_index("place"), new.with_row_index("place")
    by = list(_COLUMNS.get(key, ()))
    # With the side first: a row that has copies on both sides of the split is paired with the one that did not move.
    same, left, right = _rounds(left, right, [[*by, *_DIGEST, "side"], [*by, *_DIGEST]])
    if key == "position":
        left, right = _after(left, same["old"], same["old"]), _after(right, same["new"], same["old"])
        # Of the rows between two unchanged ones, those of one prompt are pairs before those in order.
        rounds = [["anchor", *_COLUMNS["prompt"], "side"], ["anchor", "side"]]
    else:
        rounds = [[*by, "side"], by]
    changed, left, right = _rounds(left, right, rounds)
    return Matched(key, same.sort("new"), changed.sort("new"), left["place"].sort(), right["place"].sort())


def _key(old: pl.DataFrame, new: pl.DataFrame, has_field: bool) -> KeyKind:
    if has_field:
        return "field"
    kinds: tuple[tuple[KeyKind, str], ...] = (("id", "i1"), ("prompt", "p1"))
    for kind, column in kinds:
        if old.height and new.height and not old[column].null_count() and not new[column].null_count():
            return kind
    return "position"


def _rounds(
    left: pl.DataFrame, right: pl.DataFrame, rounds: Sequence[Sequence[str]]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pairs by the columns of each round, the n-th row of equal columns with the n-th; then what is left of both."""
    pairs = [pl.DataFrame(schema={"old": pl.UInt32, "new": pl.UInt32})]
    for columns in rounds:
        on = [*columns, "nth"]
        # Number of a row among those with equal columns, so that the join pairs copies one to one.
        counted = pl.int_range(pl.len()).over(list(columns)).alias("nth")
        one, two = left.with_columns(counted), right.with_columns(counted)
        found = one.join(two.select("place", *on), on=on, how="inner", nulls_equal=True, suffix="_new")
        pairs.append(found.select(pl.col("place").alias("old"), pl.col("place_new").alias("new")))
        # Rows that found a partner take no part in the next round.
        left = left.filter(~pl.col("place").is_in(found["place"].implode()))
        right = right.filter(~pl.col("place").is_in(found["place_new"].implode()))
    return pl.concat(pairs), left, right


def _after(rows: pl.DataFrame, own: pl.Series, names: pl.Series) -> pl.DataFrame:
    """Rows with `anchor`: the name of the unchanged row that they follow; -1 before the first."""
    anchors = pl.DataFrame({"place": own, "anchor": names.cast(pl.Int64)}).sort("place")
    # backward: the nearest unchanged row at or before each row.
    placed = rows.sort("place").join_asof(anchors, on="place", strategy="backward")
    return placed.with_columns(pl.col("anchor").fill_null(-1))


_QUANTILES: Final = {"5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}
_NUM_CLASSES: Final = 12


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both versions.

    Attributes:
        name: what is counted.
        unit: rows, bytes, characters, or fraction.
        old: of the old version; None where it has no such figure.
        new: of the new version; None where it has no such figure.
    """

    name: str
    unit: str
    old: float | None
    new: float | None

    @property
    def change(self) -> float | None:
        """New less old."""
        return None if self.old is None or self.new is None else self.new - self.old

    def as_json(self) -> dict[str, Any]:
        """The figure as a document."""
        return {"name": self.name, "unit": self.unit, "old": self.old, "new": self.new, "change": self.change}


def figures(old: Version, new: Version, progress: Progress) -> list[Figure]:
    """Rows, size, lengths, labels and languages. Languages are those of up to 2,000 rows of each, chosen by digest."""
    made = [
        Figure("rows", "rows", old.rows.height, new.rows.height),
        Figure("rows that cannot be read", "rows", old.num_unreadable, new.num_unreadable),
        Figure("size", "bytes", old.num_bytes, new.num_bytes),
    ]
    for side in dict.fromkeys([file.side for file in (*old.files, *new.files) if file.side]):
        made.append(Figure(f"rows of {side}", "rows", _num_of(old, side), _num_of(new, side)))
    for name, quantile in _QUANTILES.items():
        made.append(Figure(f"length, {name}", "characters", _length(old, quantile), _length(new, quantile)))
    made += _shares("label", old.labels, new.labels)
    made += _shares("language", *_languages(old, new, progress))
    return made


def _num_of(version: Version, side: str) -> int:
    return int((version.rows["side"] == side).sum())


def _length(version: Version, quantile: float) -> float | None:
    value = version.rows["characters"].quantile(quantile, "nearest")
    return None if value is None else float(value)


def _shares(what: str, old: Mapping[str, int], new: Mapping[str, int]) -> list[Figure]:
    """The shares of each class, those that changed most first; of many classes the twelve that changed most."""
    if not old and not new:
        return []
    totals = (max(sum(old.values()), 1), max(sum(new.values()), 1))
    shares = {name: (old.get(name, 0) / totals[0], new.get(name, 0) / totals[1]) for name in {*old, *new}}
    ranked = sorted(shares, key=lambda name: (-abs(shares[name][1] - shares[name][0]), -shares[name][1], name))
    return [Figure(f"{what} {name}", "fraction", *shares[name]) for name in ranked[:_NUM_CLASSES]]


def _languages(old: Version, new: Version, progress: Progress) -> tuple[dict[str, int], dict[str, int]]:
    """Languages of the two samples by number of rows; both in one go, as the model is read again each time."""
    texts = pl.concat([old.sample, new.sample])
    if not len(texts):
        return {}, {}
    from luthier.ml.data.text.languages import languages

    found = languages(texts, progress)["language"].to_list()
    num = len(old.sample)
    return dict(Counter(found[:num])), dict(Counter(found[num:]))


NUM_EXAMPLES: Final = 5
_JUDGES: Final = ("validation", "held_out")


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row as an example.

    Attributes:
        kind: what happened to it.
        old: its id in the old version; None where it is not there.
        new: its id in the new version; None where it is not there.
        fields: what differs; the whole row where it was added or removed.
    """

    kind: Literal["changed", "added", "removed"]
    old: str | None
    new: str | None
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class ColumnChange:
    """A field that was added, removed, or holds values of another type.

    Attributes:
        name: of the field.
        old: its type as text; None where it is new.
        new: its type as text; None where it was removed.
    """

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Move:
    """Rows that changed the side of a split.

    Attributes:
        old_side: side in the old version.
        new_side: side in the new version.
        rows: ids in the old and the new version.
    """

    old_side: str
    new_side: str
    rows: tuple[tuple[str, str], ...]

    @property
    def is_leak(self) -> bool:
        """Whether rows that the old version trains on judge in the new one."""
        return self.old_side == "train" and self.new_side in _JUDGES


@dataclass(frozen=True, slots=True)
class DatasetDiff:
    """What changed.

    Attributes:
        old: path of the old version.
        new: path of the new version.
        key: how equal rows were recognised, as text.
        num_same: rows that did not change.
        changed: ids of changed rows, (old, new).
        added: ids of new rows.
        removed: ids of removed rows.
        moves: rows that changed sides; empty unless both versions are splits.
        shapes: of the old and the new version.
        columns: fields that changed.
        figures: of both versions.
        examples: rows to show.
        notes: what a reader should know.
    """

    old: str
    new: str
    key: str
    num_same: int
    changed: tuple[tuple[str, str], ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    moves: tuple[Move, ...]
    shapes: tuple[str | None, str | None]
    columns: tuple[ColumnChange, ...]
    figures: tuple[Figure, ...]
    examples: tuple[RowChange, ...]
    notes: tuple[str, ...]

    @property
    def is_different(self) -> bool:
        """Whether a row was added, removed, changed or moved to another side, or more or fewer can be read."""
        return bool(self.changed or self.added or self.removed or self.moves) or any(
            figure.change for figure in self.figures if figure.name == "rows that cannot be read"
        )

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data diff --json`."""
        return {
            "old": self.old,
            "new": self.new,
            "is_different": self.is_different,
            "key": self.key,
            "num_same": self.num_same,
            "num_changed": len(self.changed),
            "num_added": len(self.added),
            "num_removed": len(self.removed),
            "changed": [{"old": old, "new": new} for old, new in self.changed],
            "added": list(self.added),
            "removed": list(self.removed),
            "moved_between_sides": [
                {
                    "old_side": move.old_side,
                    "new_side": move.new_side,
                    "is_leak": move.is_leak,
                    "rows": [{"old": old, "new": new} for old, new in move.rows],
                }
                for move in self.moves
            ],
            "shape": {"old": self.shapes[0], "new": self.shapes[1]},
            "columns": [asdict(column) for column in self.columns],
            "figures": [figure.as_json() for figure in self.figures],
            "examples": [_example_json(example) for example in self.examples],
            "notes": list(self.notes),
        }


def diff(
    old: Path,
    new: Path,
    *,
    key: str | None = None,
    mapping: Mapping[str, str] | None = None,
    num_examples: int = NUM_EXAMPLES,
    progress: Progress | None = None,
) -> DatasetDiff:
    """Compare two data files, or two folders with a split.

    Memory: about 100 bytes a row, and the rows that are shown.

    Args:
        old: a data file, or the folder of a split.
        new: the same of the new version.
        key: the field that names a row; None takes the id of the row, else its prompt, else its position among
            unchanged rows.
        mapping: field of the shape -> column.
        num_examples: rows of each kind to show.
        progress: shows the reading.

    Raises:
        NotFoundError: a file is missing.
        DataError: a file cannot be read, or a row has no key.
        RequestError: a folder is compared with a file, or has no split.json.
    """
    progress = progress or SilentProgress()
    # A missing path is reported by the reading below.
    if old.exists() and new.exists() and old.is_dir() != new.is_dir():
        folder, file = (old, new) if old.is_dir() else (new, old)
        raise RequestError(
            f"{folder} is a folder and {file} a file",
            expected="two data files, or two folders that `luthier data split` has written",
            do=f"name one file in {folder}",
        )
    before = read_version(old, progress, key=key, mapping=mapping)
    after = read_version(new, progress, key=key, mapping=mapping)
    found = match(before.rows, after.rows, has_field=key is not None)
    moves = _moves(before, after, found)
    return DatasetDiff(
        old=str(old),
        new=str(new),
        key=_key_in_words(found, key),
        num_same=found.same.height,
        changed=tuple(zip(_ids(before, found.changed["old"]), _ids(after, found.changed["new"]), strict=True)),
        added=tuple(_ids(after, found.added)),
        removed=tuple(_ids(before, found.removed)),
        moves=moves,
        shapes=(before.shape, after.shape),
        columns=tuple(_columns(before.columns, after.columns)),
        figures=tuple(figures(before, after, progress)),
        examples=tuple(_examples(before, after, found, num_examples)),
        notes=(*before.notes, *after.notes, *_leaks(moves)),
    )


def _key_in_words(found: Matched, key: str | None) -> str:
    words = {
        "field": f"the field {key}",
        "id": "the id of the row",
        "prompt": "the prompt of the row",
        "position": "the place among unchanged rows, as not every row has an id or a prompt",
    }
    return words[found.key]


def _ids(version: Version, places: pl.Series) -> list[str]:
    return [version.id_of(file, line) for file, line in lines_of(version.rows[places])]


def _moves(before: Version, after: Version, found: Matched) -> tuple[Move, ...]:
    # A changed row can move, too; added and removed rows have one side only.
    pairs = pl.concat([found.same, found.changed])
    sides = pairs.with_columns(
        old_side=before.rows["side"].gather(pairs["old"]), new_side=after.rows["side"].gather(pairs["new"])
    ).filter(pl.col("old_side") != pl.col("new_side"))
    moves = []
    for (old_side, new_side), rows in sorted(sides.group_by("old_side", "new_side")):
        rows = rows.sort("new")
        ids = zip(_ids(before, rows["old"]), _ids(after, rows["new"]), strict=True)
        moves.append(Move(str(old_side), str(new_side), tuple(ids)))
    return tuple(moves)


def _leaks(moves: Iterable[Move]) -> list[str]:
    # Moves from validation to held_out are none: no model was trained on those rows.
    num = Counter({side: sum(len(move.rows) for move in moves if move.is_leak and move.new_side == side)
                   for side in _JUDGES})  # fmt: skip
    return [
        f"leak: {count:,} {side} {'row' if count == 1 else 'rows'} of the new version were in train of the old one: "
        "a model that was trained on the old version has seen them"
        for side, count in num.items()
        if count
    ]


def _columns(old: Mapping[str, ValueType], new: Mapping[str, ValueType]) -> list[ColumnChange]:
    made = []
    for name in dict.fromkeys([*old, *new]):
        # Compared as text: what a reader would see as no change is none.
        one, two = (side[name].in_words() if name in side else None for side in (old, new))
        if one != two:
            made.append(ColumnChange(name, one, two))
    return made


def _examples(before: Version, after: Version, found: Matched, num: int) -> list[RowChange]:
    changed = found.changed.head(num)
    old_places = {"changed": changed["old"], "removed": found.removed.head(num)}
    new_places = {"changed": changed["new"], "added": found.added.head(num)}
    old_at = {kind: list(lines_of(before.rows[places])) for kind, places in old_places.items()}
    new_at = {kind: list(lines_of(after.rows[places])) for kind, places in new_places.items()}
    # Read again, once for each version: only digests of the rows are in memory.
    old_rows = rows_at(before, {place for places in old_at.values() for place in places})
    new_rows = rows_at(after, {place for places in new_at.values() for place in places})
    made = [
        RowChange("changed", before.id_of(*one), after.id_of(*two), tuple(changes(old_rows[one], new_rows[two])))
        for one, two in zip(old_at["changed"], new_at["changed"], strict=True)
    ]
    made += [RowChange("added", None, after.id_of(*at), tuple(changes({}, new_rows[at]))) for at in new_at["added"]]
    made += [
        RowChange("removed", before.id_of(*at), None, tuple(changes(old_rows[at], {}))) for at in old_at["removed"]
    ]
    return made


def _example_json(example: RowChange) -> dict[str, Any]:
    fields = [{"field": one.field, "old": one.old, "new": one.new} for one in example.fields]
    return {"kind": example.kind, "old": example.old, "new": example.new, "fields": fields}
