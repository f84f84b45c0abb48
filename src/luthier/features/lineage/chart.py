"""Lineage as a drawing: a column for each kind of thing, from rows on the left to deployments on the right, all links.

Each model has a band of its own, in which no line runs behind a box: what is made of it is below what judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from markupsafe import Markup, escape

from luthier.features.lineage.service import Lineage, Node, NodeKind
from luthier.ml.charts.visible import visible

_COLUMNS: Final[tuple[tuple[str, tuple[NodeKind, ...]], ...]] = (
    ("Rows and base", ("dataset", "file", "base")),
    ("Run", ("run",)),
    ("Model", ("model", "checkpoint")),
    ("Evaluation", ("evaluation",)),
    ("Export", ("export",)),
    ("Deployment", ("deployment",)),
)
_EVALUATION, _EXPORT, _DEPLOYMENT = 3, 4, 5
_WIDTH: Final = 976
_GAP: Final = 32
_NARROWEST, _WIDEST = 136, 190
_HEIGHT: Final = 44
_ROW: Final = 56
_TOP: Final = 30
_BETWEEN: Final = 14
_LETTER_PIXELS: Final = 8.1
_SMALL_LETTER_PIXELS: Final = 6.8
_EDGE: Final = 2


def lineage_svg(lineage: Lineage, *, here: str = "") -> Markup:
    """The graph as an `<svg>` of its natural size. here: the key of the node that the page is about."""
    rows, num_rows = _placed(lineage)
    used = sorted({_column(node) for node in lineage.nodes.values()})
    # Columns that hold nothing take no width, so the rest may be wider.
    wide = min(_WIDEST, max(_NARROWEST, (_WIDTH - _GAP * (len(used) - 1)) // max(1, len(used))))
    left = {column: _EDGE + n * (wide + _GAP) for n, column in enumerate(used)}
    places = {key: (left[_column(node)], rows[key]) for key, node in lineage.nodes.items()}
    width = 2 * _EDGE + len(used) * wide + (len(used) - 1) * _GAP
    parts = [f'<text class="column" x="{left[c] + 1}" y="14">{_COLUMNS[c][0]}</text>' for c in used]
    parts += [_edge(places[a], places[b], wide) for a, b in lineage.edges]
    before: dict[str, list[Node]] = {}
    for first, then in lineage.edges:
        before.setdefault(then, []).append(lineage.nodes[first])
    parts += [_box(node, places[key], wide, before.get(key, []), here) for key, node in lineage.nodes.items()]
    head = (
        f'<svg class="lineage" role="group" aria-label="Lineage, from rows to deployments" width="{width}" '
        f'height="{num_rows}" viewBox="0 0 {width} {num_rows}">'
    )
    return Markup(head + "".join(parts) + "</svg>")  # noqa: S704 - every text in it went through `escape`


def address_of(node: Node) -> str | None:
    """The page of a node; None for one that has none."""
    name = quote(node.subject, safe="/")
    if node.kind == "dataset":
        return f"/datasets/{name}?version={node.version}"
    folder = {
        "base": "models",
        "model": "models",
        "checkpoint": "models",
        "run": "runs",
        "evaluation": "evaluations",
        "export": "exports",
        "deployment": "deployments",
    }.get(node.kind)
    return None if folder is None else f"/{folder}/{name}"


def _placed(lineage: Lineage) -> tuple[dict[str, float], int]:
    """The top of each node, and the height of all."""
    tops: dict[str, float] = {}
    top: float = _TOP
    sources: dict[str, list[str]] = {}
    for first, then in lineage.edges:
        sources.setdefault(then, []).append(first)
    for band in sorted({node.band for node in lineage.nodes.values()}):
        nodes = [node for node in lineage.nodes.values() if node.band == band]
        rows = _rows(nodes, sources)
        tops |= {key: top + row * _ROW for key, row in rows.items()}
        top += (max(rows.values()) + 1) * _ROW + _BETWEEN
    return tops, int(top - _BETWEEN - (_ROW - _HEIGHT) + _EDGE)


def _rows(nodes: Sequence[Node], sources: dict[str, list[str]]) -> dict[str, int]:
    """The row of each node of a band, from 0 on."""
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(_column(node), []).append(node)
    rows: dict[str, int] = {}
    for column in range(_EVALUATION + 1):
        rows |= {node.key: n for n, node in enumerate(columns.get(column, []))}
    num_judged = len(columns.get(_EVALUATION, []))
    # Exports start below the last evaluation: a line from the model to an export then crosses no evaluation box.
    rows |= {node.key: num_judged + n for n, node in enumerate(columns.get(_EXPORT, []))}
    # Deployments of the model itself are drawn below all exports, so that their lines pass under the boxes.
    below = num_judged + len(columns.get(_EXPORT, []))
    taken: set[int] = set()
    for node in columns.get(_DEPLOYMENT, []):
        wanted = next((rows[key] for key in sources.get(node.key, []) if key in rows and rows[key] not in taken), below)
        is_of_export = any(key in rows and rows[key] == wanted and wanted >= num_judged for key in sources[node.key])
        row = wanted if is_of_export and below > num_judged else below
        # Two deployments of one export: the second takes the next free row.
        while row in taken:
            row += 1
        taken.add(row)
        rows[node.key] = row
    return rows


def _column(node: Node) -> int:
    return next(n for n, (_, kinds) in enumerate(_COLUMNS) if node.kind in kinds)


def _edge(first: tuple[float, float], then: tuple[float, float], wide: int) -> str:
    x1, y1 = first[0] + wide, first[1] + _HEIGHT / 2
    x2, y2 = then[0], then[1] + _HEIGHT / 2
    bend, end = x1 + _GAP / 2, x1 + _GAP
    # A cubic curve over the first gap, then straight: the bend lies between columns and never behind a box.
    curve = f"M{x1:.0f} {y1:.0f}C{bend:.0f} {y1:.0f} {bend:.0f} {y2:.0f} {end:.0f} {y2:.0f}"
    return f'<path class="edge" d="{curve}H{x2:.0f}"/>'


def _box(node: Node, place: tuple[float, float], wide: int, before: Sequence[Node], here: str) -> str:
    x, y = place
    # SVG does not wrap or clip text, so it is cut by an average letter width.
    name = _short(visible(node.name), int((wide - 20) / _LETTER_PIXELS))
    note = _short(visible(node.note), int((wide - 20) / _SMALL_LETTER_PIXELS))
    told = f"{name}, {note}" if note else name
    if name != visible(node.name):
        told += f" ({visible(node.name)})"
    if before:
        told += f"; {node.kind} made from {visible(', '.join(one.name for one in before))}"
    classes = " ".join(("node", node.kind, node.tone or "plain", *(("here",) if node.key == here else ())))
    shape = (
        # The title has the full name for tooltips and screen readers; every part goes through `escape`.
        f'<title>{escape(told)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 11:.0f}" y="{y + 19:.0f}">{escape(name)}</text>'
        f'<text class="note" x="{x + 11:.0f}" y="{y + 35:.0f}">{escape(note)}</text>'
    )
    address = address_of(node)
    if address is None:
        return f'<g class="{classes}">{shape}</g>'
    current = ' aria-current="page"' if node.key == here else ""
    return f'<a class="{classes}" href="{escape(address)}"{current}>{shape}</a>'


def _short(text: str, most: int) -> str:
    """The beginning of words that are too long; of a name without blanks also its end, which tells it from others."""
    if len(text) <= most:
        return text
    if " " in text:
        return f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
    tail = most // 2
    return f"{text[: most - tail - 1]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"
