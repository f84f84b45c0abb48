"""Single-pass inference: embeddings of texts and task head outputs of prompts, with their queue.

Queued inputs are processed in parts, between the decoding steps of answers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from luthier.core.errors import DivergedError
from luthier.core.ports import KeyedEvent
from luthier.core.published_head import Pooling
from luthier.core.stream import Failed, Pooled
from luthier.core.task_head import TaskHead, TaskHeadKind
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.kv_cache import cache_argument
from luthier.ml.inference.mixed_adapters import MixedAdapters
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.forward import accepted
from luthier.ml.inference.models.task_head import TaskHeadLayer, load_task_head, task_outputs
from luthier.ml.inference.request import PART_TOKENS, PrefillTurns, PreparedPooling
from luthier.ml.inference.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@dataclass(slots=True)
class PartialStates:
    """A long text that has been processed in part.

    Attributes:
        cache: keys and values of that part.
        total: [width] float32, the sum of its states, without those of a trained prompt.
        last: [width] float32, the state of its last token.
        num_tokens: tokens of that part, including those of a trained prompt.
    """

    cache: DynamicCache
    total: Tensor
    last: Tensor
    num_tokens: int

    def pooled(self, pooling: Pooling, skip: int) -> Tensor:
        """[1, width] in float32, as `pooled_states`."""
        return (self.last if pooling == "last" else self.total / (self.num_tokens - skip))[None]


@torch.inference_mode()
def pooled_states(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pooling: Pooling, *, skip: int = 0
) -> Tensor:
    """[prompts, width] in float32: the last-token state or the mean over tokens of each prompt.

    Args:
        model: a causal model.
        prompts: token ids of each text.
        pooling: `last` or `mean`.
        skip: number of leading ids that represent a trained prompt, excluded from the mean.
    """
    lengths = [len(ids) for ids in prompts]
    tokens = torch.zeros((len(prompts), max(lengths)), dtype=torch.long)  # [prompts, longest]
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = torch.tensor(list(ids))
    # Padding on the right needs no mask: no token attends to later ones.
    states = language_model(model)(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state.float()
    # states: [prompts, longest, width], float32 to keep precision in long sums
    return torch.stack(
        [
            states[row, length - 1] if pooling == "last" else states[row, skip:length].mean(0)
            for row, length in enumerate(lengths)
        ]
    )


@torch.inference_mode()
def add_states(
    model: PreTrainedModel, ids: Sequence[int], before: PartialStates | None, *, new_cache: DynamicCache, skip: int = 0
) -> PartialStates:
    """Run the next tokens of a long text through the model and accumulate their states.

    Args:
        model: a causal model.
        ids: the next tokens.
        before: the part of the text processed so far; it is consumed.
        new_cache: an empty one, for the first part.
        skip: as in `pooled_states`; the first part must be longer.
    """
    first = 0 if before is None else before.num_tokens
    cache = new_cache if before is None else before.cache
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(first, first + len(ids), device=model.device)[None]
    body = language_model(model)
    arguments: dict[str, Any] = {cache_argument(body): cache, "position_ids": positions}
    # The cache is updated in place: only its reference is passed on.
    states = body(input_ids=tokens, use_cache=True, **accepted(body, arguments)).last_hidden_state[0].float()
    # Ids of the trained prompt are at the beginning of the text, all in the first part.
    total = states[max(0, skip - first) :].sum(0)  # [width] of states [tokens, width]
    return PartialStates(cache, total if before is None else before.total + total, states[-1], first + len(ids))


DIVERGED: Final = DivergedError(
    "the model gives logits that are not numbers for this ask",
    expected="finite logits",
    do="its adapter or weights are too large: go back to an earlier checkpoint, or use float32",
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request.

    Attributes:
        parts: indices of inputs of similar length, the next part last.
        found: outputs by index.
        partial: the part of a long text processed so far.
    """

    key: Hashable
    prepared: PreparedPooling
    adapter: str | None
    owner: str | None
    parts: list[list[int]]
    partial: PartialStates | None = None
    found: dict[int, list[float]] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Request]:
        return self.prepared.inputs


