"""LoRA and its variants rsLoRA, LoRA+, QLoRA and DoRA.

LoRA: y = x W^T + (alpha / r) dropout(x) A^T B^T, with W frozen and B zero at the start. PEFT creates and names the
adapter, so that every PEFT-compatible tool can load it; the computation is ours, one fused function per matrix. The
variants differ by:

- rsLoRA: the scale is alpha / sqrt(r), so that high ranks keep learning.
- LoRA+: the learning rate of B is a multiple of that of A.
- QLoRA: the base is stored in four or eight bits (`ml/inference/models/quantised.py`) and unpacked on use.
- DoRA: W' = m (W + s B A) / n, with n the norm of each row, treated as a constant by the gradient, and m a trained
magnitude.

Sources: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1.
Kalajdzievski, 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732, section 3.
Hayou et al., 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354, section 4. Dettmers et
al., 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, section 3. Liu et al., 2024, "DoRA:
Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, sections 4.1 and 4.3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, MethodType
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLoraLinear
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import RequestError
from luthier.core.text.target_modules import target_summary
from luthier.ml.inference.accelerator import seed_random
from luthier.ml.inference.models.expert_product import install_products
from luthier.ml.inference.models.quantised import PackedLinear
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.training.low_rank import Dropout, LoraProduct, LoraProducts, PackedMatrix
from luthier.ml.training.methods.peft_adapter import (
    adapter_tensors,
    all_but,
    meant_for_peft,
    planned_targets,
    read_back,
    refuse_other_targets,
    write_adapter,
)
from luthier.ml.training.methods.protocol import PlainMethod
from luthier.ml.training.methods.whole_modules import saved_names, saved_tensors, train_whole

ADAPTER = "default"
AdaptedLayer: TypeAlias = PeftLoraLinear | ParamWrapper
"""A matrix with an adapter; the wrapper holds one that PEFT would not find by its name (`peft_targets`)."""


def matrix_of(layer: nn.Module) -> Tensor:
    """The matrix [out, in] of a linear layer; transformers' Conv1D holds its transpose."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.t() if isinstance(layer, Conv1D) else weight


class AdaptedForward:
    """The forward of one PEFT LoRA layer. `training` is read from the layer at each call."""

    def __init__(self, layer: AdaptedLayer, probability: float) -> None:
        self.layer, self.probability = layer, probability
        self.inner: nn.Module = layer.get_base_layer()
        self.thin: tuple[nn.Module, nn.Module] = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        self.scale = float(layer.scaling[ADAPTER])
        self.joined: Joined | None = None
        self.numba_kernels = False

    # Weights are read at each call, since sharding replaces them.

    @property
    def base(self) -> Tensor | PackedMatrix:
        """The frozen matrix."""
        inner = self.inner
        return inner if isinstance(inner, PackedLinear) else matrix_of(inner)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.inner.bias  # type: ignore[return-value]

    @property
    def a(self) -> Tensor:
        """The matrix A, [rank, in]."""
        return self.thin[0].weight  # type: ignore[return-value]

    @property
    def b(self) -> Tensor:
        """The matrix B, [out, rank]."""
        return self.thin[1].weight  # type: ignore[return-value]

    def factors(self) -> tuple[Tensor, Tensor]:
        """The matrices A and B."""
        return self.a, self.b

    def draw(self) -> Dropout | None:
        """This call's dropout."""
        if not (self.layer.training and self.probability > 0):
            return None
        # The key comes from torch's generator, which the loop seeds from (seed, step).
        return Dropout(self.probability, int(torch.randint(2**62, ())), self.numba_kernels)

    def scale_under(self, dropout: Dropout | None) -> float:
        """The scale, divided by the keep probability of the dropout."""
        return self.scale if dropout is None else self.scale / dropout.keep_probability

    @property
    def can_join(self) -> bool:
        """Whether this is the plain product with an unpacked matrix, on a CPU."""
        is_plain = type(self).__call__ is AdaptedForward.__call__ and isinstance(self.base, Tensor)
        return is_plain and self.a.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        if self.joined is not None and (ready := self.joined.of(self, x)) is not None:
            return ready
        dropout = self.draw() if self.joined is None else self.joined.draw(self, x)
        a, b = self.factors()
        out: Tensor = LoraProduct.apply(x, self.base, self.bias, a, b, dropout, self.scale_under(dropout))
        return out


