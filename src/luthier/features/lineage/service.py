"""Use case: where models come from and what became of them: rows -> run -> model -> evaluation, export, deployment.

Digests tie a run to the versions of datasets that it was trained and judged on; ids tie all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from luthier.core.access import Caller
from luthier.core.plan import Plan
from luthier.features.model_cards.service import TunedView, list_tuned, rows_by_digest, show_tuned
from luthier.features.serving.targets import EXPORT
from luthier.platform.home.context import Context

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
    """

    key: str
    kind: NodeKind
    name: str
    note: str = ""
    tone: Tone = ""
    subject: str = ""
    version: int | None = None
    band: int = 0


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
    made = Lineage()
    for band, view in enumerate(views):
        _add_model(context, caller, made, view, band, with_checkpoints=with_checkpoints)
    return made


def _add_model(
    context: Context, caller: Caller, made: Lineage, view: TunedView, band: int, *, with_checkpoints: bool
) -> None:
    record = view.record
    before = _add_rows(context, caller, made, context.runs.plan(record.run_id), band)
    before.append(made.add(Node(f"base {view.base}", "base", view.base, "base model", subject=view.base, band=band)))
    num_steps = f"{record.num_steps:,} step{'' if record.num_steps == 1 else 's'}"
    note = f"{record.method}, {num_steps}"
    run = made.add(Node(record.run_id, "run", record.run_id, note, subject=record.run_id, band=band), *before)
    outcome = Node(f"model {record.run_id}", "model", view.name, "outcome", subject=view.name, band=band)
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
        proof = "proved equal" if document.parity is not None and document.parity.passed else "not proved"
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
            node = Node(sha256, "dataset", name, note, "", subject, version.number, band)
        else:
            node = Node(sha256, "file", profile.file.replace("\\", "/").rsplit("/", 1)[-1], note, band=band)
        keys.append(made.add(node))
    return keys
