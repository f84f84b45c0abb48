"""Caches for decoding: cache layout by config, a preallocated key-value cache, and recurrent states of rows.

Layout: keys and values, windows, recurrent states, stretched positions. The config decides only which cases are tested,
not whether a path is correct (`decoding_proof`).

Preallocated cache: transformers' DynamicCache concatenates old and new keys at every step, which copies the whole
cache. Here the prompts of a batch are prefilled in parts, each with an ordinary cache, and then all parts are copied
into one buffer, padded on the left, with room for all new tokens: each token costs one write.

States of rows, without padding: transformers' models return what they need for the next token (key-value caches,
convolutions, recurrent states) in an output named like the argument that takes it, so its content need not be known.
Rows of equal length may share such a state if that is verified (`decoding_proof`), mainly several answers to one
prompt.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from luthier.ml.inference.models.forward import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOWS: Final = ("window", "window_size")
# Cache layers with keys and values by position, or with nothing: rows can be padded, joined and cut.
_HELD_LAYERS: Final = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def smallest_window(config: Any) -> int | None:
    """The size of the model's narrowest window or chunk in tokens; None if all of its layers have full attention.

    Some models have windows that their cache does not know about; the config names them.
    """
    # By name: configs use `sliding_window`, `attention_window_size` and others for the same thing.
    windows = [value for name in vars(config) if name.endswith(_WINDOWS) and _is_size(value := getattr(config, name))]
    with suppress(Exception):  # a config that this cache does not support: `why_not_cacheable` reports it
        layers = DynamicCache(config=config).layers
        windows += [int(layer.sliding_window) for layer in layers if getattr(layer, "is_sliding", False)]
    return min(windows, default=None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def rope_border(config: Any) -> int | None:
    """The text length in tokens beyond which the encoding of all positions changes ("longrope"); None if there is none.

    Ding et al., 2024, "LongRoPE", arXiv:2402.13753.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    found: list[Any] = [
        one.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        # One set of parameters for all layers, or one for each kind of layer.
        for one in (rope, *(part for part in rope.values() if isinstance(part, dict)))
        if one.get("rope_type") == "longrope"
    ]
    return min((int(one) for one in found if _is_size(one)), default=None)


