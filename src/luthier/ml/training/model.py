"""A base model prepared for training: method applied, fast kernels and loss installed, noise on the embeddings."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.forward_path import ForwardPath
from luthier.core.plan import Plan
from luthier.core.task_head import TaskHead
from luthier.ml.inference.accelerator import can_pin
from luthier.ml.inference.kv_cache import rope_border
from luthier.ml.inference.models.architecture import (
    causal_model,
    context_tokens,
    language_model,
    outside_modules,
    padding_id,
    text_config,
)
from luthier.ml.inference.models.attention_proof import attention_by, attention_of, use_attention
from luthier.ml.inference.models.forward import OwnHead, text_inputs
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.quantised import num_parameters
from luthier.ml.inference.models.task_head import TaskHeadLayer, start_from_own
from luthier.ml.training import attention, kernels
from luthier.ml.training.attention import packed_row
from luthier.ml.training.embedding_noise import EmbeddingNoise
from luthier.ml.training.forward_proof import known_forward, prove_forward
from luthier.ml.training.long_rows import LongRows
from luthier.ml.training.losses.cross_entropy import cross_entropy_sum
from luthier.ml.training.losses.logit_rows import CrossEntropySum, LogitRows
from luthier.ml.training.methods.base_dropout import switch_off_dropout
from luthier.ml.training.methods.protocol import Method, load_method
from luthier.ml.training.objective_protocol import Losses
from luthier.ml.training.prefix_attention import PrefixLayout

if TYPE_CHECKING:
    from luthier.ml.training.losses.router_loss import RouterLoss

_HEAD: Final = "task_head"


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tensors of a few rows; N is the number of learned tokens.

    Attributes:
        input_ids: [rows, longest] int64, padded on the right; with a `layout` [1, T], prefixes and suffixes
            concatenated without padding.
        rows: [N] int64, flat positions in `input_ids` whose next token is learned.
        targets: [N] int64, these next tokens.
        learned: The number of learned tokens of each row, in order.
        num_tokens: Tokens of all rows without padding, a shared prefix counted once for each row.
        layout: How the rows share prefixes; None for plain rows.
        lengths: Tokens of each row.
    """

    input_ids: Tensor
    rows: Tensor
    targets: Tensor
    learned: tuple[int, ...]
    num_tokens: int
    layout: PrefixLayout | None = None
    lengths: tuple[int, ...] = ()

    @property
    def num_trained_tokens(self) -> int:
        """N, the number of learned tokens."""
        return self.targets.numel()

    @property
    def num_computed_tokens(self) -> int:
        """Number of positions that the model processes."""
        return self.input_ids.numel()


def collate(
    examples: Sequence[TokenisedExample], pad_id: int, device: str, *, prefix_lengths: Sequence[int] = ()
) -> MicroBatch:
    """Build the tensors of a micro-batch from tokenised rows.

    Args:
        examples: The rows, in order.
        pad_id: Id that pads rows to the longest. Padding has no loss, and no real token attends to it.
        device: Device of the tensors.
        prefix_lengths: Prefix length of each group of consecutive rows, in tokens. All groups have the same number of
            rows. A shared prefix contains no learned token and is computed once per group. Empty for plain padded rows.

    Raises:
        ValueError: a row does not begin with the shared prefix of its group.
    """
    ids = [np.frombuffer(e.input_ids, dtype=np.int32) for e in examples]
    learned = [np.flatnonzero(np.frombuffer(e.loss_mask, dtype=np.uint8)) for e in examples]
    layout = None
    if prefix_lengths:
        laid, places, layout = _share(examples, ids, learned, prefix_lengths)
    else:
        longest = max(map(len, ids))
        laid = np.full((len(ids), longest), pad_id, dtype=np.int64)
        for number, row in enumerate(ids):
            laid[number, : len(row)] = row
        # the hidden state of token t - 1 predicts token t: flat index of the predicting token in [rows * longest]
        places = [own - 1 + number * longest for number, own in enumerate(learned)]
    # [N], row after row, in the order of `places`
    targets = np.concatenate([row[own] for row, own in zip(ids, learned, strict=True)]).astype(np.int64)
    return MicroBatch(
        input_ids=_on(device, laid),
        rows=_on(device, np.concatenate(places)),
        targets=_on(device, targets),
        learned=tuple(map(len, learned)),
        num_tokens=sum(map(len, ids)),
        layout=layout,
        lengths=tuple(e.num_tokens for e in examples),
    )