def _traced_forward(layer: PeftLoraLinear, x: Tensor) -> Tensor:
    """An adapted matrix in plain operations that the compiler fuses, with torch's own dropout."""
    base = layer.get_base_layer()
    thin = F.linear(layer.lora_dropout[ADAPTER](x), layer.lora_A[ADAPTER].weight)  # [..., rank]
    added = F.linear(thin, layer.lora_B[ADAPTER].weight) * layer.scaling[ADAPTER]
    out: Tensor = F.linear(x, matrix_of(base), base.bias) + added
    return out


def open_to_a_compiler(model: nn.Module) -> list[tuple[nn.Module, AdaptedForward]]:
    """Make all plain adapted matrices share one forward function; returns their previous forwards.

    A separate object for each matrix would make torch compile every layer separately. LoRA variants with another
    formula are unchanged.
    """
    found = []
    for layer in model.modules():
        if isinstance(layer, PeftLoraLinear) and type(layer.forward) is AdaptedForward:
            found.append((layer, layer.forward))
            layer.forward = MethodType(_traced_forward, layer)
    return found


class Joined:
    """Adapted matrices that share an input: all are computed when the first is called, the others return cached
    outputs.

    The model's code is unchanged and calls one after the other. Outputs of another input are never returned, and if the
    matrices turn out to read different inputs, each is computed separately from then on. Adapters of one input share
    its dropout mask either way: drawing is most of what dropout costs on a CPU.
    """

    def __init__(self, forwards: Sequence[AdaptedForward]) -> None:
        self.forwards = list(forwards)
        self.x: Tensor | None = None
        self.ready: dict[int, Tensor] = {}
        self.is_apart = False
        self.drawn: tuple[Tensor, Dropout | None] | None = None
        for forward in forwards:
            forward.joined = self

    def draw(self, forward: AdaptedForward, x: Tensor) -> Dropout | None:
        """The dropout of one that is computed separately: that of the first, if it read x too."""
        if forward is self.forwards[0]:
            self.drawn = x, forward.draw()
            return self.drawn[1]
        drawn = self.drawn
        dropout = drawn[1] if drawn is not None and drawn[0] is x else forward.draw()
        if forward is self.forwards[-1]:
            self.drawn = None  # releases the memory of the input
        return dropout

    def of(self, forward: AdaptedForward, x: Tensor) -> Tensor | None:
        """The output of one of them for x; None if it has to be computed separately."""
        if forward is not self.forwards[0]:
            found = self.ready.pop(id(forward), None) if x is self.x else None
            if not self.ready:
                self.x = None  # all outputs are consumed: release the input's memory
            return found
        self.is_apart = self.is_apart or bool(self.ready)  # the previous outputs were never used
        self.x, self.ready = None, {}
        if self.is_apart:
            return None
        dropout = self.forwards[0].draw()
        factors = [factor for one in self.forwards for factor in one.factors()]
        outs = LoraProducts.apply(
            x,
            [one.base for one in self.forwards],
            [one.bias for one in self.forwards],
            dropout,
            [one.scale_under(dropout) for one in self.forwards],
            *factors,
        )
        self.x = x
        self.ready = {id(one): out for one, out in zip(self.forwards[1:], outs[1:], strict=True)}
        first: Tensor = outs[0]
        return first