def why_not_cacheable(config: Any) -> str:
    """Why our cache cannot hold the state of the model; empty if it can."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception as error:  # noqa: BLE001 - what it raises for a config that it does not know is of many kinds
        return f"no cache of keys and values can be made from its config: {type(error).__name__}: {error}"
    # Exact types: a subclass may hold more state than its base.
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _HELD_LAYERS})
    return f"it keeps a state of {', '.join(others)}, which batches of unlike length cannot share" if others else ""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, tokens, head] as views of larger buffers.

    Writing past the buffer raises a RuntimeError from torch: the decoder knows the number of tokens in advance.
    """

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()
        self._buffers = (keys, values)
        self._num_tokens = num_tokens
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._look()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values and return all so far."""
        start, self._num_tokens = self._num_tokens, self._num_tokens + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._num_tokens] = states
        self._look()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        keys, values = self._buffers
        # Indexing copies, so a row chosen twice has two independent caches, including the free space.
        self._buffers = (keys[indices], values[indices])
        self._look()

    def _look(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._num_tokens] for buffer in self._buffers)


def holds_keys(layer: Any) -> bool:
    """Whether a cache layer holds anything: layers that read the keys of another one do not."""
    return isinstance(layer, DynamicLayer)


def shallow(cache: DynamicCache) -> DynamicCache:
    """A copy of cache and layers with the same tensors: setting others there does not change the original."""
    result = copy.copy(cache)
    result.layers = [copy.copy(layer) for layer in cache.layers]
    return result


def expanded(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """The same keys and values for every row, as views: nothing is copied until the first update."""
    result = shallow(cache)
    for layer in filter(holds_keys, result.layers):
        # A view with stride 0 over the rows; the first update concatenates and thereby copies.
        layer.keys = layer.keys.expand(num_rows, -1, -1, -1)
        layer.values = layer.values.expand(num_rows, -1, -1, -1)
    return result


def joined(parts: Sequence[DynamicCache], num_room: int, prefix_tokens: int = 0) -> DynamicCache:
    """Join the rows of all parts in one cache with room for more tokens; the parts are emptied.

    Args:
        parts: caches of one model.
        num_room: tokens that may be appended to each row.
        prefix_tokens: length of a prefix that all rows share.

    Each part is padded to the longest: on the left, or after the first `prefix_tokens` if these are a shared prefix.
    Padding contains zeros and must be masked.
    """
    num_tokens = max(_num_tokens(part) for part in parts)
    result = copy.copy(parts[0])
    result.layers = []
    for index in range(len(parts[0].layers)):
        layers = [part.layers[index] for part in parts]
        if not holds_keys(layers[0]):
            result.layers.append(layers[0])
            continue
        buffers = [
            _lay([getattr(layer, name) for layer in layers], num_tokens, num_room, prefix_tokens)
            for name in ("keys", "values")
        ]
        # A plain layer, also for sliding windows: joined rows fit entirely into every window.
        result.layers.append(PreallocatedLayer(buffers[0], buffers[1], num_tokens))
        for layer in layers:
            # Freed layer by layer, so that at most one layer exists twice.
            layer.keys = layer.values = None
    return result


def _num_tokens(cache: DynamicCache) -> int:
    return max(int(layer.keys.shape[-2]) for layer in cache.layers if holds_keys(layer))


def _lay(states: Sequence[Tensor], num_tokens: int, num_room: int, prefix_tokens: int) -> Tensor:
    first = states[0]
    num_rows = sum(len(part) for part in states)
    # [all rows, kv_heads, tokens + room, head]; zeros, since garbage times a weight of 0 may be NaN
    buffer = first.new_zeros(num_rows, first.shape[1], num_tokens + num_room, first.shape[3])
    start = 0
    for part in states:
        rows = slice(start, start + len(part))
        num_own = part.shape[2] - prefix_tokens
        buffer[rows, :, :prefix_tokens] = part[:, :, :prefix_tokens]
        # Right-aligned, so that all rows write their next token into the same column.
        buffer[rows, :, num_tokens - num_own : num_tokens] = part[:, :, prefix_tokens:]
        start += len(part)
    return buffer


@dataclass(slots=True)
class Lane:
    """Rows of equal length.

    Attributes:
        ids: all tokens of each row so far, including the prompt.
        carried: the state returned by the model, by the name of the argument that takes it.
    """

    ids: list[list[int]]
    carried: dict[str, Any] = field(default_factory=dict)

    def select(self, places: Sequence[int]) -> None:
        """Keep the rows at `places`, in that order; places may repeat.

        Raises:
            TypeError: several rows in a state that is not a transformers cache.
        """
        if list(places) != list(range(len(self.ids))):
            self.ids = [list(self.ids[place]) for place in places]
            for name, cache in self.carried.items():
                if not isinstance(cache, Cache):
                    raise TypeError(f"rows cannot be chosen from a {name} of {type(cache).__name__}")
                # index_select per layer: the index may be shorter or longer than the rows.
                cache.reorder_cache(torch.tensor(places))


class RowStepper:
    """Runs rows through a model.

    Args:
        model: in evaluation mode.
        keeps_cache: whether to use the state that the model returns; otherwise each text is recomputed.
        groups: whether rows of equal length run together; otherwise each row runs separately.
    """

    def __init__(self, model: PreTrainedModel, *, keeps_cache: bool, groups: bool) -> None:
        self._model, self._keeps_cache, self.groups = model, keeps_cache, groups
        self._parameters = frozenset(inspect.signature(model.forward).parameters)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Lane, Tensor]:
        """Prefill prompts of equal length; returns their lane and first logits: [rows, vocabulary]."""
        lane = Lane([list(ids) for ids in prompts])
        if self._keeps_cache:
            lane.carried = self._first_cache()
        return lane, self._forward(lane, is_first=True)

    def step(self, lane: Lane, tokens: Sequence[int]) -> Tensor:
        """Run one more token of each row through the model; returns the next logits: [rows, vocabulary]."""
        for ids, token in zip(lane.ids, tokens, strict=True):
            ids.append(token)
        return self._forward(lane, is_first=False)

    def can_group(self, lane: Lane) -> bool:
        """Whether rows can be dropped and duplicated in the state of this lane."""
        return self.groups and all(isinstance(one, Cache) for one in lane.carried.values())

    def _first_cache(self) -> dict[str, Any]:
        """An empty cache as created by `generate`; none for models that create a special one."""
        makes = getattr(self._model, "_supports_default_dynamic_cache", None)
        name = "cache" if "cache" in self._parameters else "past_key_values"
        if makes is None or not makes() or name not in self._parameters:
            return {}
        return {name: DynamicCache(config=self._model.config.get_text_config(decoder=True))}

    @torch.inference_mode()
    def _forward(self, lane: Lane, *, is_first: bool) -> Tensor:
        # All tokens, even with a cache: `prepare_inputs_for_generation` removes those already in the cache.
        tokens = torch.tensor(lane.ids, device=self._model.device)  # [rows, tokens so far]
        arguments: dict[str, Any] = {"use_cache": self._keeps_cache, "logits_to_keep": 1}
        if self._keeps_cache:
            if "position_ids" in self._parameters:  # not all models derive positions from their cache
                positions = torch.arange(tokens.shape[1], device=tokens.device)
                arguments["position_ids"] = positions.expand(len(tokens), -1)
            # The model's own preparation: some drop their cache where the position encoding changes (long rope).
            arguments = self._model.prepare_inputs_for_generation(
                tokens,
                attention_mask=torch.ones_like(tokens),
                is_first_iteration=is_first,
                next_sequence_length=None if is_first else 1,
                **arguments,
                **lane.carried,
            )
        else:
            arguments["input_ids"] = tokens
        output = self._model(**accepted(self._model, arguments))
        if self._keeps_cache:
            # By name: an output that is also an argument of `forward` is state to pass on.
            handed = {name: output[name] for name in output.keys() & self._parameters}
            lane.carried = {name: value for name, value in handed.items() if value is not None}
        logits: Tensor = output.logits[:, -1]  # [rows, vocabulary]
        return logits


@dataclass(slots=True)
class RowBatch:
    """Rows that still write.

    Attributes:
        rows: index of the request of each row.
        stepper: runs them through the model.
        lanes: groups of rows of equal length.
        places: of each row, the index of its lane and its index there.
    """

    rows: list[int]
    stepper: RowStepper
    lanes: list[Lane]
    places: list[tuple[int, int]]

    @classmethod
    def start(
        cls, stepper: RowStepper, rows: Sequence[int], prompts: Sequence[Sequence[int]], *, most_tokens: int
    ) -> tuple[RowBatch, Tensor]:
        """Prefill prompts.

        Args:
            stepper: over the model.
            rows: index of the request of each prompt.
            prompts: token ids of each.
            most_tokens: maximum tokens of prompts of equal length that run together.

        Returns:
            The batch and its first logits: [rows, vocabulary].
        """
        lanes: list[Lane] = []
        places: dict[int, tuple[int, int]] = {}
        found: dict[int, Tensor] = {}
        # 0 puts each prompt into a separate group.
        for group in _groups(prompts, most_tokens if stepper.groups else 0):
            lane, logits = stepper.start([prompts[number] for number in group])
            for place, number in enumerate(group):
                places[number], found[number] = (len(lanes), place), logits[place]
            lanes.append(lane)
        order = range(len(prompts))
        batch = cls(list(rows), stepper, lanes, [places[number] for number in order])
        return batch, torch.stack([found[number] for number in order])

    def trim(self) -> None:
        """Nothing is padded."""

    def keep(self, places: list[int]) -> None:
        """Keep the rows at `places`, in that order, and drop all others; places may repeat."""
        self.rows = [self.rows[place] for place in places]
        wanted = [self.places[place] for place in places]
        lanes: list[Lane] = []
        self.places = [(0, 0)] * len(wanted)
        for number, lane in enumerate(self.lanes):
            own = [place for place, (one, _) in enumerate(wanted) if one == number]
            # An unknown kind of state cannot be split: each row then needs a separate lane.
            parts = [own] if self.stepper.can_group(lane) else [[place] for place in own]
            for part in filter(None, parts):
                # when a lane is split, every part except the last needs a copy of the state; the last takes the
                # original
                mine = lane if part is parts[-1] else copy.deepcopy(lane)
                mine.select([wanted[place][1] for place in part])
                for index, place in enumerate(part):
                    self.places[place] = (len(lanes), index)
                lanes.append(mine)
        self.lanes = lanes

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Run one token of each row through the model; returns the next logits: [rows, vocabulary]."""
        given = [[0] * len(lane.ids) for lane in self.lanes]
        for (lane, place), token in zip(self.places, tokens, strict=True):
            given[lane][place] = token
        found = [self.stepper.step(lane, own) for lane, own in zip(self.lanes, given, strict=True)]
        return torch.stack([found[lane][place] for lane, place in self.places])


def _groups(prompts: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Indices of prompts of equal length, in groups of at most that many tokens but at least one prompt."""
    groups: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda one: len(prompts[one])):
        length = len(prompts[number])
        if groups and len(prompts[groups[-1][0]]) == length and (len(groups[-1]) + 1) * length <= most_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def cache_argument(model: nn.Module) -> str:
    """The argument name of this model's cache: transformers renamed it and warns about the old name."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
