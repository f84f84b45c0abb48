"""What of a table of formats has been made: kept beside its exports, so that a kill costs one export or one judging."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ConflictError
from luthier.core.records.format_table import FormatPrice

if TYPE_CHECKING:
    from luthier.ml.export.format_benchmark.asking import Quality

EXPORTS: Final = "exports"
TABLE: Final = "formats.json"
PAGE: Final = "formats.html"
_KEPT, _LOCK = "unfinished.json", "lock"


class FormatProgress:
    """The exports that are made and the qualities that are measured, by label. seconds: that earlier attempts took.

    Speeds are not kept: they compare with each other only where they are measured together.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        from luthier.ml.export.format_benchmark.asking import Quality

        self.folder, self._asked = folder, asked
        self.prices = {label: FormatPrice.model_validate(one) for label, one in found.get("prices", {}).items()}
        self.qualities = {label: Quality.model_validate(one) for label, one in found.get("qualities", {}).items()}
        self._before, self._began = float(found.get("seconds", 0.0)), time.perf_counter()

    @property
    def seconds(self) -> float:
        """What the table has taken so far, in this attempt and those before it that came to something."""
        return self._before + time.perf_counter() - self._began

    def keep_price(self, price: FormatPrice) -> FormatPrice:
        """Write down that an export is made, or why there is none."""
        self.prices[price.label] = price
        self._write()
        return price

    def keep_quality(self, label: str, quality: Quality) -> Quality:
        """Write down what a format makes of the rows."""
        self.qualities[label] = quality
        self._write()
        return quality

    def close(self, *, keeps_exports: bool) -> None:
        """The table is written: nothing is unfinished any more."""
        (self.folder / EXPORTS / _KEPT).unlink(missing_ok=True)
        (self.folder / EXPORTS / _LOCK).unlink(missing_ok=True)
        if not keeps_exports:
            shutil.rmtree(self.folder / EXPORTS, ignore_errors=True)

    def _write(self) -> None:
        from luthier.ml.charts.page import replace_text

        document = {
            "asked": self._asked,
            "seconds": self.seconds,
            "prices": {label: one.model_dump(mode="json") for label, one in self.prices.items()},
            "qualities": {label: one.model_dump(mode="json") for label, one in self.qualities.items()},
        }
        replace_text(self.folder / EXPORTS / _KEPT, json.dumps(document) + "\n")


@contextmanager
def format_progress(folder: Path, asked: Mapping[str, Any]) -> Iterator[FormatProgress]:
    """The progress of a table in this folder (made where it is missing), from where an earlier attempt has left it.

    asked: all that exports and qualities depend on, as JSON. Raises ConflictError where the folder holds a table, or
    what was made for another one, and where another process is at it.
    """
    from luthier.core.system.file_lock import file_lock

    folder = folder.absolute()
    check_table_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / EXPORTS / _KEPT
    with file_lock(folder / EXPORTS / _LOCK, what=f"the table of formats in {folder}", timeout_seconds=1):
        found = _read(kept)
        if found and found["asked"] != asked:
            differing = [name for name in asked if found["asked"].get(name) != asked[name]]
            raise ConflictError(
                f"{folder} has the unfinished table of another request: {', '.join(differing)} differ",
                expected="the same request, which goes on where it was stopped",
                do="ask for the same again, choose another folder with -o, or remove this one",
            )
        yield FormatProgress(folder, asked, found)


def check_table_folder(folder: Path) -> None:
    """Raise ConflictError where a folder holds a table, its page, or exports that no stopped attempt has left."""
    holds_page = (folder / PAGE).exists() and not (folder / EXPORTS / _LOCK).exists()
    if (folder / TABLE).exists() or holds_page or ((folder / EXPORTS).exists() and not _is_begun(folder)):
        raise ConflictError(
            f"{folder} is there already and has a table of formats in it, its page, or exports of one",
            expected="a folder without these",
            do="choose another with -o, or remove it first",
        )


def _is_begun(folder: Path) -> bool:
    """Whether the exports that lie here are those of a table that was stopped: its lock lies there before any other."""
    return (folder / EXPORTS / _LOCK).exists() or not any((folder / EXPORTS).iterdir())


def _read(kept: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