def _trained_product(x: Tensor, matrix: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    out: Tensor = LoraProduct.apply(x, matrix, bias, a, b, None, scale)
    return out


def _is_single(layer: nn.Module) -> bool:
    return isinstance(layer, ParamWrapper) and isinstance(layer.get_base_layer(), nn.Linear)


def is_adapted(layer: nn.Module) -> TypeGuard[AdaptedLayer]:
    """Whether a module is a single matrix with an adapter."""
    return isinstance(layer, PeftLoraLinear) or _is_single(layer)


_READ_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def _join(model: nn.Module) -> None:
    """Find matrices that share an input by the names that nearly all models use."""
    for module in model.modules():
        for names in _READ_ONE_INPUT:
            forwards = [getattr(getattr(module, name, None), "forward", None) for name in names]
            if all(isinstance(forward, AdaptedForward) and forward.can_join for forward in forwards):
                Joined(forwards)  # type: ignore[arg-type]


class Lora(PlainMethod):
    """Trains a low-rank adapter; the base is unchanged. Subclasses define only what differs.

    An adapter on the embedding table is computed by PEFT, without dropout. One on the output head is part of the
    logits.
    Embeddings and head may be trained in whole beside it (`whole_modules`).
    """

    head_forward: AdaptedForward | None = None
    whole: Mapping[str, nn.Module] = MappingProxyType({})
    """What is trained in whole beside the adapter, by name."""

    def config(self) -> LoraConfig:
        """The adapter as PEFT's config.

        With experts, `r` is their rank and all other matrices get theirs by a pattern: for patterns on parameters PEFT
        warns, whenever the adapter is loaded, that they are ignored, although they are not.
        """
        plan, usual, others = self.plan, (self.plan.rank, self.plan.alpha), {}
        if plan.expert_targets and plan.expert_rank:
            usual = plan.expert_rank, self.expert_alpha()
            others = {all_but(plan.expert_targets): (plan.rank, plan.alpha)} if plan.targets else {}
        return LoraConfig(
            r=usual[0],
            lora_alpha=usual[1],
            lora_dropout=plan.dropout,
            target_modules=list(plan.targets),
            target_parameters=list(plan.expert_targets) or None,
            rank_pattern={name: rank for name, (rank, _) in others.items()},
            alpha_pattern={name: alpha for name, (_, alpha) in others.items()},
            task_type="CAUSAL_LM",
        )

    def expert_alpha(self) -> float:
        """Alpha of experts, chosen so that their scale is that of all other matrices."""
        return self.plan.alpha * (self.plan.expert_rank or 0) / self.plan.rank

    def forward_of(self, name: str, layer: AdaptedLayer) -> AdaptedForward:  # noqa: ARG002
        """The forward of one adapted matrix; called once for each after the adapter is in place."""
        return AdaptedForward(layer, self.plan.dropout)

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Add the adapter in the precision of the base, A random from `seed` and B zero, and fuse its layers.

        Raises:
            RequestError: PEFT cannot adapt these targets, or adapted other modules than the plan lists.
        """
        planned = planned_targets(model, self.plan)
        config = meant_for_peft(model, self.config())
        seed_random(seed)
        try:
            with quiet_peft():
                adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise RequestError(
                f"PEFT cannot put method {self.plan.name} on {target_summary(self.plan)}: "
                f"{' '.join(str(error).split())[:300]}",
                expected="matrices that PEFT can adapt by this method",
                do="leave the matrix that is named out of method.targets, or choose another method",
            ) from error
        refuse_other_targets(adapted, planned)
        install_products(adapted, ADAPTER, _trained_product)
        for name, layer in adapted.named_modules():
            if is_adapted(layer):
                layer.forward = self.forward_of(name, layer)
                layer.forward.numba_kernels = self.numba_kernels
                if layer is model.get_output_embeddings():
                    self.head_forward = layer.forward
                if config.lora_dropout != self.plan.dropout:  # compiled layers use PEFT's dropout
                    layer.lora_dropout[ADAPTER] = nn.Dropout(self.plan.dropout)
        _join(adapted)
        self.whole = train_whole(model, self.plan.modules_to_save)
        return adapted  # type: ignore[no-any-return]

    def logit_parts(self, rows: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """W h + s B A dropout(h) as one product: [h, s A dropout(h)] by [W, B]."""
        if self.head_forward is None:
            return rows, head
        dropout = self.head_forward.draw()
        scale = self.head_forward.scale_under(dropout)
        a, b = self.head_forward.factors()
        mask = None if dropout is None else dropout.mask(rows)
        # `where`, not `keep`: autograd has to differentiate through the mask here.
        thin = (rows if mask is None else rows.where(mask != 0, 0.0)) @ a.t()
        # [N, width + rank] and [vocabulary, width + rank]
        return torch.cat([rows, thin * scale], 1), torch.cat([head, b], 1)

    def export(self, model: PeftModel) -> tuple[dict[str, Tensor], LoraConfig]:
        """What is saved: tensors by PEFT's names, and the config with which PEFT loads them."""
        return adapter_tensors(model), model.peft_config[ADAPTER]

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT reads them, the same bytes each time."""
        assert isinstance(model, PeftModel)
        tensors, config = self.export(model)
        tensors = read_back(model, tensors, config)
        if self.whole:
            tensors |= saved_tensors(self.whole)
            config = copy.copy(config)  # the model's own, which has no copies of these modules
            config.modules_to_save = saved_names(model.get_base_model(), self.whole)
        return write_adapter(folder, tensors, config, base_path)


class RsLora(Lora):
    """LoRA with the scale alpha / sqrt(rank)."""

    def config(self) -> LoraConfig:
        """LoRA's config, with the scale alpha / sqrt(rank)."""
        config = super().config()
        config.use_rslora = True
        return config

    def expert_alpha(self) -> float:
        """The same alpha: alpha / sqrt(rank) suits any rank."""
        return self.plan.alpha


class LoraPlus(Lora):
    """LoRA with two learning rates."""

    def rate_factor(self, name: str) -> float:
        """`learning_rate_ratio` for B."""
        return float(self.plan.learning_rate_ratio or 1.0) if ".lora_B." in name else 1.0


class QLora(Lora):
    """LoRA whose adapter uses the compute precision, since that of the base is its packing."""

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """LoRA's adapter, in the precision of the unpacked weights."""
        precision = model.get_input_embeddings().weight.dtype
        adapted = super().prepare(model, seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(precision)
        return adapted


class RowScale(torch.autograd.Function):
    """x * (length / norm) for each column of x [N, out], saving x: one pass forward, two backward.

    Args:
        x: [N, out].
        length: [out], the trained magnitudes.
        norm: [out], the lengths of the rows of the adapted matrix; they get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor, norm: Tensor) -> Tensor:
        ctx.save_for_backward(x, length, norm)
        return x * (length / norm)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, length, norm = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        # [out], a sum over all positions, in fp32
        columns = (grad * x).flatten(0, -2).sum(0, dtype=wide)
        return grad * (length / norm), (columns / norm).to(length.dtype), None


class _RowLengthForward(AdaptedForward):
    """The low-rank product, each output scaled to its trained magnitude; the bias is added afterwards."""

    def __init__(self, layer: AdaptedLayer, probability: float) -> None:
        super().__init__(layer, probability)
        self.matrix = matrix_of(layer.get_base_layer())
        self.length = layer.lora_magnitude_vector[ADAPTER].weight
        self.squares = self.matrix.float().square().sum(1)  # [out]
        self.norm, self.norm_of = torch.empty(0), (-1, -1)

    @torch.inference_mode(mode=False)  # answers are drawn in it, and autograd does not save what is made there
    @torch.no_grad()
    def current_norm(self) -> Tensor:
        """Row norms of W + s B A [out], recomputed only when A or B changed: once per step, not per micro-batch.

        |w + s bA|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b, so that B A is never materialised. Rounded to the
        precision of the weights, as in PEFT, so that length / norm is exactly 1 at the start.
        """
        # torch counts in-place changes of a tensor: comparing counters costs nothing.
        versions = (self.a._version, self.b._version)
        if versions != self.norm_of:
            a, b, s = self.a.float(), self.b.float(), self.scale
            along = (self.matrix @ self.a.t()).float()  # [out, rank]
            squares = self.squares + (b * (2 * s * along + s * s * (b @ (a @ a.t())))).sum(1)
            norm = squares.clamp_min(0).sqrt().to(self.matrix.dtype)
            # a row of zeros has no direction: its magnitude of zero keeps it zero
            self.norm, self.norm_of = norm.clamp_min(torch.finfo(norm.dtype).tiny), versions
        return self.norm

    def __call__(self, x: Tensor) -> Tensor:
        dropout = self.draw()
        product = LoraProduct.apply(x, self.matrix, None, self.a, self.b, dropout, self.scale_under(dropout))
        out: Tensor = RowScale.apply(product, self.length, self.current_norm())
        return out if self.bias is None else out + self.bias


class Dora(Lora):
    """LoRA with a trained magnitude for each row."""

    def config(self) -> LoraConfig:
        """LoRA's config, with the magnitudes."""
        config = super().config()
        config.use_dora = True
        return config

    def forward_of(self, name: str, layer: AdaptedLayer) -> AdaptedForward:  # noqa: ARG002
        """The product with its rows scaled."""
        return _RowLengthForward(layer, self.plan.dropout)
