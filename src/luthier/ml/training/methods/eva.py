"""EVA: LoRA whose A starts along the directions in which the inputs of its matrices vary most on the training rows.

A pass over the first training rows gives the inputs X [tokens, in] of each adapted matrix, and A becomes their first
`rank` right singular vectors: of all A with orthonormal rows the one that keeps most of the squared length of X. B is
zero, as in LoRA, so the model is unchanged at the start, and the result is a plain LoRA adapter.

X is never held as a whole: the singular vectors of each micro-batch are merged with those so far, by the SVD of both,
each multiplied by its singular values. That is exact as long as nothing is cut off, and `_OVERSAMPLED` more directions
than are needed are kept. Matrices that read one input share its directions.

Unlike in the paper every matrix keeps the rank of the plan; there ranks are afterwards moved to the matrices whose
inputs need more of them (PEFT: `rho`, 1 for none).

Source: Paischer et al., 2024, "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
arXiv:2410.07170, section 3. Merging: Ross et al., 2008, "Incremental Learning for Robust Visual Tracking", section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from luthier.ml.inference.accelerator import seed_random
from luthier.ml.training.methods.lora import ADAPTER, AdaptedLayer, Lora, is_adapted
from luthier.ml.training.methods.rules import rules_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.ml.training.model import MicroBatch

_OVERSAMPLED: Final = 8
_POWER_ITERATIONS: Final = 4


class Directions:
    """The directions in which vectors vary most, of micro-batches that are added one after the other.

    Attributes:
        scaled: right singular vectors, each multiplied by its singular value, largest first: [at most `num`, width].

    Args:
        num: most directions that are kept.
        width: of the vectors.
        device: where they are.
    """

    def __init__(self, num: int, width: int, device: torch.device) -> None:
        self.num = num
        self.scaled = torch.zeros(0, width, device=device)

    def add(self, vectors: Tensor) -> None:
        """Take in more vectors [n, width]; draws random numbers (Halko et al., 2011, arXiv:0909.4061)."""
        wanted = min(self.num, *vectors.shape)
        if not wanted:
            return
        # In fp32: bf16 has too few digits for vectors that must be orthogonal to one another.
        _, values, right = torch.svd_lowrank(vectors.float(), q=wanted, niter=_POWER_ITERATIONS)
        both = torch.cat([self.scaled, values[:, None] * right.t()])
        _, values, rows = torch.linalg.svd(both, full_matrices=False)
        self.scaled = (values[:, None] * rows)[: self.num]

    def first(self, num: int) -> Tensor:
        """The first `num` directions, of length 1: [num, width], or fewer where the vectors have no more."""
        lengths = self.scaled.norm(dim=1)
        # Directions of rounding errors are none.
        keep = (
            lengths > lengths.amax().clamp_min(torch.finfo(lengths.dtype).tiny) * 1e-6 if len(lengths) else lengths > 0
        )
        found: Tensor = (self.scaled[keep] / lengths[keep, None])[:num]
        return found


class _Inputs:
    """What the inputs of adapted matrices have in common, matrix by matrix, while a model computes micro-batches."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.found: dict[str, Directions] = {}
        self._is_token: Tensor | None = None
        self._last: tuple[Tensor | None, str] = (None, "")
        self._same: dict[str, str] = {}
        """Of a matrix that reads the input of another one: the name of that."""

    def expect(self, batch: MicroBatch) -> None:
        """Say which positions of the next pass are tokens and not padding."""
        self._last = (None, "")
        self._is_token = None
        if batch.layout is None:
            places = torch.arange(batch.input_ids.shape[1])
            self._is_token = (places < torch.tensor(batch.lengths)[:, None]).flatten().to(batch.input_ids.device)

    def take(self, name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Look at the input of a matrix, before it is computed."""
        x: Tensor = inputs[0]
        before, of = self._last
        if x is before:
            self._same[name] = of
            return
        self._last = x, name
        vectors = x.detach().flatten(0, -2)  # [tokens, in]
        # A matrix of an expert gets the tokens that were routed to it, without padding to be told apart.
        if self._is_token is not None and len(vectors) == len(self._is_token):
            vectors = vectors[self._is_token]
        if name not in self.found:
            self.found[name] = Directions(self.rank + _OVERSAMPLED, vectors.shape[1], vectors.device)
        self.found[name].add(vectors)

    def of(self, name: str) -> Tensor | None:
        """The first directions of the inputs of a matrix; None where it was never computed."""
        found = self.found.get(name) or self.found.get(self._same.get(name, ""))
        return None if found is None else found.first(self.rank)


class Eva(Lora):
    """LoRA whose A starts from the inputs of its matrices."""

    _seed: int = 0

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """LoRA's adapter, whose A `first_weights` replaces."""
        self._seed = seed
        return super().prepare(model, seed)

    @torch.no_grad()
    def first_weights(
        self, module: nn.Module, batches: Iterable[MicroBatch], forward: Callable[[MicroBatch], Tensor]
    ) -> dict[str, Tensor]:
        """A of each matrix. One whose inputs have fewer directions than the rank keeps the rest of its random rows."""
        # Their tokens are many times the directions that are sought.
        wanted = rules_of(self.plan.name).num_first_rows
        layers: dict[str, AdaptedLayer] = {name: layer for name, layer in module.named_modules() if is_adapted(layer)}
        inputs, num_rows = _Inputs(self.plan.rank), 0
        hooks = [layer.register_forward_pre_hook(partial(inputs.take, name)) for name, layer in layers.items()]
        seed_random(self._seed)
        try:
            for batch in batches:
                inputs.expect(batch)
                forward(batch)
                num_rows += len(batch.lengths)
                if num_rows >= wanted:
                    break
        finally:
            for hook in hooks:
                hook.remove()
        weights: dict[str, Tensor] = {}
        for name, layer in layers.items():
            if (directions := inputs.of(name)) is not None:
                weight = layer.lora_A[ADAPTER].weight.detach().float().clone()
                weight[: len(directions)] = directions
                weights[f"{name}.lora_A.{ADAPTER}.weight"] = weight
        return weights
