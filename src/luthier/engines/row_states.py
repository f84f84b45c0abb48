"""Rows that go through a model each by itself, with whatever state the model makes to go on from.

transformers' models hand back what they need for the next token (a cache of keys, convolutions, recurrent states) among
their outputs, under the name of the argument that takes it. So nothing need be known of what is in it.
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

from luthier.engines.decoding_proof import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(slots=True)
class RowState:
    """One row. ids: all of its tokens so far. carried: what the model handed back, by argument."""

    ids: list[int]
    carried: dict[str, Any] = field(default_factory=dict)


class RowStepper:
    """Sends rows through a model one at a time. keeps_cache: over what the model hands back; else each text whole."""

    def __init__(self, model: PreTrainedModel, *, keeps_cache: bool) -> None:
        self._model, self._keeps_cache = model, keeps_cache
        self._parameters = frozenset(inspect.signature(model.forward).parameters)

    def start(self, ids: Sequence[int]) -> tuple[RowState, Tensor]:
        """Send a prompt through the model; returns its state and the logits of the next token: [vocabulary]."""
        state = RowState(list(ids))
        if self._keeps_cache:
            state.carried = self._first_cache()
        return state, self._forward(state, is_first=True)

    def step(self, state: RowState, token: int) -> Tensor:
        """Send one more token through the model; returns the logits of the next: [vocabulary]."""
        state.ids.append(token)
        return self._forward(state, is_first=False)

    def _first_cache(self) -> dict[str, Any]:
        """An empty cache as `generate` makes it; none for models that make one of their own kind."""
        makes = getattr(self._model, "_supports_default_dynamic_cache", None)
        name = "cache" if "cache" in self._parameters else "past_key_values"
        if makes is None or not makes() or name not in self._parameters:
            return {}
        return {name: DynamicCache(config=self._model.config.get_text_config(decoder=True))}

    @torch.inference_mode()
    def _forward(self, state: RowState, *, is_first: bool) -> Tensor:
        tokens = torch.tensor([state.ids], device=self._model.device)
        arguments: dict[str, Any] = {"use_cache": self._keeps_cache, "logits_to_keep": 1}
        if self._keeps_cache:
            # The model's own preparation: some drop their cache where positions change their meaning (long rope).
            if "position_ids" in self._parameters:  # not all models count on from what their cache holds
                arguments["position_ids"] = torch.arange(len(state.ids), device=tokens.device)[None]
            arguments = self._model.prepare_inputs_for_generation(
                tokens,
                attention_mask=torch.ones_like(tokens),
                is_first_iteration=is_first,
                next_sequence_length=None if is_first else 1,
                **arguments,
                **state.carried,
            )
        else:
            arguments["input_ids"] = tokens
        output = self._model(**accepted(self._model.forward, arguments))
        if self._keeps_cache:
            handed = {name: output[name] for name in output.keys() & self._parameters}
            state.carried = {name: value for name, value in handed.items() if value is not None}
        logits: Tensor = output.logits[0, -1]
        return logits


@dataclass(slots=True)
class RowBatch:
    """Rows that still write, none of which knows of another."""

    rows: list[int]
    states: list[RowState]
    stepper: RowStepper

    def trim(self) -> None:
        """Nothing is padded."""

    def keep(self, places: list[int]) -> None:
        """Keep the rows at `places`, in that order, and drop all others; a place may come twice."""
        self.rows = [self.rows[place] for place in places]
        taken: set[int] = set()
        states = []
        for place in places:
            states.append(copy.deepcopy(self.states[place]) if place in taken else self.states[place])
            taken.add(place)
        self.states = states

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Send one token of each row through the model; returns the logits of the next: [rows, vocabulary]."""
        return torch.stack([self.stepper.step(state, one) for state, one in zip(self.states, tokens, strict=True)])
