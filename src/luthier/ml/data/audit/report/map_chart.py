"""The map of prompts as a picture: coloured by label where rows have one, rows with copies ringed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Audit
from luthier.ml.charts.figures import count, percent
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import OTHERS, Axis, Note, Plot, Role, Series, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.charts.visible import visible
from luthier.ml.data.audit.report.bars import WIDTH, short_name
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.rows.prompt_map import PromptMap, Region, prompt_map

_COPIES: Final = ("exact_duplicate", "near_duplicate")
_MIN_POINTS: Final = 3
_PREFIX_SHOWN: Final = 60
_ROLES: Final[tuple[Role, ...]] = (*OTHERS, "base")


def map_chart(audit: Audit, table: AuditTable) -> Chart | None:
    """The map of the prompts (of the texts where rows have no prompt); None where there are fewer than three."""
    frame = table.frame
    column = "prompt" if frame["prompt"].null_count() < frame.height else "text"
    found = prompt_map(frame[column])
    if len(found.positions) < _MIN_POINTS or not np.ptp(found.xy):
        return None
    copies = {line for finding in audit.findings if finding.check in _COPIES for line in finding.lines}
    what = "prompts" if column == "prompt" else "texts"
    series, said = _series(found, frame[found.positions], copies)
    described = f"{_how(found, what)} {said}".strip()
    hidden = Axis("", is_shown=False)
    chart = Plot(
        "chart-map",
        f"Map of the {what}",
        hidden,
        hidden,
        series,
        notes=_regions(found),
        caption=described,
        width_pixels=WIDTH,
        height_pixels=400,
    )
    return report_chart(chart)


def _series(found: PromptMap, rows: pl.DataFrame, copies: Collection[int]) -> tuple[list[Series], str]:
    """A series for each class of label and one of rings for copies, and what colours and rings mean."""
    x, y = found.xy.T
    radius = 2.6 if len(x) < 300 else 2.0 if len(x) < 1_500 else 1.6
    classes, said = _classes(rows["label"])
    series = [
        Series(short_name(name), points_of(x[members], y[members]), role, "dots", is_faint=True, radius_pixels=radius)
        for (name, members), role in zip(classes, _ROLES, strict=False)
    ]
    # The map may be a sample, so copies are matched by line and not by position.
    is_copy = np.isin(rows["line"].to_numpy(), np.fromiter(copies, dtype=np.int64, count=len(copies)))
    if is_copy.any():
        rings = points_of(x[is_copy], y[is_copy])
        series.append(Series("copy", rings, "tuned", "dots", is_open=True, radius_pixels=1.6 * radius))
        said += " Rings: surplus copies and near-copies of other rows."
    return series, said.strip()


def _regions(found: PromptMap) -> list[Note]:
    """The words of each region at its middle; of two that would overlap, or say the same, the one with more rows."""
    width, height = np.ptp(found.xy, axis=0)
    taken: list[Region] = []
    for region in sorted(found.regions, key=lambda region: -region.num_points):
        if any(
            (abs(region.x - other.x) < 0.3 * width and abs(region.y - other.y) < 0.07 * height)
            or set(region.words) == set(other.words)
            for other in taken
        ):
            continue
        taken.append(region)
    return [Note(one.x, one.y, visible(" · ".join(one.words)), is_bold=True) for one in taken]


def _classes(labels: pl.Series) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Up to three largest labels and the rest, each with its places; one class where there are no labels."""
    there = labels.drop_nulls().value_counts(sort=True)
    if there.height < 2:
        return [("row", np.arange(labels.len()))], ""
    names = sorted(there.iter_rows(), key=lambda pair: (-pair[1], pair[0]))[:3]
    values = labels.to_list()
    classes = [(name, np.array([i for i, value in enumerate(values) if value == name])) for name, _ in names]
    kept = {name for name, _ in names}
    rest = np.array([i for i, value in enumerate(values) if value not in kept])
    if len(rest):
        classes.append(("other or none", rest))
    return classes, "Colours: labels."


def _how(found: PromptMap, what: str) -> str:
    drawn = len(found.positions)
    how_many = f"{count(drawn)} of {count(found.num_texts)} rows" if drawn < found.num_texts else f"{count(drawn)} rows"
    text = (
        f"{how_many}; {what} with the same words lie close together. Two dimensions keep "
        f"{percent(found.explained_share)} of the differences, so distances are a hint only."
    )
    if found.prefix:
        text += f" Left out, as nearly all begin with it: “{visible(found.prefix[:_PREFIX_SHOWN].strip())}”"
        text += "…" if len(found.prefix) > _PREFIX_SHOWN else ""
        text += f" ({count(len(found.prefix))} characters)."
    return text
