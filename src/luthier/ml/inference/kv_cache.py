"""What a model continues from: the layout of its cache by config, a preallocated key-value cache, and states of rows.

Layout: keys and values, windows, recurrent states, stretched positions. What is read there decides where a path is
proved, never that it holds (`decoding_proof`).

Preallocated cache: transformers' DynamicCache concatenates old and new keys at every step, which copies the whole
cache. Here the prompts of a batch go through the model in parts, each part with an ordinary cache, and then all parts
are laid into one buffer, padded on the left, with room for all new tokens: a token costs one write.

States of rows, without padding: transformers' models hand back what they need for the next token (a cache of keys,
convolutions, recurrent states) among their outputs, under the name of the argument that takes it, so nothing need be
known of what is in it. Rows of one length may share such a state where that is proved (`decoding_proof`): several
answers to one prompt, above all.
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
# Layers that hold keys and values by position, or nothing: rows can be padded, joined and cut.
_HELD_LAYERS: Final = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def smallest_window(config: Any) -> int | None:
    """The tokens that the narrowest window or chunk of the model holds; None where all of its layers see everything.

    Some models have windows that their cache does not know; the config names them.
    """
    # By name: configs have `sliding_window`, `attention_window_size` and others for one thing.
    windows = [value for name in vars(config) if name.endswith(_WINDOWS) and _is_size(value := getattr(config, name))]
    with suppress(Exception):  # a config of a kind that this cache does not know: `why_not_cacheable` says so
        layers = DynamicCache(config=config).layers
        windows += [int(layer.sliding_window) for layer in layers if getattr(layer, "is_sliding", False)]
    return min(windows, default=None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def rope_border(config: Any) -> int | None:
    """The length in tokens over which all positions of a text mean something else ("longrope"); None where none does.

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
    """Why our own cache cannot hold what the model keeps; empty where it can."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception as error:  # noqa: BLE001 - what it raises for a config that it does not know is of many kinds
        return f"no cache of keys and values can be made from its config: {type(error).__name__}: {error}"
    # Exact types: a subclass may keep more than its base does.
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _HELD_LAYERS})
    return f"it keeps a state of {', '.join(others)}, which batches of unlike length cannot share" if others else ""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, heads, tokens, head] as views of buffers that have more places.

    Writing past the room raises a RuntimeError from torch: the decoder knows beforehand how many tokens will come.
    """

    def __init__(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        super().__init__()
        self._buffers = (keys, values)
        self._num_tokens = num_tokens
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._look()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns all so far."""
        start, self._num_tokens = self._num_tokens, self._num_tokens + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._num_tokens] = states
        self._look()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        keys, values = self._buffers
        # Indexing copies, so a row that was chosen twice has two independent caches. The room is copied with it.
        self._buffers = (keys[indices], values[indices])
        self._look()

    def _look(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._num_tokens] for buffer in self._buffers)


def holds_keys(layer: Any) -> bool:
    """Whether a layer of a cache keeps anything: those that read the keys of another keep nothing themselves."""
    return isinstance(layer, DynamicLayer)


def expanded(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """The same keys and values for every row, as views: nothing is copied until the first update."""
    # Shallow copies of cache and layers: setting their tensors leaves the shared prefix as it is.
    result = copy.copy(cache)
    result.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in filter(holds_keys, result.layers):
        # A view with stride 0 over the rows; the first update concatenates, and so makes it real.
        layer.keys = layer.keys.expand(num_rows, -1, -1, -1)
        layer.values = layer.values.expand(num_rows, -1, -1, -1)
    return result


def joined(parts: Sequence[DynamicCache], num_room: int, prefix_tokens: int = 0) -> DynamicCache:
    """The rows of all parts in one cache with room for more tokens; the parts are emptied on the way.

    Args:
        parts: caches of one model.
        num_room: tokens that may be appended to each row.
        prefix_tokens: length of a prefix that all rows share.

    Each part is padded to the longest: on the left, or, where its first `prefix_tokens` are a shared prefix, behind
    them. Padding holds zeros and must be masked.
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
        # A plain layer, also for sliding ones: rows that are joined fit whole into every window.
        result.layers.append(PreallocatedLayer(buffers[0], buffers[1], num_tokens))
        for layer in layers:
            # Freed layer by layer: at most one layer exists twice.
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
    """Rows of one length.

    Attributes:
        ids: all tokens of each row so far, prompt included.
        carried: the state that the model returned, by the name of the argument that takes it.
    """

    ids: list[list[int]]
    carried: dict[str, Any] = field(default_factory=dict)

    def select(self, places: Sequence[int]) -> None:
        """Keep the rows at `places`, in that order; a place may come twice.

        Raises:
            TypeError: several rows in a state that is no cache of transformers.
        """
        if list(places) != list(range(len(self.ids))):
            self.ids = [list(self.ids[place]) for place in places]
            for name, cache in self.carried.items():
                if not isinstance(cache, Cache):
                    raise TypeError(f"rows cannot be chosen from a {name} of {type(cache).__name__}")
                # An index_select by layer: the index may be shorter or longer than the rows.
                cache.reorder_cache(torch.tensor(places))


class RowStepper:
    """Sends rows through a model.

    Args:
        keeps_cache: over what the model hands back; else each text whole.
        groups: rows of one length together; else each row by itself.
    """

    def __init__(self, model: PreTrainedModel, *, keeps_cache: bool, groups: bool) -> None:
        self._model, self._keeps_cache, self.groups = model, keeps_cache, groups
        self._parameters = frozenset(inspect.signature(model.forward).parameters)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Lane, Tensor]:
        """Send prompts of one length through the model; returns their lane and first logits: [rows, vocabulary]."""
        lane = Lane([list(ids) for ids in prompts])
        if self._keeps_cache:
            lane.carried = self._first_cache()
        return lane, self._forward(lane, is_first=True)

    def step(self, lane: Lane, tokens: Sequence[int]) -> Tensor:
        """Send one more token of each row through the model; returns the logits of the next: [rows, vocabulary]."""
        for ids, token in zip(lane.ids, tokens, strict=True):
            ids.append(token)
        return self._forward(lane, is_first=False)

    def can_group(self, lane: Lane) -> bool:
        """Whether rows of this lane can be dropped and doubled in its state."""
        return self.groups and all(isinstance(one, Cache) for one in lane.carried.values())

    def _first_cache(self) -> dict[str, Any]:
        """An empty cache as `generate` makes it; none for models that make one of their own kind."""
        makes = getattr(self._model, "_supports_default_dynamic_cache", None)
        name = "cache" if "cache" in self._parameters else "past_key_values"
        if makes is None or not makes() or name not in self._parameters:
            return {}
        return {name: DynamicCache(config=self._model.config.get_text_config(decoder=True))}

    @torch.inference_mode()
    def _forward(self, lane: Lane, *, is_first: bool) -> Tensor:
        # All tokens, also with a cache: `prepare_inputs_for_generation` cuts off what the cache has read.
        tokens = torch.tensor(lane.ids, device=self._model.device)  # [rows, tokens so far]
        arguments: dict[str, Any] = {"use_cache": self._keeps_cache, "logits_to_keep": 1}
        if self._keeps_cache:
            if "position_ids" in self._parameters:  # not all models count on from what their cache holds
                positions = torch.arange(tokens.shape[1], device=tokens.device)
                arguments["position_ids"] = positions.expand(len(tokens), -1)
            # The model's own preparation: some drop their cache where positions change their meaning (long rope).
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
            # By name: an output that is also an argument of `forward` is a state to be carried on.
            handed = {name: output[name] for name in output.keys() & self._parameters}
            lane.carried = {name: value for name, value in handed.items() if value is not None}
        logits: Tensor = output.logits[:, -1]  # [rows, vocabulary]
        return logits


