"""The map of prompts as a picture: coloured by label where rows have one, rows with copies ringed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from luthier.core.results.audit import Audit
from luthier.ml.charts.figures import count, percent
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, PAPER, TUNED, inline_svg
from luthier.ml.charts.visible import visible
from luthier.ml.data.audit.report.bars import page_canvas, short_name
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.rows.prompt_map import PromptMap, Region, prompt_map

_COPIES: Final = ("exact_duplicate", "near_duplicate")
_MIN_POINTS: Final = 3
_PREFIX_SHOWN: Final = 60
_LEGEND_SIZE: Final = 26


def map_chart(audit: Audit, table: AuditTable) -> Chart | None:
    """The map of the prompts (of the texts where rows have no prompt); None where there are fewer than three."""
    frame = table.frame
    column = "prompt" if frame["prompt"].null_count() < frame.height else "text"
    found = prompt_map(frame[column])
    if len(found.positions) < _MIN_POINTS or not np.ptp(found.xy):
        return None
    copies = {line for finding in audit.findings if finding.check in _COPIES for line in finding.lines}
    what = "prompts" if column == "prompt" else "texts"
    title = f"Map of the {what}"
    with page_canvas(400) as (figure, axes):
        caption = _draw(axes, found, frame[found.positions], copies)
        described = f"{_how(found, what)} {caption}".strip()
        svg = inline_svg(figure, name="chart-map", title=title, description=described)
    return Chart(title, described, svg)


def _draw(axes: Axes, found: PromptMap, rows: pl.DataFrame, copies: Collection[int]) -> str:
    x, y = found.xy.T
    size = 22 if len(x) < 300 else 12 if len(x) < 1_500 else 8
    classes, said = _classes(rows["label"])
    for place, (name, members) in enumerate(classes):
        colour = (*OTHERS, BASE)[min(place, 3)]
        axes.scatter(x[members], y[members], s=size, color=colour, alpha=0.6, linewidths=0, label=short_name(name))
    is_copy = np.isin(rows["line"].to_numpy(), np.fromiter(copies, dtype=np.int64, count=len(copies)))
    if is_copy.any():
        axes.scatter(
            x[is_copy], y[is_copy], s=size * 2.2, facecolors="none", edgecolors=TUNED, linewidths=1.0, label="copy"
        )
        said += " Rings: surplus copies and near-copies of other rows."
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(0.08)
    _name_regions(axes, found)
    if len(classes) > 1 or is_copy.any():
        axes.legend(
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.01),
            ncols=4,
            markerscale=(_LEGEND_SIZE / size) ** 0.5,
            labelcolor=MUTED,
            handletextpad=0.2,
            columnspacing=1.2,
        )
    return said.strip()


def _name_regions(axes: Axes, found: PromptMap) -> None:
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
        axes.annotate(
            visible(" · ".join(region.words)),
            (region.x, region.y),
            (0, 9),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=INK,
            fontweight="bold",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.8},
        )


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
