"""Layers compiled by torch: one compiled form for all layers of a kind, whatever the length of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

Compiler = str | Callable[..., Any]
"""What torch calls a backend: a name that it knows, or a function of graph and example inputs."""


def layers_of(body: nn.Module) -> list[nn.Module]:
    """The blocks of a model, by the class that transformers derives them all from."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(layers: Sequence[nn.Module], compiler: Compiler = "inductor") -> None:
    """Compile each layer by itself at its first call, with the number of tokens left open.

    What is compiled for one layer serves all that have the same code and shapes, so that a deep model takes no longer
    than a shallow one (PyTorch's "regional compilation").
    """
    for layer in layers:
        layer.compile(dynamic=True, backend=compiler)


def leave_uncompiled(layers: Sequence[nn.Module]) -> None:
    """Run the layers as they were before `compile_layers`."""
    for layer in layers:
        # Module.compile() stores its result here and nowhere else.
        layer._compiled_call_impl = None
