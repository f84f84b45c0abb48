"""Predicted over measured, each with its interval, as one SVG or PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_RIGHT, _INK, _MUTED, _RULE = "#1f6f8b", "#1b1b1b", "#5c5c5c", "#d9d9d9"


def draw(rows: list[dict[str, Any]], kinds: dict[str, tuple[str, str]], file: Path, *, allowed: float) -> None:
    """One panel a kind. kinds: field of a row -> (title of its panel, name of the measured side).

    A point is predicted / measured, the line its interval; 1 is right, and the band is `allowed` to both sides.
    """
    figure = Figure(figsize=(10, 1.6 + 0.26 * len(rows)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (kind, (title, other)) in zip(panels, kinds.items(), strict=True):
        axes.axvspan(1 - allowed, 1 + allowed, color="#eef4f6", lw=0)
        axes.axvline(1.0, color=_MUTED, lw=1)
        for place, row in enumerate(rows):
            if kind not in row:
                axes.annotate("not given", (1.0, place), color=_MUTED, ha="center", va="center", fontsize=7)
                continue
            one = row[kind]
            of = one.get("measured", one.get("published"))
            axes.plot([one["low"] / of, one["high"] / of], [place, place], color=_RIGHT, lw=1.6, alpha=0.55)
            axes.plot([one["predicted"] / of], [place], "o", color=_RIGHT, ms=5)
        axes.set_title(title, loc="left", fontsize=10, color=_INK)
        axes.set_xlabel(f"predicted / {other}; band: {allowed:.0%} to both sides", fontsize=8, color=_MUTED)
        axes.grid(axis="x", color=_RULE, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelsize=8, colors=_INK)
    panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": file.stem}):  # text stays text, the same bytes each time
        figure.savefig(file, dpi=130, metadata={"Date": None} if file.suffix == ".svg" else None)
