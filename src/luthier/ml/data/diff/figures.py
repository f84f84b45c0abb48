"""Two versions in figures, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from luthier.core.ports import Progress
from luthier.ml.data.diff.version import Version

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
