"""A base model made ready for training: method in place, fast kernels installed, loss at hand."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.plan import Plan
from luthier.models.loading import load_model
from luthier.models.quantised import num_parameters
from luthier.train import attention, kernels
from luthier.train.methods.protocol import Method
from luthier.train.methods.registry import load_method
from luthier.train.objectives.cross_entropy import cross_entropy_sum
from luthier.train.objectives.protocol import Losses
from luthier.train.prefix_attention import PrefixLayout


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tensors of a few examples.

    input_ids: [batch, longest], padded on the right; with a `layout` [1, P + B * S]: the common beginning once, then
    the suffixes, each padded on the right. rows: [N] flat positions whose next token is learned; targets: [N] those
    next tokens. num_tokens: of the examples, without padding, a shared beginning counted for each.
    """

    input_ids: Tensor
    rows: Tensor
    targets: Tensor
    num_tokens: int
    layout: PrefixLayout | None = None

    @property
    def num_trained_tokens(self) -> int:
        """N, the number of learned tokens."""
        return self.targets.numel()

    @property
    def num_computed_tokens(self) -> int:
        """Positions that go through the model."""
        return self.input_ids.numel()


def collate(
    examples: Sequence[TokenisedExample], pad_id: int, device: str, *, num_prefix_tokens: int = 0
) -> MicroBatch:
    """Lay the examples side by side and list what is learned.

    num_prefix_tokens: how many tokens they all begin with, none of them learned, laid down once; 0 for plain rows.
    """
    longest = max(e.num_tokens for e in examples) - num_prefix_tokens
    ids = np.full((len(examples), longest), pad_id, dtype=np.int64)
    beginning = np.frombuffer(examples[0].input_ids, dtype=np.int32)[:num_prefix_tokens]
    rows, targets = [], []
    for index, example in enumerate(examples):
        row = np.frombuffer(example.input_ids, dtype=np.int32)
        if not np.array_equal(row[:num_prefix_tokens], beginning):
            raise ValueError(
                f"example {example.id} does not begin with the {num_prefix_tokens} tokens of the first one"
            )
        ids[index, : len(row) - num_prefix_tokens] = row[num_prefix_tokens:]
        learned = np.flatnonzero(np.frombuffer(example.loss_mask, dtype=np.uint8))
        before = learned - 1  # the token that predicts: the last one of the beginning lies in front of all suffixes
        rows.append(np.where(before < num_prefix_tokens, before, before + index * longest))
        targets.append(row[learned].astype(np.int64))
    layout = None
    if num_prefix_tokens:
        ids = np.concatenate((beginning.astype(np.int64), ids.reshape(-1)))[None]
        layout = PrefixLayout(num_prefix_tokens, len(examples), longest)
    return MicroBatch(
        input_ids=torch.from_numpy(ids).to(device),
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(np.concatenate(targets)).to(device),
        num_tokens=sum(e.num_tokens for e in examples),
        layout=layout,
    )


