"""Embeddings by contrast: each query against its own document and all other documents of the step (InfoNCE).

A unit is a query, its document and any number of hard negatives, each a separate row. The loss of a query is the
cross-entropy of its document among all documents of the global batch, by cosine similarity over a temperature.

The documents of a step come from all of its micro-batches, and the gradient of a document depends on all queries. So a
step of several micro-batches takes two passes (GradCache): `look` computes all vectors without keeping activations, and
the gradient of the whole loss by each vector; `losses` computes the vectors of a micro-batch again, with the same
random numbers, and passes that gradient on. The gradient equals that of the whole batch for any split; the cost is one
more forward pass. Each of several processes computes the vectors of the whole step; with adapter dropout, the rows of
other ranks get other random numbers than on their own rank.

Rows of two lengths, as queries and documents are, go through the model apart: in one pass the shorter ones would be
padded to the longest.

Validation ranks each query among all documents of the validation rows, so its loss is not comparable to that of
training, whose batches are smaller.

Sources: van den Oord et al., 2018, "Representation Learning with Contrastive Predictive Coding", arXiv:1807.03748,
equation 4; Henderson et al., 2017, "Efficient Natural Language Response Suggestion for Smart Reply", arXiv:1705.00652,
section 4.4 (in-batch negatives); Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", arXiv:2101.06983; Kusupati et al., 2022, "Matryoshka Representation Learning", arXiv:2205.13147, equation 1.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan
from luthier.core.task_head import TaskHead
from luthier.ml.inference import accelerator
from luthier.ml.inference.batches import in_two_lengths
from luthier.ml.training.objective_protocol import NO_TOOLS, Batch, Losses, Tools, Unit, rows_of
from luthier.ml.training.objectives.heads import HeadObjective

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.model import MicroBatch, TrainableModel

AsDocument = Callable[[TokenisedExample], bytes]
_QUERIES_AT_ONCE: Final = 1024
"""Rows of the similarity matrix per block, so that thousands of queries do not need the whole matrix."""


def pooled(states: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean state of each row in float32 (or float64): [rows, width].

    Args:
        states: [N, width], the pooled states, row after row.
        counts: number of states of each row: all tokens for the mean, one for the last token.
    """
    # In float32 at least: a sum of hundreds of states in bfloat16 would lose digits.
    exact = states.to(torch.promote_types(states.dtype, torch.float32))
    return torch.stack([part.mean(0) for part in exact.split(list(counts))])


@dataclass(frozen=True, slots=True)
class Candidates:
    """Which documents of a batch count for each query.

    Attributes:
        queries: [Q], the index of each query among all rows.
        documents: [D], the index of each document among all rows.
        positives: [Q], the index of each query's own document among the documents.
        counts: [Q, D] bool, whether the document is the query's own or a true negative.
    """

    queries: Tensor
    documents: Tensor
    positives: Tensor
    counts: Tensor

    @classmethod
    def of(
        cls, units: Sequence[Unit], device: str | torch.device = "cpu", as_document: AsDocument | None = None
    ) -> Candidates:
        """The candidates of units that are each a query, its document, and hard negatives.

        A document is excluded for a query if it has the same text as the query itself, or the same tokens as any
        document that is positive in the batch for a query with the same tokens: it would be a false negative.

        Args:
            units: of the batch.
            device: of the indices.
            as_document: the tokens that a query would have as a document; None where prompts make no difference.
        """
        queries: list[int] = []
        documents: list[int] = []
        positives: list[int] = []
        right: dict[bytes, set[bytes]] = {}
        texts: list[bytes] = []
        place = 0
        for unit in units:
            queries.append(place)
            positives.append(len(documents))
            documents.extend(range(place + 1, place + len(unit)))
            keys = [row.input_ids.tobytes() for row in unit]
            texts.extend(keys[1:])
            if keys[0] not in right:
                right[keys[0]] = {keys[0] if as_document is None else as_document(unit[0])}
            right[keys[0]].add(keys[1])
            place += len(unit)
        # By text, so that masking is linear in the batch: comparing each query with each document would be quadratic.
        columns: dict[bytes, list[int]] = {}
        for column, text in enumerate(texts):
            columns.setdefault(text, []).append(column)
        counts = torch.ones(len(queries), len(documents), dtype=torch.bool)
        for number, unit in enumerate(units):
            for text in right[unit[0].input_ids.tobytes()]:
                counts[number, columns.get(text, [])] = False
            # Last: the query's own document has the text of a positive one, and the line above has masked it.
            counts[number, positives[number]] = True
        places, columns_of_rows, own = (torch.tensor(one, device=device) for one in (queries, documents, positives))
        return cls(places, columns_of_rows, own, counts.to(device))


