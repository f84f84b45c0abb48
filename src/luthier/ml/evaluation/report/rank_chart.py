"""Where AdaLoRA has put its ranks: one cell a matrix, kinds down and layers across."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Cell, Matrix
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.names import listed

_WIDTH: Final = 940

Grid = dict[str, dict[int, float]]


def rank_charts(ranks: Mapping[str, int]) -> list[Chart]:
    """One heat map of the ranks by module name; none where there are no ranks, or none inside numbered layers."""
    grid = rank_grid(ranks)
    if not grid:
        return []
    layers = sorted({layer for row in grid.values() for layer in row})
    most = max(rank for row in grid.values() for rank in row.values()) or 1.0
    cells = [
        [Cell(row[layer] / most, f"{row[layer]:.3g}") if layer in row else None for layer in layers]
        for row in grid.values()
    ]
    chart = Matrix(
        "chart-ranks",
        "Rank of each matrix",
        Axis("layer"),
        Axis(""),
        [str(layer) for layer in layers],
        list(grid),
        cells,
        caption=_in_words(ranks),
        width_pixels=_WIDTH,
    )
    return [report_chart(chart, heading="Rank of each matrix at the end")]


def rank_grid(ranks: Mapping[str, int]) -> Grid:
    """kind -> layer -> rank; the mean where a layer has several matrices of a kind, as experts are."""
    found: dict[str, dict[int, list[int]]] = {}
    for name, rank in ranks.items():
        # The first number between dots is the layer; a later one is an expert.
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            found.setdefault(name.rpartition(".")[2], {}).setdefault(int(number[1]), []).append(rank)
    return {kind: {at: sum(rs) / len(rs) for at, rs in row.items()} for kind, row in found.items()}


def _in_words(ranks: Mapping[str, int]) -> str:
    total, most = sum(ranks.values()), max(ranks.values())
    means = {kind: sum(row.values()) / len(row) for kind, row in rank_grid(ranks).items()}
    order = sorted(means, key=lambda kind: -means[kind])
    off = sum(rank == 0 for rank in ranks.values())
    text = f"{total:,} ranks over {len(ranks):,} matrices, {total / len(ranks):.3g} on average, {most} at most"
    text += f"; {off} {'matrix has' if off == 1 else 'matrices have'} none" if off else ""
    if len(order) > 1:
        named = [f"{kind} {means[kind]:.3g}" for kind in order]
        text += f". On average by kind: {listed(named)}"
    return f"{text}."