class TrainableModel:
    """Base model, method and loss in one; everything that the loop needs to know of a model."""

    def __init__(
        self,
        base: PreTrainedModel,
        method: Method,
        seed: int,
        device: str = "cpu",
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        _refuse_unknown_heads(base)
        base.config._attn_implementation = attention.install()
        base.config.use_cache = False
        self.base, self.method, self.device = base, method, device
        self.body: nn.Module = base.get_decoder()
        self.module: nn.Module = method.prepare(base, seed)
        self.replaced: Counter[str] = kernels.install(self.module.eval())
        if gradient_checkpointing:
            _recompute_layers(base)
        self.pad_id = int(base.config.pad_token_id or 0)
        self.root: nn.Module | None = None

    @classmethod
    def load(cls, plan: Plan, device: str | None = None) -> TrainableModel:
        """The model of a plan, from its local folder. device: in place of the plan's, where there are several."""
        device = device or plan.training.device
        base = load_model(
            plan.base_model.path,
            dtype=plan.training.precision,
            attention="sdpa",
            device=device,
            quantisation=plan.method.quantisation,
        )
        return cls(
            base,
            load_method(plan.method),
            plan.training.seed,
            device,
            gradient_checkpointing=plan.training.gradient_checkpointing,
        )

    @property
    def head(self) -> Tensor:
        """The matrix that makes logits of hidden states: [vocabulary, width]."""
        matrix: Tensor = self.base.get_output_embeddings().weight
        return matrix

    def within(self, compute: Callable[[], Losses]) -> Losses:
        """What `compute` gives, called where the weights are whole: those that are spread over devices are fetched."""
        if self.root is None:
            return compute()

        def parts() -> tuple[Tensor, dict[str, Tensor]]:  # a form that torch can look into
            losses = compute()
            return losses.total, dict(losses.measures)

        return Losses(*self.root(parts))

    def loss_sum(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats over the learned tokens (scalar), and how many of them are predicted right."""
        hidden = self.hidden(batch)
        return cross_entropy_sum(hidden.flatten(0, 1)[batch.rows], self.head, batch.targets)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """The last hidden state of each position: [*input_ids.shape, width]."""
        device = batch.input_ids.device
        if batch.layout is None:
            positions = torch.arange(batch.input_ids.shape[1], device=device)[None]
            return self.method.hidden(self.body, batch.input_ids, positions)
        return self.method.hidden(self.body, batch.input_ids, batch.layout.positions(device), batch.layout)

    @torch.no_grad()
    def can_share_prefix(self) -> bool:
        """Whether this model computes the same with a shared beginning as row by row, tried on a few random tokens.

        False for layers that look at a row in another way than by attention (convolutions, state spaces) or whose
        attention is not reached by what the model is told; and for methods that put something before each row.
        """
        if not self.method.can_share_prefix:
            return False
        ids = torch.randint(int(self.base.config.vocab_size), (2, 9), generator=torch.Generator().manual_seed(0))
        ids[1, :5] = ids[0, :5]
        rows = [
            TokenisedExample(str(i), array("i", row), bytes([0] * 5 + [1] * 4)) for i, row in enumerate(ids.tolist())
        ]
        was_training = self.module.training
        self.module.eval()
        plain, shared = (self.hidden(collate(rows, self.pad_id, self.device, num_prefix_tokens=n)) for n in (0, 5))
        self.module.train(was_training)
        apart = torch.stack([plain[0, :5], plain[1, :5]]).mean(0), plain[0, 5:], plain[1, 5:]
        expected = torch.cat(apart).float()
        scale = expected.abs().max().clamp_min(1e-30)
        tolerance = 5e-2 if shared.dtype == torch.bfloat16 else 1e-4
        return bool((shared[0].float() - expected).abs().max() <= tolerance * scale)

    @property
    def num_parameters(self) -> int:
        """All parameters, adapter included, tied ones once."""
        return num_parameters(self.module)

    @property
    def num_trainable_parameters(self) -> int:
        """Parameters that the optimizer changes."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


def _recompute_layers(base: PreTrainedModel) -> None:
    """Keep only the input of each layer and compute the rest again on the way back, with the same random numbers.

    Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.1.
    """
    if not base.supports_gradient_checkpointing:
        raise RequestError(
            f"training.gradient_checkpointing with {type(base).__name__}, whose layers cannot be computed again",
            expected="a model that transformers can checkpoint",
            do="set training.gradient_checkpointing: false",
        )
    # older transformers know only the second name, newer ones warn of it
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _refuse_unknown_heads(base: PreTrainedModel) -> None:
    """The loss is computed from the body's last hidden state and the head's matrix: refuse models that do more."""
    head = base.get_output_embeddings()
    capping = getattr(base.config, "final_logit_softcapping", None)
    scale = getattr(base.config, "logit_scale", None) or getattr(base.config, "logits_scaling", None)
    if getattr(head, "bias", None) is not None or capping is not None or scale not in (None, 1, 1.0):
        raise RequestError(
            f"{type(base).__name__} with head bias={getattr(head, 'bias', None) is not None}, logit capping={capping}, "
            f"logit scale={scale}",
            expected="a model whose logits are its last hidden state times one matrix",
            do="choose another base model: a loss computed without these would be wrong",
        )
