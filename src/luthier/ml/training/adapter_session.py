"""Training that a client drives call by call: gradients, optimizer steps, saving and loading, on adapters that share
one frozen base in memory.

`SharedBase` holds the weights of the base once. Each adapter has its own modules around the same tensors, so that
clients do not wait for one another's weights to be exchanged. What a call computes is computed by the parts of the
training loop: the model, its attention and logits, the fp32 masters and their update rule, and checkpoints.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.core.errors import DivergedError, RequestError
from luthier.core.events import StepDone
from luthier.core.plan import Plan
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.models.loading import load_model
from luthier.ml.training.checkpoint import CheckpointStore, LoopState, save_model
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.forward_proof import prove_forward
from luthier.ml.training.losses.logit_rows import LogitRows
from luthier.ml.training.losses.token_losses import LOSSES, Array, Datum, checked, find_loss
from luthier.ml.training.methods.base_dropout import switch_off_dropout
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import MicroBatch, TrainableModel
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers.protocol import load_rule
from luthier.ml.training.optimizers.update_rules import AdamW

STATE: Final = "state"
"""The folder of weights and optimizer in that of a saved state, beside the adapter."""
_MAX_ROWS: Final = 64
_LEAST_EPSILON: Final = 1e-30
"""Of the optimizer: less is 0 in float32."""


class SharedBase:
    """A base model whose weights are in memory once, for any number of adapters.

    Args:
        path: its folder.
        precision: of the weights.
        device: such as "cpu" or "cuda".
    """

    def __init__(self, path: str, precision: str, device: str) -> None:
        self.path, self.precision, self.device = path, precision, device
        self._base = load_model(path, dtype=precision, attention="sdpa", device=device)  # type: ignore[arg-type]
        self._forward = prove_forward(self._base)
        # Losses of clients compare with log-probabilities of answers that were sampled without dropout.
        switch_off_dropout(self._base)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for p in self._base.parameters())

    def modules(self) -> PreTrainedModel:
        """The model as its own modules around the same weights: what is added to one is in no other."""
        shared = (*self._base.parameters(), *self._base.buffers())
        # A memo that maps each tensor to itself: deepcopy then copies modules and config, and no weight.
        made: PreTrainedModel = copy.deepcopy(self._base, {id(tensor): tensor for tensor in shared})
        return made

    def trainable(self, plan: Plan) -> TrainableModel:
        """The model with a new adapter of a plan."""
        return TrainableModel(
            self.modules(),
            load_method(plan.method),
            plan.training.seed,
            self.device,
            micro_batch_tokens=plan.training.micro_batch_tokens,
            forward=self._forward,
        )


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """The settings of one optimizer step; a client may change them at each one.

    Attributes:
        learning_rate: step size; 0 or more.
        beta1, beta2: decay of the first and second moment, in [0, 1).
        epsilon: added to the root of the second moment; more than 0.
        weight_decay: share of a weight that a step takes away, times the learning rate.
        clip_norm: largest norm of the gradients; 0 for no limit.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-12
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name, least, below in (
            ("learning_rate", 0.0, math.inf),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            # With 0, a weight whose gradients were all 0, as that of A in the first step, would become 0 / 0.
            ("epsilon", _LEAST_EPSILON, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("clip_norm", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not least <= value < below:  # also where it is NaN
                raise RequestError(
                    f"{name} of the optimizer step is {value}",
                    expected=f"{least:g} or more and less than {below:g}",
                    do="correct the parameters of optim_step",
                )


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one forward pass found.

    Attributes:
        log_probabilities: float32 in the shape of the targets, for each datum.
        loss: the summed loss.
        num_tokens: tokens that were computed.
    """

    log_probabilities: tuple[Array, ...]
    loss: float
    num_tokens: int


@dataclass(slots=True)
class _Since:
    """Sums since the last optimizer step."""

    loss: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    seconds: float = 0.0
    has_gradient: bool = False


class AdapterSession:
    """One adapter with its optimizer.

    Args:
        base: what it is trained on.
        plan: rank, alpha, targets, seed and precision.
    """

    def __init__(self, base: SharedBase, plan: Plan) -> None:
        self.plan, self.model = plan, base.trainable(plan)
        self._new_optimizer()
        self.state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
        self.events: list[StepDone] = []
        """The steps since the last save."""
        self._since = _Since()

    def _new_optimizer(self) -> None:
        self.optimizer = MasterOptimizer(self.model.module, self.plan.training, self.model.method.rate_factor)

    def run(
        self, data: Sequence[Datum], loss_name: str, settings: Mapping[str, float | str], *, backward: bool
    ) -> PassResult:
        """Log-probabilities and loss of some data, and with `backward` their gradients, which add up until a step.

        Args:
            data: tokens, targets and inputs of the loss, a row each.
            loss_name: name of a loss.
            settings: of that loss, by name.
            backward: whether gradients are computed, too.

        Raises:
            RequestError: the data, the loss or its settings are wrong.

        After any error, as where memory runs out in the middle, the gradients are those before the call.
        """
        parts = self.parts(data, loss_name, settings, backward=backward)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                done: PassResult = end.value
                return done

    def parts(
        self, data: Sequence[Datum], loss_name: str, settings: Mapping[str, float | str], *, backward: bool
    ) -> Generator[int, None, PassResult]:
        """The same as `run`, with a place between two micro-batches where other adapters may be computed.

        Yields the tokens of the micro-batch before it. Nothing else may be asked of this adapter before it has ended.

        Args:
            data: as for `run`.
            loss_name: name of a loss.
            settings: of that loss, by name.
            backward: whether gradients are computed, too.

        Raises:
            RequestError: there are no data, the loss does not exist, or a datum or setting does not fit it.
        """
        start = time.perf_counter()
        loss, found = find_loss(loss_name, settings)
        context, vocabulary = self.model.context_length_tokens, self.model.vocabulary_size
        data = [checked(datum, number, loss, vocabulary, context) for number, datum in enumerate(data)]
        if not data:
            raise RequestError("a request without data", expected="at least one datum", do="leave the call out")
        outputs: dict[int, Array] = {}
        total, seconds, num_tokens = 0.0, 0.0, 0
        lengths = [len(datum.tokens) for datum in data]
        # K targets for a token take the memory of K rows.
        sizes = [max(len(datum.tokens), datum.targets.size) for datum in data]
        before = [one.clone() for one in self.optimizer.gradients] if backward and self._since.has_gradient else None
        try:
            for places in length_batches(sizes, max_tokens=self.model.micro_batch_tokens, max_rows=_MAX_ROWS):
                if outputs:
                    seconds += time.perf_counter() - start
                    yield num_tokens
                    start = time.perf_counter()  # what others have computed meanwhile is not counted
                self.model.module.train(backward)
                summed, rows = self._micro_batch([data[i] for i in places], loss_name, found, backward=backward)
                total += summed
                outputs.update(zip(places, rows, strict=True))
                num_tokens = sum(lengths[i] for i in places)
        except BaseException:
            if backward:
                self._restore_gradients(before)
            raise
        if backward:
            since = self._since
            since.loss += total
            since.num_tokens += sum(lengths)
            since.num_trained_tokens += sum(int(np.count_nonzero(datum.flat(loss.factor))) for datum in data)
            since.num_examples += len(data)
            since.seconds += seconds + time.perf_counter() - start
            since.has_gradient = True
        return PassResult(tuple(outputs[i] for i in range(len(data))), total, sum(lengths))

    def _micro_batch(
        self, data: Sequence[Datum], loss_name: str, settings: Mapping[str, float], *, backward: bool
    ) -> tuple[float, list[Array]]:
        """The summed loss of a micro-batch and the log-probabilities of each datum; gradients are added."""
        model, loss = self.model, LOSSES[loss_name]
        # [N]: whether a target takes part in the loss; the others need logits, but no gradient
        is_active = np.concatenate([datum.flat(loss.factor) != 0 for datum in data])
        # [N], the active ones first: two contiguous slices of the rows, with a graph for the first alone.
        order = np.concatenate([np.flatnonzero(is_active), np.flatnonzero(~is_active)])
        num_active = int(is_active.sum())
        given = {name: self._on(np.concatenate([d.flat(name) for d in data])[order]) for name in loss.needed}
        batch = laid_out(data, order, model)
        with torch.set_grad_enabled(backward and num_active > 0):
            # One forward pass for both parts; [N, width].
            rows = model.logit_rows(batch)
            active = _log_probabilities(rows, batch.targets, slice(None, num_active))
        with torch.no_grad():
            others = _log_probabilities(rows, batch.targets, slice(num_active, None))
        # The weights of a whole micro-batch may be 0: nothing depends on the adapter then, and backward() would raise.
        summed = torch.zeros((), device=active.device)
        if num_active:
            with torch.set_grad_enabled(backward):
                summed = loss.compute(active, {n: value[:num_active] for n, value in given.items()}, settings)
            if backward:
                summed.backward()
                self.optimizer.collect()
        found = np.empty(len(order), dtype=np.float32)
        # Back from the computed order to the order of the data.
        found[order] = torch.cat([active.detach().float(), others.float()]).cpu().numpy()
        return float(summed.detach()), _split(found, data)

    def _on(self, values: Array) -> Tensor:
        return torch.from_numpy(values.astype(np.float32, copy=False)).to(self.model.device)

    def step(self, settings: AdamSettings) -> StepDone:
        """One optimizer step with the gradients since the last one.

        Raises:
            RequestError: there are no gradients.
            DivergedError: loss or gradients are not finite; the weights are unchanged and the gradients are dropped.
        """
        start, since = time.perf_counter(), self._since
        if not since.has_gradient:
            raise RequestError(
                "optim_step without gradients",
                expected="a forward_backward since the last optim_step",
                do="call forward_backward first",
            )
        self._since = _Since()
        # The norm of the fp32 sums: NaN or infinity in any micro-batch reaches it.
        norm = self.optimizer.gradient_norm()
        if not (math.isfinite(norm) and math.isfinite(since.loss)):
            self._drop_gradients()
            raise DivergedError(
                f"step {self.state.step + 1}: loss {since.loss}, gradient norm {norm}",
                expected="finite numbers",
                do=f"lower the learning rate (now {settings.learning_rate:g}) or correct weights and advantages; the "
                "weights are those of the step before",
            )
        rule = self.optimizer.rule
        assert isinstance(rule, AdamW)
        rule.adjust(settings.beta1, settings.beta2, settings.epsilon, settings.weight_decay)
        self.optimizer.peak_rate = settings.learning_rate
        # The Tinker API says 0 for no limit; the optimizer clips to whatever norm it is given.
        self.optimizer.clip_norm = settings.clip_norm or math.inf
        self.optimizer.step(norm, 1.0)
        done = StepDone(
            step=self.state.step + 1,
            epoch=0.0,
            loss=since.loss,
            learning_rate=settings.learning_rate,
            gradient_norm=norm,
            num_tokens=since.num_tokens,
            num_trained_tokens=since.num_trained_tokens,
            seconds=since.seconds + time.perf_counter() - start,
        )
        self.state = self.state.model_copy(
            update={
                "step": done.step,
                "loss_sum": self.state.loss_sum + since.loss,
                "loss_weight": self.state.loss_weight + 1,
                "num_tokens": self.state.num_tokens + since.num_tokens,
                "num_trained_tokens": self.state.num_trained_tokens + since.num_trained_tokens,
                "num_examples": self.state.num_examples + since.num_examples,
                "seconds": self.state.seconds + done.seconds,
            }
        )
        self.events.append(done)
        return done

    def _restore_gradients(self, before: Sequence[Tensor] | None) -> None:
        """Undo part of a pass. before: the sums before it; None where there were none."""
        self.optimizer.drop_uncollected()
        if before is None:
            torch._foreach_zero_(self.optimizer.gradients)
        else:
            torch._foreach_copy_(self.optimizer.gradients, list(before))

    def _drop_gradients(self) -> None:
        self._since = _Since()
        # In place: these very tensors are what the update rule reads as gradients of its masters.
        torch._foreach_zero_(self.optimizer.gradients)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the fp32 weights by parameter name."""
        return {name: weight.clone() for name, weight in self.optimizer.weight_state().items()}

    def save(self, folder: Path, *, with_state: bool) -> str:
        """Write the adapter as PEFT reads it and, with `with_state`, all that training needs to continue.

        Gradients that no step has used are not saved.

        Args:
            folder: an existing folder; the adapter is in `adapter`, the rest in `state`.
            with_state: whether weights and optimizer are written, too.

        Returns:
            The digest of the adapter's weights.
        """
        if with_state:
            optimizer = self.optimizer
            CheckpointStore(folder / STATE, num_kept=1).save(
                self.state, optimizer.weight_state(), optimizer.moment_state()
            )
        _, digest = save_model(self.model, Path(self.plan.base_model.path), folder)
        return digest

    def load(self, folder: Path, *, with_optimizer: bool) -> None:
        """Go on from a saved state; gradients that no step has used are dropped.

        Args:
            folder: as `save` has it.
            with_optimizer: whether moments and step count are restored; if not, the optimizer begins at zero.

        Raises:
            CheckpointError: the files are damaged.
            RequestError: the state is that of an adapter of another shape, or there is none.
        """
        found, _ = CheckpointStore(folder / STATE, num_kept=1).latest()
        own = {name: weight.shape for name, weight in self.optimizer.weight_state().items()}
        if found is None or {name: weight.shape for name, weight in found.weights.items()} != own:
            raise RequestError(
                "the saved state belongs to an adapter of another shape" if found else "there is no saved state",
                expected="a state of the same base model, rank and matrices",
                do="make a client from the state itself: create_training_client_from_state",
            )
        self._drop_gradients()
        step = found.state.step if with_optimizer else 0
        if step:
            self.optimizer.load(found.weights, found.moments, step)
        else:  # also of a state before the first step: it has no moments, and those that are here belong to later ones
            self.optimizer.load_weights(found.weights)
            trained = self.optimizer.rule.trained  # type: ignore[attr-defined]
            self.optimizer.rule = load_rule(trained, self.plan.training.optimizer)
        self.state = self.state.model_copy(update={"step": step})
        self.events.clear()


def laid_out(data: Sequence[Datum], order: Array, model: TrainableModel) -> MicroBatch:
    """The tensors of a micro-batch: rows padded to the longest, and the targets in a given order.

    Args:
        data: the sequences.
        order: [N], a permutation of the targets of all data, one datum after the other.
        model: pads and computes them.
    """
    longest = max(len(datum.tokens) for datum in data)
    # [rows, longest], padded on the right: under a causal mask no real token attends to the padding.
    ids = np.full((len(data), longest), model.pad_id, dtype=np.int64)
    rows = []
    for number, datum in enumerate(data):
        ids[number, : len(datum.tokens)] = datum.tokens
        # The target at a position is predicted from the state there, K times for K targets.
        rows.append(np.repeat(number * longest + np.arange(len(datum.tokens)), datum.targets.shape[1]))
    targets = np.concatenate([datum.targets.reshape(-1) for datum in data]).astype(np.int64)
    return MicroBatch(
        input_ids=torch.from_numpy(ids).to(model.device),
        rows=torch.from_numpy(np.concatenate(rows)[order]).to(model.device),
        targets=torch.from_numpy(targets[order]).to(model.device),
        learned=(len(order),),
        num_tokens=sum(len(datum.tokens) for datum in data),
        lengths=tuple(len(datum.tokens) for datum in data),
    )


def _log_probabilities(rows: LogitRows, targets: Tensor, part: slice) -> Tensor:
    """The log-probabilities of some of the targets, [n]."""
    if not len(wanted := targets[part]):
        return rows.rows.new_zeros(0, dtype=torch.float32)
    return replace(rows, rows=rows.rows[part]).token_log_probabilities(wanted)


def _split(found: Array, data: Sequence[Datum]) -> list[Array]:
    """One array for each datum, in the shape of its targets."""
    sizes = [datum.targets.size for datum in data]
    # The last sum is the length of all, where nothing is left to cut.
    parts = np.split(found, np.cumsum(sizes)[:-1])
    return [part.reshape(datum.inputs["target_tokens"].shape) for part, datum in zip(parts, data, strict=True)]
