"""The shape of a model without its weights: built on torch's meta device, so that a 70B model costs nothing to ask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One matrix that an adapter may be put on: its full module name and its widths."""

    name: str
    num_inputs: int
    num_outputs: int

    @property
    def kind(self) -> str:
        """The last part of the name, the same in every block: `q_proj`, `down_proj`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Structure:
    """What the planner needs to know of an architecture."""

    linear_layers: tuple[LinearLayer, ...]
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocabulary_size: int


@lru_cache(maxsize=8)
def read_structure(path: str) -> Structure:
    """The structure of a local transformers folder; the output head is not among its linear layers."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    head = model.get_output_embeddings()
    layers = tuple(
        LinearLayer(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    text = config.get_text_config()
    return Structure(
        linear_layers=layers,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        vocabulary_size=int(text.vocab_size),
    )
