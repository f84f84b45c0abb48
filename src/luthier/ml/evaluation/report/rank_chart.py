"""Where AdaLoRA has put its ranks: one cell a matrix, kinds down and layers across."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import INK, RULE, TUNED, canvas, inline_svg
from luthier.ml.evaluation.names import listed

_WIDTH: Final = 940
_CELL_HEIGHT: Final = 26
_MAX_OPAQUE: Final = 0.6
_GAP: Final = 0.06

Grid = dict[str, dict[int, float]]


def rank_charts(ranks: Mapping[str, int]) -> list[Chart]:
    """One heat map of the ranks by module name; none where there are no ranks, or none inside numbered layers."""
    grid = rank_grid(ranks)
    if not grid:
        return []
    layers = sorted({layer for row in grid.values() for layer in row})
    text = _in_words(ranks)
    with canvas(_WIDTH, _CELL_HEIGHT * len(grid) + 60) as (figure, axes):
        _draw(axes, grid, layers)
        svg = inline_svg(figure, name="chart-ranks", title="Rank of each matrix", description=text)
    return [Chart("Rank of each matrix at the end", text, svg)]


def rank_grid(ranks: Mapping[str, int]) -> Grid:
    """kind -> layer -> rank; the mean where a layer has several matrices of a kind, as experts are."""
    found: dict[str, dict[int, list[int]]] = {}
    for name, rank in ranks.items():
        number = re.search(r"\.(\d+)\.", name)
        if number is not None:
            found.setdefault(name.rpartition(".")[2], {}).setdefault(int(number[1]), []).append(rank)
    return {kind: {at: sum(rs) / len(rs) for at, rs in row.items()} for kind, row in found.items()}


def _draw(axes: Axes, grid: Grid, layers: list[int]) -> None:
    most = max(rank for row in grid.values() for rank in row.values()) or 1.0
    size = 8.5 if len(layers) <= 34 else 6.0
    for place, row in enumerate(grid.values()):
        for column, layer in enumerate(layers):
            if layer not in row:
                continue
            corner, side = (column - 0.5 + _GAP / 2, place - 0.5 + _GAP), 1 - _GAP
            share = row[layer] / most
            axes.add_patch(Rectangle(corner, side, 1 - 2 * _GAP, fc=TUNED, ec="none", alpha=_MAX_OPAQUE * share))
            axes.add_patch(Rectangle(corner, side, 1 - 2 * _GAP, fc="none", ec=RULE, lw=0.6))
            axes.text(column, place, f"{row[layer]:.3g}", ha="center", va="center", fontsize=size, color=INK)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(len(grid) - 0.5, -0.5)
    axes.set_yticks(range(len(grid)), list(grid))
    every = max(1, -(-len(layers) // 34))
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("layer")


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
