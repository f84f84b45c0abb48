"""What of a table of formats has been made: kept beside its exports, so that a kill costs one export or one judging."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import ConflictError
from luthier.core.records.format_table import FormatPrice
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.ml.export.format_benchmark.asking import Quality
from luthier.platform.workflows.engine import Outcome, hold

EXPORTS: Final = "exports"
TABLE: Final = "formats.json"
PAGE: Final = "formats.html"
EXPORT, JUDGE = "export ", "judge "
_KEPT, _LOCK = "unfinished.json", "lock"


class Exported(Outcome):
    """An export, or why there is none."""

    price: FormatPrice | None = None


class Measured(Outcome):
    """The answers of a format to the rows.

    Attributes:
        quality: Likelihoods and texts of all rows.
        missing: Why there are none.
    """

    quality: Quality | None = None
    missing: str = ""

    @property
    def why_skipped(self) -> str:
        """There is no export to ask."""
        return self.missing


class FormatProgress:
    """The stored record of a table: exports that are made and qualities that are measured, by label.

    Speeds are not kept: they compare with each other only where they are measured together. Formats may be added to an
    unfinished table: what is made of the others holds.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.folder, self._asked = folder, asked
        self._prices, self._qualities = dict(found.get("prices", {})), dict(found.get("qualities", {}))
        self._before, self._began = float(found.get("seconds", 0.0)), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, in this attempt and in earlier ones that have stored a result."""
        # Monotonic, so only durations are kept across attempts, never a starting point.
        return self._before + time.perf_counter() - self._began

    def pipeline(self, names: Sequence[str]) -> Pipeline:
        """The record with these stages."""
        kept = {f"{EXPORT}{label}": {"price": one} for label, one in self._prices.items()}
        kept |= {f"{JUDGE}{label}": {"quality": one} for label, one in self._qualities.items()}
        stages = tuple(
            Stage(name=name, status="done" if name in kept else "waiting", came=kept.get(name, {})) for name in names
        )
        return Pipeline(pipeline_id=self.folder.name, kind="formats", asked=dict(self._asked), stages=stages)

    def save(self, pipeline: Pipeline) -> None:
        """Store the stages that are done."""
        from luthier.ml.charts.page import replace_text

        for stage in pipeline.stages:
            if stage.status == "done" and "price" in stage.came:
                self._prices[stage.name.removeprefix(EXPORT)] = stage.came["price"]
            if stage.status == "done" and "quality" in stage.came:
                self._qualities[stage.name.removeprefix(JUDGE)] = stage.came["quality"]
        document = {
            "asked": self._asked,
            "seconds": self.seconds,
            "prices": self._prices,
            "qualities": self._qualities,
        }
        # Write and rename: a kill leaves the record of the stage before, never half a JSON document.
        replace_text(self.folder / EXPORTS / _KEPT, json.dumps(document) + "\n")


def close_table(folder: Path, *, keeps_exports: bool) -> None:
    """The table is written: nothing is unfinished any more."""
    (folder / EXPORTS / _KEPT).unlink(missing_ok=True)
    (folder / EXPORTS / _LOCK).unlink(missing_ok=True)
    if not keeps_exports:
        shutil.rmtree(folder / EXPORTS, ignore_errors=True)


@contextmanager
def format_progress(folder: Path, asked: Mapping[str, Any]) -> Iterator[FormatProgress]:
    """The progress of a table in this folder (made where it is missing), from where an earlier attempt stopped.

    Args:
        folder: The folder of the table.
        asked: All that exports and qualities depend on, as JSON.

    Raises:
        ConflictError: The folder holds a table, or the unfinished one of another request, or a process works on it.
    """
    folder = folder.absolute()
    check_table_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / EXPORTS / _KEPT
    # A file lock, held by the kernel: it goes with the process, however that ends.
    with hold(folder / EXPORTS / _LOCK, f"the table of formats in {folder}"):
        found = _read(kept)
        # Versions of torch and transformers are part of `asked`: figures of two versions do not compare.
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
    # The page is written before the table. With a lock beside it, an attempt stopped between the two.
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
