"""Rows that go through a model without padding, with whatever state the model makes to continue from.

transformers' models hand back what they need for the next token (a cache of keys, convolutions, recurrent states) among
their outputs, under the name of the argument that takes it. So nothing need be known of what is in it. Rows of one
length may share such a state where that is proved (`decoding_proof`): several answers to one prompt, above all.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from luthier.ml.inference.models.forward_arguments import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
