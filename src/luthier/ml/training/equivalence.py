"""Checks that a faster way to compute a model (packed rows, compiled layers) gives the same results as the plain one.

Each check runs a few short random rows both ways and compares the last hidden states and the gradients of the input
embeddings: these depend on every layer, in the forward and in the backward pass. torch compiles one graph for all
layers of a kind, for any row length.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.core.dataset import TokenisedExample
from luthier.ml.inference.accelerator import has_flex_attention
from luthier.ml.inference.models.architecture import text_config
from luthier.ml.training import kernels
from luthier.ml.training.methods.lora import open_to_a_compiler
from luthier.ml.training.model import TrainableModel, collate

Compiler = str | Callable[..., Any]
"""A torch.compile backend: a registered name, or a function of graph and example inputs."""


def layers_of(body: nn.Module) -> list[nn.Module]:
    """The blocks of a model, found by the common base class of transformers."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(layers: Sequence[nn.Module], compiler: Compiler = "inductor") -> None:
    """Compile each layer separately at its first call, with a dynamic number of tokens.

    Layers with the same code and shapes share one compiled graph, so that a deep model takes no longer than a shallow
    one (PyTorch's "regional compilation").
    """
    for layer in layers:
        layer.compile(dynamic=True, backend=compiler)


def leave_uncompiled(layers: Sequence[nn.Module]) -> None:
    """Undo `compile_layers`."""
    for layer in layers:
        # Module.compile() stores its result here and nowhere else.
        layer._compiled_call_impl = None


# Relative to the norm. Rounding in bfloat16 adds up over a deep model, but a real error is far larger.
_TOLERANCES = (("outputs", 5e-2), ("gradients", 1e-1))
_TOLERANCE_WIDE = 1e-4
_LENGTHS, _PREFIX_LENGTHS = (9, 8, 7, 9), (5, 3)


def why_not_packed(model: TrainableModel) -> str | None:
    """Why a model cannot take rows packed end to end, or None if it computes the same as row by row.

    Tested without shared prefixes and with prefixes that two rows each share. If the result is None, packed rows on a
    GPU use FlexAttention from then on. Not supported: methods that prepend something to each row; layers that mix
    positions other than by attention (convolutions, state spaces) or that count positions themselves; attention that
    does not receive the model's arguments, or that this device cannot compute on packed rows.
    """
    if not model.method.can_share_prefix:
        return f"{type(model.method).__name__} puts its own prompt before each row"
    if model.path.attention != "fast":
        return "its attention is computed by transformers, which does not support packed rows"
    rows, why_not = _short_rows(model), None
    plain = states_and_gradients(model, rows)
    model.uses_flex_attention = has_flex_attention(model.device)
    try:
        for prefix_lengths in ((0,), _PREFIX_LENGTHS):
            why_not = why_not or _difference(plain, states_and_gradients(model, rows, prefix_lengths), "of packed rows")
    except (RuntimeError, ValueError, TypeError) as error:  # from a compiler, a kernel, or a body that takes no layout
        why_not = _error_summary(error)
    model.uses_flex_attention = model.uses_flex_attention and why_not is None
    return why_not


def why_not_compiled(model: TrainableModel, compiler: Compiler = "inductor") -> str | None:
    """Compile the layers of a model; returns why they were not compiled, or None if they were.

    Our own kernels are removed first: the compiler fuses the plain operations by itself.
    """
    layers = layers_of(model.body)
    if not layers:
        return f"{type(model.body).__name__} has no layers of a kind that is known"
    rows = _short_rows(model)
    prefix_lengths = (0,) if model.uses_flex_attention else ()
    plain = states_and_gradients(model, rows, prefix_lengths)
    kernels.uninstall(model.module)
    closed = open_to_a_compiler(model.module)
    window = getattr(text_config(model.base.config), "sliding_window", None)
    model.windows = (None,) if window is None else (None, window)
    compile_layers(layers, compiler)
    try:
        why_not = _difference(plain, states_and_gradients(model, rows, prefix_lengths), "of compiled layers")
    except (RuntimeError, ValueError) as error:
        why_not = _error_summary(error)
    if why_not is not None:
        leave_uncompiled(layers)
        for layer, forward in closed:
            layer.forward = forward
        model.install_kernels(model.module.eval())
    return why_not


def states_and_gradients(
    model: TrainableModel, rows: Sequence[TokenisedExample], prefix_lengths: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """In evaluation mode, without dropout: the last hidden state at the positions that predict the learned tokens,
    [learned tokens, width], and the gradient of the embedding of each token that occurs, [tokens, width].

    The gradients are those of a random sum over the states. Leaves no gradients behind.

    Args:
        model: with its method applied.
        rows: of one micro-batch.
        prefix_lengths: as `collate` takes them.
    """
    batch = collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths)
    inputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Tensor) -> Tensor:
        inputs.append(out.detach().requires_grad_())
        return inputs[-1]

    was_training = model.module.training
    model.module.eval()
    hook = model.base.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            states = model.hidden(batch).flatten(0, 1)[batch.rows]
            # Random weights: in a plain sum errors of opposite sign would cancel. Drawn on the CPU, so that they are
            # the same on every device.
            weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states)
            (gradient,) = torch.autograd.grad(states, inputs[-1], weight)
    finally:
        hook.remove()
        model.module.train(was_training)
    # Gradients are compared by token, not by position: packing moves a row to other positions.
    known = torch.tensor(sorted({token for row in rows for token in row.input_ids}), device=model.device)
    ids = batch.input_ids.flatten()
    at = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
    occurs = known[at] == ids  # padding gets no gradient
    summed = torch.zeros(len(known), gradient.shape[-1], dtype=torch.float32, device=model.device)
    summed.index_add_(0, at[occurs], gradient.flatten(0, 1)[occurs].float())
    return states.detach(), summed


def _short_rows(model: TrainableModel) -> list[TokenisedExample]:
    """Four rows; the first two share a prefix, and so do the last two. All tokens but the first are learned."""
    draw, vocabulary = torch.Generator().manual_seed(0), model.vocabulary_size
    ids = torch.randint(vocabulary, (len(_LENGTHS), max(_LENGTHS)), generator=draw)
    for group, cut in enumerate(_PREFIX_LENGTHS):
        ids[2 * group + 1, :cut] = ids[2 * group, :cut]
    return [
        TokenisedExample(str(number), array("i", row[:length]), b"\0" + b"\1" * (length - 1))
        for number, (row, length) in enumerate(zip(ids.tolist(), _LENGTHS, strict=True))
    ]


def _difference(wanted: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], what: str) -> str | None:
    for (name, narrow), one, other in zip(_TOLERANCES, wanted, found, strict=True):
        difference = float((other - one).float().norm() / one.float().norm().clamp_min(1e-30))
        # `not <=` and not `>`: a NaN must fail.
        if not difference <= (narrow if wanted[0].dtype == torch.bfloat16 else _TOLERANCE_WIDE):
            return f"{name} {what} differ by {difference:.2g} of their size"
    return None


def _error_summary(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