def info_nce(
    queries: Tensor, documents: Tensor, positives: Tensor, counts: Tensor, temperature: float, dimensions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The loss of each query in nats, and whether its own document is the most similar one by the full vector.

    Args:
        queries: [Q, width] float32, not normalised.
        documents: [D, width] float32.
        positives: [Q], the index of each query's own document.
        counts: [Q, D] bool, which documents each query is compared with.
        temperature: divisor of cosine similarities.
        dimensions: lengths to which vectors are truncated, each with a separate loss (Matryoshka); the result is their
            mean, in nats. The first is the largest.

    Returns:
        Losses [Q] and hits [Q] bool.
    """
    losses, hits = [], None
    for size in dimensions:
        # Cut first, then scaled to length 1: a part of a unit vector is shorter than that.
        one, other = (F.normalize(vectors[:, :size], dim=-1) for vectors in (queries, documents))
        logits = (one @ other.t() / temperature).masked_fill(~counts, float("-inf"))
        losses.append(F.cross_entropy(logits, positives, reduction="none"))
        if hits is None:
            # At the first, largest size alone: the figure is about the full vector.
            hits = logits.detach().argmax(-1) == positives
    assert hits is not None
    return torch.stack(losses).mean(0), hits


@dataclass(slots=True)
class _Part:
    """A micro-batch after the first pass.

    Attributes:
        units: its units.
        gradient: [rows, width], of the whole loss with respect to its vectors; None in validation.
        losses, hits, num_negatives: [units], of its queries.
        random_state: of the CPU, and of the device if it has one, before its vectors were computed.
    """

    units: Sequence[Unit]
    gradient: Tensor | None
    losses: Tensor
    hits: Tensor
    num_negatives: Tensor
    random_state: tuple[Tensor, Tensor | None]


class Embedding(HeadObjective):
    """InfoNCE over all documents of a step. The loss is a mean over queries."""

    loss_tells_overfitting: ClassVar[bool] = False

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.temperature is not None
        self.temperature = plan.temperature
        has_prompts = self.head.query_prompt != self.head.document_prompt
        self._as_document: AsDocument | None = None
        if has_prompts and tools.template is not None:
            self._as_document = partial(_as_document, tools.template, self.head)
        self._own: Sequence[Batch] = ()
        self._is_training = True
        self._parts: list[_Part] = []

    def draw(self, model: TrainableModel, step: int, batches: Sequence[Batch]) -> Sequence[Batch]:  # noqa: ARG002
        """The micro-batches as they were given; `look` needs to know which ones are this rank's."""
        self._own, self._is_training = batches, True
        return batches

    def draw_validation(self, model: TrainableModel, batches: Sequence[Batch]) -> Sequence[Batch]:  # noqa: ARG002
        """The micro-batches as they were given."""
        self._own, self._is_training = batches, False
        return batches

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """Compute the vectors of all units, and the gradient of the whole loss by each of them.

        A step that is one micro-batch of one process needs no second pass: its loss is computed directly.
        """
        from luthier.ml.training.model import collate

        own = {id(unit) for units, _ in self._own for unit in units}
        others = [rest for units in micro_batches if (rest := [unit for unit in units if id(unit) not in own])]
        self._parts = []
        if self._is_training and len(self._own) == 1 and not others:
            return
        batches: list[Batch] = [*self._own, *((rest, ()) for rest in others)]
        model.module.train(self._is_training)
        found, random_states = [], []
        # First pass, without a graph: only [rows, width] vectors are kept, not the activations (GradCache,
        # Gao et al., 2021, arXiv:2101.06983). The second pass recomputes each micro-batch with its graph.
        with torch.no_grad():
            for units, prefixes in batches:
                random_states.append(_random_state(model.device))
                batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=prefixes)
                found.append(_vectors(model, units, batch))
        # [all rows of the step, width]; a leaf, so that the loss of the whole step gives a gradient for each vector.
        vectors = torch.cat(found).requires_grad_(self._is_training)
        units = [unit for part, _ in batches for unit in part]
        with torch.set_grad_enabled(self._is_training):
            losses, hits, num_negatives = self._losses_of(vectors, units)
        self._keep(vectors, (losses, hits, num_negatives), random_states)

    def _keep(
        self, vectors: Tensor, figures: tuple[Tensor, ...], random_states: list[tuple[Tensor, Tensor | None]]
    ) -> None:
        """Split the results for all units into this rank's micro-batches."""
        row = query = 0
        for (units, _), random_state in zip(self._own, random_states, strict=False):
            num_rows = sum(map(len, units))
            gradient = None if vectors.grad is None else vectors.grad[row : row + num_rows]
            losses, hits, num_negatives = (one[query : query + len(units)] for one in figures)
            self._parts.append(_Part(units, gradient, losses, hits, num_negatives, random_state))
            row, query = row + num_rows, query + len(units)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of these queries; its gradient is that of the whole step for their vectors."""
        if not self._parts:
            losses, hits, num_negatives = self._losses_of(_vectors(model, units, batch), units)
            return Losses(losses.sum(), _measures(hits, num_negatives))
        # In the order of `draw`: the parts of a step are taken one by one as its micro-batches come.
        part = self._parts.pop(0)
        assert part.units is units, "micro-batches must be requested in the order in which they were drawn"
        total = part.losses.sum()
        if part.gradient is not None:
            with _as_before(part.random_state, model.device):
                vectors = _vectors(model, units, batch)
            carried = (vectors * part.gradient).sum()
            # Its value is 0 and its gradient the cached one: the loss keeps its value.
            total = total + carried - carried.detach()
        return Losses(total, _measures(part.hits, part.num_negatives))

    def _losses_of(self, vectors: Tensor, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, hits and numbers of negatives [Q] of all queries.

        In the pass that looks at a step, the gradient of their sum is left in `vectors.grad`, a block of queries at a
        time; if `vectors` are part of a graph, so are the losses.
        """
        found = Candidates.of(units, vectors.device, self._as_document)
        sizes = self.head.dimensions or (vectors.shape[1],)
        figures: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(units), _QUERIES_AT_ONCE):
            block = slice(start, start + _QUERIES_AT_ONCE)
            counts = found.counts[block]
            losses, hits = info_nce(
                vectors[found.queries[block]],
                vectors[found.documents],
                found.positives[block],
                counts,
                self.temperature,
                sizes,
            )
            if vectors.is_leaf and vectors.requires_grad:
                losses.sum().backward()
                losses = losses.detach()
            figures.append((losses, hits, counts.sum(-1) - 1))
        every, right, negatives = (torch.cat(one) for one in zip(*figures, strict=True))
        return every, right, negatives


