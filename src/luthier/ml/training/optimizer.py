"""Optimization of fp32 master weights, and weight averaging over the steps.

In bf16 a weight of 1 cannot change by less than 1/256: updates at a small learning rate would vanish. So the optimizer
works on fp32 copies, and the model's bf16 weights are those copies, rounded. Gradients of several micro-batches are
also accumulated in fp32. The update rules are in `optimizers/`. The learning rate warms up linearly, then follows a
cosine or a line, or stays constant.

Weights that are fp32 already need neither copy: the masters are the weights themselves, and autograd accumulates the
gradients of all micro-batches in one tensor. Full fine-tuning in fp32 then holds 16 bytes a parameter instead of 24.

The average is what is validated and saved; training continues from the weights themselves.

- `ema`: m = k m + (1 - k) w after each step. It starts as the weights after the first step, and k is at most (1 + step)
  / (10 + step), so that the start decays quickly.
- `uniform`: the arithmetic mean of the weights at regular steps, from a given step on.

An update rule may keep an average of its own (`optimizers.protocol.AveragingRule`): it is used in the same way.

The matrices of a low-rank adapter are averaged separately; their product is close, but not equal, to the average of the
products.

Sources: Micikevicius et al., 2018, "Mixed Precision Training", arXiv:1710.03740, section 3.1. Polyak & Juditsky,
1992, "Acceleration of Stochastic Approximation by Averaging". Izmailov et al., 2018, "Averaging Weights Leads to
Wider Optima and Better Generalization", arXiv:1803.05407, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from luthier.core.plan import AveragePlan, TrainingPlan
from luthier.core.recipe import ScheduleName
from luthier.ml.training.distributed import ALONE, World, is_sharded
from luthier.ml.training.optimizers.protocol import AveragingRule, Place, Trained, load_rule
from luthier.ml.training.sharding import shares, whole

AfterUpdate = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]


def learning_rate_factor(
    step: int, *, num_steps: int, num_warmup_steps: int, schedule: ScheduleName, min_lr_ratio: float = 0.0
) -> float:
    """Factor on the peak learning rate at optimizer step `step` (from 0); in 0..1.

    Warm-up rises from 1/n at step 0 to 1 at step n-1, so that no step has a rate of zero. After it, cosine is
    half a period (Loshchilov & Hutter, 2017, arXiv:1608.03983, without restarts) and linear a straight line; both would
    reach `min_lr_ratio` at step `num_steps`, one after the last.

    Args:
        step: steps that are done, from 0.
        num_steps: of the whole run.
        num_warmup_steps: of these, steps in which the rate rises.
        schedule: how it falls after the warm-up.
        min_lr_ratio: where it falls to; 0 is zero.
    """
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    # max: of a run that is all warm-up nothing is left to divide by.
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    if schedule == "constant":
        return 1.0
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
    return min_lr_ratio + (1.0 - min_lr_ratio) * left


class MasterOptimizer:
    """The trainable parameters of a module and the update rule that the plan names.

    Weight decay acts on matrices (two or more dimensions) only: biases, norm weights and the factors of IA3 do not
    decay. A weight that no backward pass has reached yet does not change at all (`find_unreached`): an expert without
    tokens, or the indexer of a sparse attention, whose choice of keys has no gradient.

    Attributes:
        masters: fp32 (or wider) copies of the weights; the weights themselves where these are as wide.
        gradients: sums over the micro-batches of a step, one for each master. Where the weight is as wide, its `.grad`
            is this very tensor.

    Args:
        module: its parameters with `requires_grad` are trained, in the order of the module.
        plan: learning rate, weight decay, clipping and update rule.
        rate_factor: learning rate factor by parameter name.
        decays: whether weight decay may act on a matrix, by parameter name.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: TrainingPlan,
        rate_factor: Callable[[str], float] = lambda _: 1.0,
        decays: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.masters = [_master_of(w).requires_grad_() for w in self.weights]
        self.gradients = [torch.zeros_like(m) for m in self.masters]
        for weight, master, gradient in zip(self.weights, self.masters, self.gradients, strict=True):
            master.grad = gradient  # update rules read it there; the storage of the sums is reused in every step
            # A backward pass adds to a gradient that is there, in place: a wide one is summed up without a second copy.
            if _is_wide(weight):
                weight.grad = gradient
        kind_of = _parameter_kinds(module)
        trained = [
            Trained(
                name,
                master,
                rate_factor(name),
                plan.weight_decay if master.dim() >= 2 and decays(name) else 0.0,
                kind_of(weight),
            )
            for name, master, weight in zip(self.names, self.masters, self.weights, strict=True)
        ]
        self.rule = load_rule(trained, plan.optimizer)
        # Weights that no backward pass has reached, by position, with torch's count of the changes of their sums; and
        # those among them that the next step leaves out.
        self._unreached = {place: gradient._version for place, gradient in enumerate(self.gradients)}
        self._left_out: tuple[int, ...] = ()
        self.peak_rate, self.clip_norm = plan.learning_rate, plan.clip_gradient_norm or math.inf

    def collect(self) -> None:
        """Accumulate the gradients of one micro-batch in fp32 and free them."""
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            if weight.grad is not None and weight.grad is not gradient:
                gradient.add_(weight.grad)  # bf16 into fp32
                weight.grad = None

    def drop_uncollected(self) -> None:
        """Free the gradients of a backward pass that was cut off; of wide weights they are part of the sums already."""
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            if weight.grad is not gradient:
                weight.grad = None

    def find_unreached(self, world: World = ALONE) -> None:
        """Leave out of the next step the weights that no backward pass of the run has reached yet, on any rank.

        They keep their bytes: weight decay alone would move them. torch's optimizers skip a parameter without a
        gradient, too. A gradient of zeros is one.

        Args:
            world: all ranks; to be called before their gradients are summed, which writes to the sums of all weights.
        """
        if not self._unreached:
            return
        reached = [float(self.gradients[place]._version != count) for place, count in self._unreached.items()]
        if world.size > 1:  # all ranks come here: they have removed the same weights before
            together = torch.tensor(reached, device=self.gradients[0].device)
            world.sum_gradients([together])
            reached = together.tolist()
        left = [place for place, is_reached in zip(self._unreached, reached, strict=True) if not is_reached]
        self._unreached = {place: self._unreached[place] for place in left}
        self._left_out = tuple(left)

    def unreached(self) -> dict[str, int]:
        """Names and sizes of the weights that no backward pass of the run has reached."""
        return {self.names[place]: self.weights[place].numel() for place in self._unreached}

    def release_gradients(self) -> None:
        """Leave no gradient on the weights, which may outlive the optimizer and would keep its sums in memory."""
        for weight in self.weights:
            weight.grad = None

    def gradient_norm(self) -> float:
        """Euclidean norm over all summed gradients, before clipping."""
        # The norm of the norms: one kernel for the list, and one number copied from the device.
        return float(whole(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))))

    def step(self, norm: float, rate_factor: float, after: AfterUpdate | None = None) -> float:
        """Clip to the plan's norm, update the masters, round them into the model; returns the learning rate used.

        Clipping scales all gradients by clip/norm where norm > clip (Pascanu et al., 2013, arXiv:1211.5063); a
        plan with a norm of 0 clips none.

        Args:
            norm: of all summed gradients, before clipping.
            rate_factor: of this step on the peak learning rate, in 0..1.
            after: called after the update with masters and clipped gradients by name; may change the masters.
        """
        if norm > self.clip_norm:
            torch._foreach_mul_(self.gradients, self.clip_norm / norm)
        rate = self.peak_rate * rate_factor
        for place in self._left_out:
            self.masters[place].grad = None
        self.rule.update(rate)
        for place in self._left_out:
            self.masters[place].grad = self.gradients[place]
        if after is not None:
            with torch.no_grad():
                after(self.weight_state(), self.gradient_state())
        # Zeroed in place: `master.grad` refers to these tensors.
        torch._foreach_zero_(self.gradients)
        self._unreached = {place: self.gradients[place]._version for place in self._unreached}
        self.round_into_model()
        return rate

    @torch.no_grad()
    def round_into_model(self) -> None:
        """Copy the masters into the model's weights, rounding to their precision."""
        pairs = zip(shares(self.weights), shares(self.masters), strict=True)
        # By address and not by type: workers of micro-batches move the weights, and not the masters, to other memory.
        apart = [(weight, master) for weight, master in pairs if weight.data_ptr() != master.data_ptr()]
        for weight in self.weights:
            # Updated in place through another tensor, which not every fused rule counts: what was computed of a weight
            # is kept by this counter (the norms of DoRA).
            torch.autograd.graph.increment_version(weight)
        if apart:
            torch._foreach_copy_([weight for weight, _ in apart], [master for _, master in apart])

    def weight_state(self) -> dict[str, Tensor]:
        """The fp32 weights by parameter name."""
        return dict(zip(self.names, (m.detach() for m in self.masters), strict=True))

    def gradient_state(self) -> dict[str, Tensor]:
        """The summed gradients by parameter name, until the step consumes them."""
        return dict(zip(self.names, self.gradients, strict=True))

    def moment_state(self) -> dict[str, Tensor]:
        """The state of the rule, by part and parameter name; empty before the first step."""
        return self.rule.state()

    @property
    def averages_weights(self) -> bool:
        """Whether the rule keeps an average of the weights, which is what is validated and saved."""
        return isinstance(self.rule, AveragingRule)

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Name and average of each weight that the rule averages, made one by one; of most rules none."""
        return self.rule.averages() if isinstance(self.rule, AveragingRule) else iter(())

    @torch.no_grad()
    def load_averages(self) -> None:
        """Set masters and model to the averages of the rule, at the end of a run: no step can follow."""
        masters = dict(zip(self.names, self.masters, strict=True))
        for name, average in self.averages():
            masters[name].copy_(average)
        self.round_into_model()

    def own_memory(self) -> list[Tensor]:
        """All its state besides the model's weights."""
        return [*(m.detach() for m in self.masters), *self.gradients, *self.moment_state().values()]

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore the state of a checkpoint. Names and shapes must match this model.

        Args:
            weights: fp32, by parameter name.
            moments: the state of the update rule, by part and parameter name.
            num_updates: that the moments have seen; 0 leaves the rule at its start.
        """
        self.load_weights(weights)
        if num_updates:
            self.rule.load(moments, num_updates)
            # A rule has no state of a weight before its first gradient.
            known = {key.partition(".")[2] for key in moments}
            places = [place for place, name in enumerate(self.names) if name not in known]
            self._unreached = {place: self.gradients[place]._version for place in places}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set masters and model to given weights; the moments are unchanged."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(weights[name])
        self.round_into_model()


def _is_wide(weight: Tensor) -> bool:
    """Whether a weight is updated in place: it is as precise as a master, and this process holds the whole of it."""
    return weight.dtype == torch.promote_types(weight.dtype, torch.float32) and not is_sharded(weight)


def _master_of(weight: Tensor) -> Tensor:
    """The weight itself where it is wide, else a copy in fp32."""
    own = weight.detach()
    return own if _is_wide(weight) else own.clone().to(torch.promote_types(weight.dtype, torch.float32))


def _parameter_kinds(module: nn.Module) -> Callable[[Tensor], Place]:
    """A function that names the kind of a parameter: embedding, head, matrix or vector; a tied head is an embedding."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    of_model = getattr(module, "get_output_embeddings", None)
    head = of_model() if of_model is not None else None

    def kind(weight: Tensor) -> Place:
        if id(weight) in tables:
            return "embedding"
        if head is not None and weight is head.weight:
            return "head"
        return "matrix" if weight.dim() >= 2 else "vector"

    return kind