class PoolingQueue:
    """The queue of one engine. Owners take turns, one part of at most 512 tokens each.

    Args:
        engine: computes.
        decoder: holds the cache of parts of long texts.
        adapters: those that are loaded.
        max_rows: texts of one batch.
    """

    def __init__(self, engine: TransformersEngine, decoder: Decoder, adapters: MixedAdapters, max_rows: int) -> None:
        self._engine, self._decoder, self._adapters, self._max_rows = engine, decoder, adapters, max_rows
        self._waiting: list[_Waiting] = []
        self._turns = PrefillTurns()
        self._heads: dict[str | None, tuple[TaskHead, TaskHeadLayer | None]] = {}

    @property
    def keys(self) -> set[Hashable]:
        """The waiting requests."""
        return {one.key for one in self._waiting}

    @property
    def num_bytes(self) -> int:
        """Memory of all head matrices in bytes."""
        layers = [layer for _, layer in self._heads.values() if layer is not None]
        return sum(int(one.nbytes) for layer in layers for one in layer.parameters())

    def load_head(self, name: str | None, folder: str) -> None:
        """Load the head of an adapter, or (None) of the engine's model.

        Raises:
            ModelSourceError: a file is missing or damaged.
        """
        self._heads[name] = load_task_head(folder, str(self._engine.causal.device))

    def unload_head(self, name: str) -> None:
        """Release the head of an adapter; no effect if it has none."""
        self._heads.pop(name, None)

    def kind_of(self, adapter: str | None) -> TaskHeadKind | None:
        """The kind of head of an adapter, or (None) of the engine's model; None if there is no head."""
        return self._heads[adapter][0].kind if adapter in self._heads else None

    def add(self, key: Hashable, prepared: PreparedPooling, adapter: str | None, owner: str | None) -> None:
        """Add these inputs to the queue.

        Args:
            key: names the request in events.
            prepared: its inputs as tokens.
            adapter: None for the base.
            owner: whose turn it takes; None shares one turn with all others without an owner.
        """
        lengths = [len(one.ids) for one in prepared.inputs]
        parts = length_batches(lengths, max_tokens=PART_TOKENS, max_rows=self._max_rows)
        self._waiting.append(_Waiting(key, prepared, adapter, owner, parts))

    def cancel(self, key: Hashable) -> None:
        """Remove a request."""
        self._waiting = [one for one in self._waiting if one.key != key]

    def clear(self) -> None:
        """Remove all requests."""
        self._waiting = []

    def step(self) -> list[KeyedEvent]:
        """Process one part; returns the outputs of a request after its last part."""
        if not self._waiting:
            return []
        one, num_hidden = self._turns.first(self._waiting), self._engine.num_virtual_tokens
        self._adapters.use([one.adapter])  # broadcast over rows: all inputs of a request have the same adapter
        if not self._add_part(one, num_hidden):
            self.cancel(one.key)
            return [(one.key, Failed.of(DIVERGED))]
        if one.parts:
            return []
        self.cancel(one.key)
        num_tokens = sum(len(request.ids) - num_hidden for request in one.inputs)
        found = tuple(tuple(one.found[place]) for place in range(len(one.inputs)))
        truncated = one.prepared.truncated
        return [(one.key, Pooled(outputs=found, num_prompt_tokens=num_tokens, truncated=truncated))]

    def _add_part(self, one: _Waiting, num_hidden: int) -> bool:
        """Compute the next part; false if the result is not finite."""
        causal, places, asked = self._engine.causal, one.parts[-1], one.prepared.asked
        # Heads with a matrix read the token after which the answer would begin.
        pooling: Pooling = asked.pooling if asked.kind == "embed" else "last"
        ids = one.inputs[places[0]].ids
        if len(places) > 1 or len(ids) <= PART_TOKENS or not self._decoder.fits_windows(len(ids)):
            # Short texts are batched; so is a long one without a usable cache.
            states = pooled_states(causal, [one.inputs[place].ids for place in places], pooling, skip=num_hidden)
        else:
            done = 0 if one.partial is None else one.partial.num_tokens
            part = ids[done : done + PART_TOKENS]
            one.partial = add_states(causal, part, one.partial, new_cache=self._decoder.new_cache(), skip=num_hidden)
            if one.partial.num_tokens < len(ids):
                # The text is not finished: its part stays in `parts`, and the next step continues with it.
                return bool(one.partial.total.isfinite().all())
            states, one.partial = one.partial.pooled(pooling, num_hidden), None
        # Only once all its texts are finished: a long text stays the last part until then.
        one.parts.pop()
        outputs = self._outputs(one, states)
        one.found.update(zip(places, outputs.tolist(), strict=True))
        return bool(outputs.isfinite().all())

    @torch.inference_mode()
    def _outputs(self, one: _Waiting, states: Tensor) -> Tensor:
        """Outputs [inputs, outputs] for states [inputs, width]."""
        asked = one.prepared.asked
        if asked.kind == "embed":
            # Embeddings need no head: a text model has them as well.
            head = TaskHead(kind="embed", width=states.shape[1], is_normalised=asked.is_normalised)
            return task_outputs(head, None, states, asked.dimensions)
        head, layer = self._heads[one.adapter]
        return task_outputs(head, layer, states)