@dataclass(slots=True)
class RowBatch:
    """Rows that still write.

    Attributes:
        rows: number of the request of each row.
        stepper: sends them through the model.
        lanes: rows of one length each.
        places: of each row the number of its lane and its place there.
    """

    rows: list[int]
    stepper: RowStepper
    lanes: list[Lane]
    places: list[tuple[int, int]]

    @classmethod
    def start(
        cls, stepper: RowStepper, rows: Sequence[int], prompts: Sequence[Sequence[int]], *, most_tokens: int
    ) -> tuple[RowBatch, Tensor]:
        """Send prompts through the model.

        Args:
            stepper: over the model.
            rows: number of the request of each prompt.
            prompts: token ids of each.
            most_tokens: of prompts of one length that go together.

        Returns:
            The batch and its first logits: [rows, vocabulary].
        """
        lanes: list[Lane] = []
        places: dict[int, tuple[int, int]] = {}
        found: dict[int, Tensor] = {}
        # 0 puts each prompt into a group of its own.
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
        """Keep the rows at `places`, in that order, and drop all others; a place may come twice."""
        self.rows = [self.rows[place] for place in places]
        wanted = [self.places[place] for place in places]
        lanes: list[Lane] = []
        self.places = [(0, 0)] * len(wanted)
        for number, lane in enumerate(self.lanes):
            own = [place for place, (one, _) in enumerate(wanted) if one == number]
            # A state of an unknown kind cannot be split: each row then needs a lane of its own.
            parts = [own] if self.stepper.can_group(lane) else [[place] for place in own]
            for part in filter(None, parts):
                # a lane that is split needs a state of its own for every part but the last, which takes the original
                mine = lane if part is parts[-1] else copy.deepcopy(lane)
                mine.select([wanted[place][1] for place in part])
                for index, place in enumerate(part):
                    self.places[place] = (len(lanes), index)
                lanes.append(mine)
        self.lanes = lanes

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Send one token of each row through the model; returns the logits of the next: [rows, vocabulary]."""
        given = [[0] * len(lane.ids) for lane in self.lanes]
        for (lane, place), token in zip(self.places, tokens, strict=True):
            given[lane][place] = token
        found = [self.stepper.step(lane, own) for lane, own in zip(self.lanes, given, strict=True)]
        return torch.stack([found[lane][place] for lane, place in self.places])


def _groups(prompts: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Numbers of prompts of one length, as many together as have at most that many tokens; one at least."""
    groups: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda one: len(prompts[one])):
        length = len(prompts[number])
        if groups and len(prompts[groups[-1][0]]) == length and (len(groups[-1]) + 1) * length <= most_tokens:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def cache_argument(model: nn.Module) -> str:
    """The name under which this model takes its cache: transformers renamed it, and warns at the old name."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"