_PREFIX: Final = "average."


class WeightAverage:
    """The running average of the weights, or that of the update rule.

    Args:
        plan: None disables averaging and takes no memory.
        of_rule: name and average of each weight that the update rule averages; None where it averages none.
    """

    def __init__(
        self, plan: AveragePlan | None, of_rule: Callable[[], Iterator[tuple[str, Tensor]]] | None = None
    ) -> None:
        self.plan, self._of_rule = plan, of_rule
        self.weights: dict[str, Tensor] = {}
        """The averaged weights by parameter name; empty until something has been averaged."""

    @torch.no_grad()
    def after_step(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Include the fp32 weights after update number `step` (from 1)."""
        share = self._share(step)
        if share is None:
            return
        if not self.weights:
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        new = [weights[name].detach() for name in self.weights]
        # m += share * (w - m), in fp32, by one kernel for all parameters.
        torch._foreach_lerp_(shares(list(self.weights.values())), shares(new), share)

    def _share(self, step: int) -> float | None:
        """The share of the new weights in the updated average; None if this step is not averaged."""
        plan = self.plan
        if plan is None:
            return None
        if plan.kind == "ema":
            assert plan.decay is not None
            return 1.0 - min(plan.decay, (1.0 + step) / (10.0 + step))
        assert plan.from_step is not None
        assert plan.every_steps is not None
        since = step - plan.from_step
        if since < 0 or since % plan.every_steps:
            return None
        # The n-th weights count 1 / n: a running mean.
        return 1.0 / (since // plan.every_steps + 1)

    @contextmanager
    def shown_in(self, module: nn.Module) -> Iterator[None]:
        """Use the averaged weights within the block, in the model's precision; its own are restored to the bit."""
        # Detached tensors need no `torch.no_grad`; around a generator it raises errors in a deprecated way.
        own: dict[str, Tensor] = {}
        shown = self.weights.items() if self._of_rule is None else self._of_rule()
        parameters = dict(module.named_parameters()) if self.weights or self._of_rule is not None else {}
        try:
            for name, weight in shown:
                # Values are copied and tensors not exchanged: optimizer and compiled layers refer to these tensors.
                own[name] = parameters[name].detach().clone()
                parameters[name].detach().copy_(weight)
            yield
        finally:
            for name, weight in own.items():
                parameters[name].detach().copy_(weight)

    def state(self) -> dict[str, Tensor]:
        """The state that a resume needs besides the step number, by names that no method uses."""
        return {f"{_PREFIX}{name}": weight for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Load a state that `state` returned; other entries are ignored.

        Args:
            state: as read from a checkpoint.
            weights: the averaged weights by parameter name.
        """
        kept = averages_in(state)
        self.weights = {name: torch.empty_like(weights[name]).copy_(kept[name]) for name in weights if name in kept}


def averages_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights by parameter name in the additional state of a checkpoint; may be empty."""
    return {name.removeprefix(_PREFIX): kept for name, kept in state.items() if name.startswith(_PREFIX)}


def all_but_averages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a checkpoint's additional state that belongs to the method."""
    return {name: kept for name, kept in state.items() if not name.startswith(_PREFIX)}
