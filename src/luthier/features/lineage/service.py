"""Use case: lineage: rows -> run -> model -> evaluation, export, deployment, as data and as a drawing.

Digests connect a run to the dataset versions that it was trained and evaluated on; ids connect everything else. The
drawing has a column for each kind of thing. Each model has its own band, in which no line runs behind a box: what
is made of it is below what evaluates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import quote

from markupsafe import Markup, escape

from luthier.core.access import Caller
from luthier.core.plan import Plan
from luthier.features.datasets.remote_imports import imported_version, short_source
from luthier.features.model_cards.service import TunedView, list_tuned, rows_by_digest, show_tuned
from luthier.features.serving.targets import EXPORT
from luthier.ml.charts.visible import visible
from luthier.platform.home.context import Context
from luthier.platform.ui.human_names import HumanNames

NodeKind = Literal["base", "dataset", "file", "run", "model", "checkpoint", "evaluation", "export", "deployment"]
Tone = Literal["", "good", "bad", "open"]
MAX_RUNS: Final = 12
_TONES: Final[dict[str, Tone]] = {"better": "good", "worse": "bad"}


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in the graph.

    Attributes:
        key: Its id in the graph.
        kind: What it is.
        name: What it is called.
        note: A second line.
        tone: Whether it is shown as good, bad or open.
        subject: The id that its page is found by.
        version: The version of a dataset.
        band: The place of the model that it is drawn with, from 0 on.
        origin: The address and revision that a dataset was imported from; empty for none.
    """

    key: str
    kind: NodeKind
    name: str
    note: str = ""
    tone: Tone = ""
    subject: str = ""
    version: int | None = None
    band: int = 0
    origin: str = ""