def _on(device: str, array: NDArray[np.int64]) -> Tensor:
    """The array as a tensor on that device; copied to a GPU asynchronously, from pinned memory."""
    tensor = torch.from_numpy(array)
    if can_pin(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _share(
    examples: Sequence[TokenisedExample],
    ids: Sequence[NDArray[np.int32]],
    learned: Sequence[NDArray[np.int64]],
    prefix_lengths: Sequence[int],
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]], PrefixLayout]:
    """One packed row of ids [1, T], for each row the positions that predict its learned tokens, and the layout."""
    num = len(ids) // len(prefix_lengths)
    cuts = [prefix_lengths[number // num] for number in range(len(ids))]
    # cuts: [rows], the prefix length of each row's group
    layout = PrefixLayout(tuple(prefix_lengths), tuple(len(row) - cut for row, cut in zip(ids, cuts, strict=True)))
    for number, (row, cut) in enumerate(zip(ids, cuts, strict=True)):
        if not np.array_equal(row[:cut], ids[number - number % num][:cut]):
            raise ValueError(
                f"example {examples[number].id} does not begin with the {cut} tokens of the first one of its group"
            )
    first, own = layout.starts()
    # [T]: prefixes first, each once, then every suffix, in the order of `PrefixLayout.starts`
    laid = np.concatenate(
        [ids[group * num][:cut] for group, cut in enumerate(prefix_lengths)]
        + [row[cut:] for row, cut in zip(ids, cuts, strict=True)]
    )
    places = []
    for number, cut in enumerate(cuts):
        before = learned[number] - 1  # predicting positions: the last token of a prefix precedes all its suffixes
        places.append(np.where(before < cut, first[number // num] + before, own[number] + before - cut))
    return laid.astype(np.int64)[None], places, layout


class TrainableModel:
    """Base model, method and loss combined: everything that the loop needs of a model.

    Args:
        base: the loaded base model; the method changes it in place.
        method: which of its weights are trained, and how.
        seed: of the random weights that the method adds.
        device: torch's name of the device that the base is on.
        gradient_checkpointing: whether the activations of each layer are recomputed in the backward pass instead of
            kept.
        micro_batch_tokens: most tokens, padding included, of the passes that an objective makes outside the steps.
        shared_prefix: whether an objective may compute common prefixes once in these passes.
        neftune_alpha: scale of the noise on embeddings; 0 adds none.
        with_liger: whether the kernels of Liger Kernel are tried, if installed.
        numba_kernels: whether loops compiled by Numba do elementwise work, where they are proved.
        router_coefficient: factor of the router loss of a mixture of experts; None trains without it.
        task_head: the head that replaces text output; its layer is trained together with the method's parameters.
        forward: the path that was proved for this base; None proves it now.

    Raises:
        RequestError: the base is no causal language model, the method cannot adapt these targets, or the model's
            router loss is none that this version computes.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        method: Method,
        seed: int,
        device: str = "cpu",
        *,
        gradient_checkpointing: bool = False,
        micro_batch_tokens: int = 2048,
        shared_prefix: bool = True,
        neftune_alpha: float = 0.0,
        with_liger: bool = True,
        numba_kernels: bool = False,
        router_coefficient: float | None = None,
        task_head: TaskHead | None = None,
        forward: ForwardPath | None = None,
    ) -> None:
        self.path: ForwardPath = forward or prove_forward(base)
        """The path that computes hidden states and logits."""
        self.base, self.method, self.device = base, method, device
        self.body: nn.Module = language_model(base)
        self.own_attention = "eager" if self.path.attention == "eager" else attention_of(self.body)
        use_attention(self.body, attention.install() if self.path.attention == "fast" else self.own_attention)
        base.config.use_cache = False
        self.numba_kernels = method.numba_kernels = numba_kernels
        self.module: nn.Module = method.prepare(base, seed)
        for name in outside_modules(base):  # text bypasses vision towers, so only weight decay would change them
            base.get_submodule(name).requires_grad_(False)
        self.install_kernels = partial(
            kernels.install,
            with_liger=with_liger,
            with_numba=numba_kernels,
            recomputes_trained=not gradient_checkpointing,
        )
        self.replaced: Counter[str] = self.install_kernels(self.module.eval())
        self.product_loss: CrossEntropySum = cross_entropy_sum
        if self.path.logits == "product":
            self.product_loss = kernels.linear_cross_entropy(self.head, with_liger=with_liger, with_numba=numba_kernels)
        self.task_head = task_head
        if task_head is not None and task_head.num_outputs:
            # Added after the method, which would freeze it, and after the kernels, which would replace it. It is part
            # of the module, so that optimizer and checkpoints treat it like any other weight.
            setattr(base, _HEAD, TaskHeadLayer(task_head.width, task_head.num_outputs).to(device))
        self.own_head = OwnHead(causal_model(base), self.body)
        self.router_loss: RouterLoss | None = None
        """Computes the router loss, if it is trained on."""
        if router_coefficient is not None:
            from luthier.ml.training.losses.router_loss import RouterLoss

            self.router_loss = RouterLoss(causal_model(base), self.body, router_coefficient)
        if gradient_checkpointing:
            _recompute_layers(base)
        self.noise = EmbeddingNoise(base.get_input_embeddings(), neftune_alpha)
        self.long_rows = LongRows(self.body, rope_border(text_config(base.config)))
        self.pad_id = padding_id(base, getattr(text_config(base.config), "pad_token_id", None))
        self.micro_batch_tokens, self._shared_prefix = micro_batch_tokens, shared_prefix
        self.root: nn.Module | None = None
        self.uses_flex_attention = False
        """Whether packed rows use FlexAttention: set once equivalence.why_not_packed allows it."""
        self.windows: tuple[int | None, ...] = ()
        """The attention windows of its compiled layers, whose masks are built before the layers are called."""

    @classmethod
    def load(cls, plan: Plan, device: str | None = None, *, base_dropout: bool = True) -> TrainableModel:
        """The model of a plan, from its local folder.

        Args:
            plan: names folder, precision, method and objective.
            device: overrides the plan's device, where there are several.
            base_dropout: whether the dropout that the base's config sets is drawn; False for objectives to which it
                is noise (`ObjectiveRules.dropout_is_noise`).

        Raises:
            NotFoundError: the folder or the method does not exist.
            ModelSourceError: the folder cannot be loaded, or a weight is missing, superfluous or of the wrong shape.
            RequestError: the base is no causal language model, the method cannot adapt these targets, or the model's
                router loss is none that this version computes.
        """
        device = device or plan.training.device
        base = load_model(
            plan.base_model.path,
            dtype=plan.training.precision,
            attention="sdpa",
            device=device,
            quantisation=plan.method.quantisation,
            writes=plan.objective.task_head is None,
        )
        forward = known_forward(base, Path(plan.base_model.path))
        if not base_dropout:
            switch_off_dropout(base)
        made = cls(
            base,
            load_method(plan.method),
            plan.training.seed,
            device,
            gradient_checkpointing=plan.training.gradient_checkpointing,
            micro_batch_tokens=plan.training.micro_batch_tokens,
            shared_prefix=plan.training.shared_prefix,
            neftune_alpha=plan.training.neftune_alpha,
            router_coefficient=plan.objective.router_aux_loss,
            task_head=plan.objective.task_head,
            numba_kernels=plan.training.numba_kernels,
            forward=forward,
        )
        head, layer = made.task_head, made.head_layer
        if layer is not None and head is not None and head.pair_format != "turns":
            start_from_own(layer, plan.base_model.path)
        return made

    @property
    def vocabulary_size(self) -> int:
        """The size of the vocabulary: number of token embeddings."""
        return int(self.base.get_input_embeddings().weight.shape[0])

    @property
    def head(self) -> Tensor:
        """The output head, which maps hidden states to logits: [vocabulary, width]."""
        matrix: Tensor = self.base.get_output_embeddings().weight
        return matrix

    @property
    def head_layer(self) -> TaskHeadLayer | None:
        """The layer of the task head; None without a task head and for embeddings."""
        layer: TaskHeadLayer | None = getattr(self.base, _HEAD, None)
        return layer

    @contextmanager
    def without_head_layer(self) -> Iterator[None]:
        """The module without the layer of the task head, so that it is not written to files of other libraries."""
        layer = self.head_layer
        if layer is None:
            yield
            return
        delattr(self.base, _HEAD)
        try:
            yield
        finally:
            setattr(self.base, _HEAD, layer)

    def head_outputs(self, batch: MicroBatch) -> Tensor:
        """The outputs [N, outputs] of the task head in float32, from the state before each learned token."""
        assert self.head_layer is not None
        outputs: Tensor = self.head_layer(self.states(batch))
        return outputs

    def within(self, compute: Callable[[], Losses]) -> Losses:
        """Call `compute` with unsharded weights: weights sharded over devices are gathered first."""
        if self.root is None:
            return compute()

        def parts() -> tuple[Tensor, dict[str, Tensor]]:  # a form that torch can trace
            losses = compute()
            return losses.total, dict(losses.measures)

        return Losses(*self.root(parts))

    def loss_sum(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats over the learned tokens (scalar), and the number of correct predictions."""
        return self.logit_rows(batch).cross_entropy_sum(batch.targets)

    def smoothed_loss_sum(self, batch: MicroBatch, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        """The sum with label smoothing, the plain sum, and the number of correct predictions."""
        return self.logit_rows(batch).smoothed_cross_entropy_sum(batch.targets, smoothing)

    def log_probabilities(self, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
        """The log-probability of each learned token, [N], in nats, with logits divided by `temperature`."""
        return self.logit_rows(batch).token_log_probabilities(batch.targets, temperature)

    def logit_rows(self, batch: MicroBatch) -> LogitRows:
        """The logits before each learned token, by the verified path."""
        if self.path.logits == "model":
            # [rows, longest, vocabulary] -> [N, vocabulary]: this path materialises all logits together
            return LogitRows(self._own_logits(batch).flatten(0, 1)[batch.rows], form=_as_it_is)
        states = self.states(batch)
        if self.path.logits == "head":
            return LogitRows(states, form=self.own_head)
        states = states.to(self.head.dtype)  # state spaces return fp32 regardless of the weights' precision
        if self.path.logit_scale != 1.0:
            states = states * self.path.logit_scale  # scaling N x width states is cheaper than N x vocabulary logits
        rows, matrix = self.method.logit_parts(states, self.head)
        return LogitRows(
            rows,
            matrix,
            product_loss=self.product_loss,
            cap=self.path.logit_cap,
            numba_kernels=self.numba_kernels,
        )

    def _own_logits(self, batch: MicroBatch) -> Tensor:
        """Logits [*input_ids.shape, vocabulary] by the full transformers forward of the prepared model."""
        self.noise.expect(batch.input_ids, batch.lengths, batch.layout)
        also = text_inputs(causal_model(self.base), batch.input_ids)
        with self.long_rows.of(batch):
            logits: Tensor = self.module(input_ids=batch.input_ids, **also).logits
        return logits[:, -batch.input_ids.shape[1] :]  # without the leading positions of a trained prompt

    def states(self, batch: MicroBatch) -> Tensor:
        """The last hidden states at the positions that predict the learned tokens: [N, width]."""
        return self.hidden(batch).flatten(0, 1)[batch.rows]  # of [rows, longest, width]

    def hidden(self, batch: MicroBatch) -> Tensor:
        """The last hidden state of each position: [*input_ids.shape, width]."""
        with self.long_rows.of(batch):
            return self._hidden(batch)

    def _hidden(self, batch: MicroBatch) -> Tensor:
        self.noise.expect(batch.input_ids, batch.lengths, batch.layout)
        device = batch.input_ids.device
        # No padding mask: rows are padded on the right, and causal attention never looks there.
        if batch.layout is None:
            positions = torch.arange(batch.input_ids.shape[1], device=device)[None]  # [1, longest]
            if self.path.positions == "by_row":
                positions = positions.expand(len(batch.input_ids), -1)
            return self.method.hidden(self.body, batch.input_ids, positions)
        positions = batch.layout.positions(device)  # [1, T]
        if not self.uses_flex_attention:
            return self.method.hidden(self.body, batch.input_ids, positions, batch.layout)
        row = packed_row(batch.layout, device)
        for window in self.windows:
            row.mask(window)
        return self.method.hidden(self.body, batch.input_ids, positions, row)

    @torch.no_grad()
    def can_share_prefix(self) -> bool:
        """Whether this model computes the same with shared prefixes as row by row, tested on a few random tokens.

        False for layers that mix positions other than by attention (convolutions, state spaces), for attention that
        does not receive the model's arguments, and for methods that prepend something to each row.
        """
        if not self.method.can_share_prefix or self.path.attention != "fast":
            return False
        ids = torch.randint(self.vocabulary_size, (4, 9), generator=torch.Generator().manual_seed(0))
        ids[1, :5], ids[3, :3] = ids[0, :5], ids[2, :3]
        lengths = (9, 8, 7, 9)
        # all tokens except the first count; those of a prefix count once per row
        masks = [bytes([0, *[1] * (n - 1)]) for n in lengths]
        rows = [
            TokenisedExample(str(i), array("i", row[:n]), mask)
            for i, (row, n, mask) in enumerate(zip(ids.tolist(), lengths, masks, strict=True))
        ]
        was_training = self.module.training
        self.module.eval()
        try:
            plain, shared = (
                self.hidden(batch).flatten(0, 1)[batch.rows].float()
                for batch in (collate(rows, self.pad_id, self.device, prefix_lengths=cuts) for cuts in ((), (5, 3)))
            )
        except (RuntimeError, ValueError, TypeError, IndexError):  # a body that takes no layout
            return False
        finally:
            self.module.train(was_training)
        tolerance = 5e-2 if self.base.dtype == torch.bfloat16 else 1e-4
        return bool((shared - plain).abs().max() <= tolerance * plain.abs().max().clamp_min(1e-30))

    @cached_property
    def shares_prefix(self) -> bool:
        """Whether an objective may share prefixes in its own passes: the plan allows it and the model supports it."""
        return self._shared_prefix and self.can_share_prefix()

    @property
    def context_length_tokens(self) -> int:
        """The longest row that the base supports, in positions."""
        return context_tokens(self.base.config)

    @contextmanager
    def as_decoder(self) -> Iterator[PreTrainedModel]:
        """The base model with its trained parameters in inference form: no dropout, and attention with a KV cache.

        The weights are the same tensors, not a copy, and the training state is restored afterwards. A trained prompt is
        not included (`Method.virtual_prompt`).
        """
        was_training = self.module.training
        self.module.eval()
        try:
            with attention_by(self.body, self.own_attention):
                yield self.base
        finally:
            self.module.train(was_training)

    @property
    def num_parameters(self) -> int:
        """All parameters, adapter included, tied ones once."""
        return num_parameters(self.module)

    @property
    def num_trainable_parameters(self) -> int:
        """Parameters that the optimizer changes."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _recompute_layers(base: PreTrainedModel) -> None:
    """Save only the input of each layer and recompute the rest in the backward pass, with the same random numbers.

    Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, section 4.1.
    """
    if not base.supports_gradient_checkpointing:
        raise RequestError(
            f"training.gradient_checkpointing with {type(base).__name__}, whose layers cannot be computed again",
            expected="a model that transformers can checkpoint",
            do="set training.gradient_checkpointing: false",
        )
    # older transformers know only the second name, newer versions deprecate it
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