def _vectors(model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Tensor:
    """The vectors [rows, width] of units, of which the micro-batch has the rows; those of two lengths in two passes."""
    from luthier.ml.training.model import collate

    rows = rows_of(units)
    # With a layout nothing is padded, and the loss of routers is one of all rows of a pass.
    is_whole = batch.layout is not None or model.router_loss is not None
    groups = [] if is_whole else in_two_lengths(batch.lengths)
    if len(groups) < 2:
        return pooled(model.states(batch), batch.learned)
    parts = [collate([rows[i] for i in group], model.pad_id, model.device) for group in groups]
    vectors = torch.cat([pooled(model.states(part), part.learned) for part in parts])  # the rows, group after group
    places = torch.tensor([i for group in groups for i in group], device=vectors.device)
    return vectors[places.argsort()]


def _as_document(template: ChatTemplate, head: TaskHead, query: TokenisedExample) -> bytes:
    """The tokens that a document with the text of this query has, whose prompt is another one."""
    ids = list(query.input_ids[:-1])  # without the slot
    text = template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    bare = str(text).removeprefix(head.query_prompt).removesuffix(head.end_text)
    own = template.ids(head.document_prompt + bare + head.end_text)
    return array("i", [*own, *own[-1:]]).tobytes()


def _measures(hits: Tensor, num_negatives: Tensor) -> dict[str, Tensor]:
    """Sums over queries: hits of the own document, and the number of negatives."""
    return {"nearest_is_right": hits.sum(), "num_negatives": num_negatives.sum()}


def _random_state(device: str) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), accelerator.random_state(device)


@contextlib.contextmanager
def _as_before(state: tuple[Tensor, Tensor | None], device: str) -> Iterator[None]:
    """Use the random state within the block; afterwards the generators continue as if nothing had been drawn."""
    on_cpu, on_device = state
    with accelerator.forked_random(device):
        torch.set_rng_state(on_cpu)
        accelerator.set_random_state(device, on_device)
        yield