@dataclass(slots=True)
class Lineage:
    """A graph of nodes.

    Attributes:
        nodes: By key.
        edges: Pairs of keys, each once, in order.
        has_more: Whether older runs were left out.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)
    has_more: bool = False

    def add(self, node: Node, *before: str) -> str:
        """Add a node, where it is not there yet, behind others; returns its key."""
        self.nodes.setdefault(node.key, node)
        for key in before:
            # A dict as an ordered set: the drawing has to come out the same each time.
            self.edges[(key, node.key)] = None
        return node.key


def project_lineage(context: Context, caller: Caller, *, limit: int = MAX_RUNS) -> Lineage:
    """Of the newest models of the project."""
    views, has_more = list_tuned(context, caller, limit=limit)
    made = _drawn(context, caller, views, with_checkpoints=False)
    made.has_more = has_more
    return made


def model_lineage(context: Context, caller: Caller, run_id: str) -> Lineage:
    """The graph of what one run has made, with its checkpoints.

    Raises:
        NotFoundError: No such run in the project.
        ConflictError: The run has not succeeded.
    """
    return _drawn(context, caller, [show_tuned(context, caller, run_id).view], with_checkpoints=True)


def _drawn(context: Context, caller: Caller, views: Iterable[TunedView], *, with_checkpoints: bool) -> Lineage:
    made, shown = Lineage(), list(views)
    names = context.run_labels.names([view.record.run_id for view in shown])
    for band, view in enumerate(shown):
        name = names[view.record.run_id]
        _add_model(context, caller, made, view, name, band, with_checkpoints=with_checkpoints)
    return made


def _add_model(
    context: Context,
    caller: Caller,
    made: Lineage,
    view: TunedView,
    run_name: str,
    band: int,
    *,
    with_checkpoints: bool,
) -> None:
    record = view.record
    before = _add_rows(context, caller, made, context.runs.plan(record.run_id), band)
    before.append(made.add(Node(f"base {view.base}", "base", view.base, "base model", subject=view.base, band=band)))
    num_steps = f"{record.num_steps:,} step{'' if record.num_steps == 1 else 's'}"
    note = f"{record.method}, {num_steps}"
    run = made.add(Node(record.run_id, "run", run_name, note, subject=record.run_id, band=band), *before)
    # Its name in requests is in the details: it is for programs.
    outcome = Node(f"model {record.run_id}", "model", run_name, "outcome", subject=view.name, band=band)
    model = made.add(outcome, run)
    for one in reversed(view.checkpoints) if with_checkpoints else ():
        step = Node(one.model_id, "checkpoint", f"step {one.step:,}", "checkpoint", subject=one.model_id, band=band)
        made.add(step, run)
    if (judged := view.evaluation) is not None:
        word = judged.verdict.word if judged.verdict is not None else "no verdict"
        rows = f"{judged.num_rows:,} held-out row{'' if judged.num_rows == 1 else 's'}"
        subject = judged.evaluation_id
        made.add(Node(subject, "evaluation", word, rows, _TONES.get(word, ""), subject, band=band), model)
    targets = {record.run_id: model, view.name: model} | dict.fromkeys(view.names, model)
    for export in view.exports:
        if (document := export.document) is None:
            continue
        name, subject = f"{document.format} {document.precision}", export.export_id
        proof = "proved equal" if document.is_proved else "not proved"
        node = Node(subject, "export", name, proof, "good" if proof == "proved equal" else "", subject, band=band)
        targets[f"{EXPORT}{export.export_id}"] = made.add(node, model)
    for name in view.deployments:
        revision = context.deployments.get(caller.project_id, name).revision
        # A deployment may split its users over models of other runs; only edges from this one are drawn here.
        shares = [share for share in revision.shares if share.target in targets]
        note = f"revision {revision.number}"
        for share in shares:
            node = Node(f"deployment {name}", "deployment", name, note, "open", name, band=band)
            made.add(node, targets[share.target])


def _add_rows(context: Context, caller: Caller, made: Lineage, plan: Plan, band: int) -> list[str]:
    """The rows that a run has used; those that are no version of a dataset by the names of their files."""
    data, replay = plan.data, plan.data.replay
    profiles = (data.train, data.validation, data.held_out, *((replay.rows, replay.held_out) if replay else ()))
    # Reversed twice: of splits that share a file the first (train) wins, and the order stays that of the plan.
    used = {profile.sha256: profile for profile in reversed(profiles) if profile is not None}
    known = rows_by_digest(context, caller, list(used))
    keys = []
    for sha256, profile in reversed(used.items()):
        note = f"{profile.num_rows:,} rows, {profile.split.replace('_', '-')}"
        if sha256 in known:
            dataset, version = known[sha256]
            name, subject = f"{dataset.name} v{version.number}", dataset.dataset_id
            origin = short_source(imported_version(context, caller, version))
            node = Node(sha256, "dataset", name, note, "", subject, version.number, band, origin)
        else:
            name = HumanNames(context, caller.project_id)(profile.file.replace("\\", "/").rsplit("/", 1)[-1])
            node = Node(sha256, "file", name, note, band=band)
        keys.append(made.add(node))
    return keys


_COLUMNS: Final[tuple[tuple[str, tuple[NodeKind, ...]], ...]] = (
    ("Rows and base", ("dataset", "file", "base")),
    ("Run", ("run",)),
    ("Model", ("model", "checkpoint")),
    ("Evaluation", ("evaluation",)),
    ("Export", ("export",)),
    ("Deployment", ("deployment",)),
)
_EVALUATION, _EXPORT, _DEPLOYMENT = 3, 4, 5
_BY_ID: Final = ("run", "model", "checkpoint", "evaluation", "export")
"""Kinds that are called by a name: their ids are in the details that a pointer or a screen reader shows."""
_NAMED_BY_US: Final = ("checkpoint", "evaluation")
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


def lineage_svg(lineage: Lineage, *, here: str = "", word: Callable[[str], str] = str) -> Markup:
    """The graph as an `<svg>` of its natural size.

    Args:
        lineage: The graph.
        here: The key of the node that the page is about.
        word: The text of a page's language for one of ours.
    """
    # Names are those of people and models, but for steps and verdicts.
    nodes = {
        key: replace(node, name=word(node.name) if node.kind in _NAMED_BY_US else node.name, note=word(node.note))
        for key, node in lineage.nodes.items()
    }
    rows, num_rows = _placed(lineage)
    used = sorted({_column(node) for node in lineage.nodes.values()})
    # Columns that hold nothing take no width, so the rest may be wider.
    wide = min(_WIDEST, max(_NARROWEST, (_WIDTH - _GAP * (len(used) - 1)) // max(1, len(used))))
    left = {column: _EDGE + n * (wide + _GAP) for n, column in enumerate(used)}
    places = {key: (left[_column(node)], rows[key]) for key, node in lineage.nodes.items()}
    width = 2 * _EDGE + len(used) * wide + (len(used) - 1) * _GAP
    parts = [f'<text class="column" x="{left[c] + 1}" y="14">{escape(word(_COLUMNS[c][0]))}</text>' for c in used]
    parts += [_edge(places[a], places[b], wide) for a, b in lineage.edges]
    before: dict[str, list[Node]] = {}
    for first, then in lineage.edges:
        before.setdefault(then, []).append(nodes[first])
    parts += [_box(node, places[key], wide, before.get(key, []), here, word) for key, node in nodes.items()]
    label = escape(word("Lineage, from rows to deployments"))
    head = (
        f'<svg class="lineage" role="group" aria-label="{label}" width="{width}" '
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
    # A cubic curve over the first gap, then straight: the bend is between columns and never behind a box.
    curve = f"M{x1:.0f} {y1:.0f}C{bend:.0f} {y1:.0f} {bend:.0f} {y2:.0f} {end:.0f} {y2:.0f}"
    return f'<path class="edge" d="{curve}H{x2:.0f}"/>'


def _box(
    node: Node, place: tuple[float, float], wide: int, before: Sequence[Node], here: str, word: Callable[[str], str]
) -> str:
    x, y = place
    # SVG does not wrap or clip text, so it is cut by an average letter width.
    name = _short(visible(node.name), int((wide - 20) / _LETTER_PIXELS))
    note = _short(visible(node.note), int((wide - 20) / _SMALL_LETTER_PIXELS))
    label = f"{name}, {note}" if note else name
    if name != visible(node.name):
        label += f" ({visible(node.name)})"
    if before:
        made_from = word(f"{node.kind} made from")
        label += f"; {made_from} {visible(', '.join(one.name for one in before))}"
    if node.kind in _BY_ID and node.subject != node.name:
        label += f"; {visible(node.subject)}"
    if node.origin:
        label += f"; {word('imported from')} {visible(node.origin)}"
    classes = " ".join(("node", node.kind, node.tone or "plain", *(("here",) if node.key == here else ())))
    shape = (
        # The title has the full name for tooltips and screen readers; every part goes through `escape`.
        f'<title>{escape(label)}</title><rect x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 11:.0f}" y="{y + 19:.0f}">{escape(name)}</text>'
        f'<text class="note" x="{x + 11:.0f}" y="{y + 35:.0f}">{escape(note)}</text>'
    )
    address = address_of(node)
    if address is None:
        return f'<g class="{classes}">{shape}</g>'
    current = ' aria-current="page"' if node.key == here else ""
    return f'<a class="{classes}" href="{escape(address)}"{current}>{shape}</a>'


def _short(text: str, most: int) -> str:
    """The beginning of words that are too long; of a name without blanks also its end, which distinguishes it."""
    if len(text) <= most:
        return text
    if " " in text:
        return f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
    tail = most // 2
    return f"{text[: most - tail - 1]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"
