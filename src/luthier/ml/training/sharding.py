"""Weights, gradients and optimizer state sharded over the devices of a run; each holds a share of every tensor.

torch's `fully_shard` (Zhao et al., 2023, "PyTorch FSDP", arXiv:2304.11277; FSDP2 shards each parameter separately, as a
DTensor). Layers are gathered one at a time; embeddings, last norm and head belong to one root module, which also
computes the loss, so that whole tensors and shards never mix. The optimizer must be created after sharding: one created
before would train tensors that no model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.ml.inference.models.architecture import layers_of
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.training.distributed import is_sharded
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objective_protocol import Losses, Unit, rows_of
from luthier.ml.training.objectives.rules import RULES as OBJECTIVES
from luthier.ml.training.objectives.rules import rules_of as objective_rules
from luthier.ml.training.optimizers.rules import RULES as OPTIMIZERS
from luthier.ml.training.optimizers.rules import rules_of as optimizer_rules

if TYPE_CHECKING:
    from luthier.ml.training.distributed import World
    from luthier.ml.training.model import TrainableModel


class _Root(nn.Module):
    """A module in which computations see unsharded weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, compute: Callable[[], Any]) -> Any:
        """Call it."""
        return compute()


def refuse_unspreadable(plan: Plan) -> None:
    """Raise RecipeError if the weights of a plan cannot be sharded."""
    methods = [name for name, rules in METHODS.items() if rules.can_be_sharded]
    by_number = [name for name, rules in OPTIMIZERS.items() if rules.can_be_sharded]
    objectives = [name for name, rules in OBJECTIVES.items() if rules.can_be_sharded]
    optimizer, average, outer = plan.training.optimizer.name, plan.training.average, _outer_targets(plan)
    for came, is_wrong, expected, do in (
        (
            f"method {plan.method.name}",
            not method_rules(plan.method.name).can_be_sharded,
            f"one of {', '.join(methods)}",
            "choose one",
        ),
        (
            f"optimizer {optimizer}",
            not optimizer_rules(optimizer).can_be_sharded,
            f"{', '.join(by_number)}, which moves each number of a weight by itself",
            "set training.optimizer: adamw",
        ),
        (
            "training.average",
            average is not None,
            "no average of the weights where each process holds a share of them",
            "leave training.average out",
        ),
        (
            f"adapters on experts ({', '.join(plan.method.expert_targets)})",
            bool(plan.method.expert_targets),
            "adapters on single matrices: a tensor of experts is one whole",
            "leave experts out of method.targets",
        ),
        (
            f"an adapter on {', '.join(outer)}",
            bool(outer),
            "adapters on matrices of the layers",
            "leave them out of method.targets",
        ),
        (
            f"{', '.join(plan.method.modules_to_save)} trained in whole beside an adapter",
            bool(plan.method.modules_to_save),
            "an adapter on matrices of the layers alone",
            "leave out method.modules_to_save",
        ),
        (
            "objective.router_aux_loss",
            plan.objective.router_aux_loss is not None,
            "no loss of the routers, whose logits are read separately from the layers that contain them",
            "set objective.router_aux_loss: off",
        ),
        (
            f"objective {plan.objective.name}",
            not objective_rules(plan.objective.name).can_be_sharded,
            f"one of {', '.join(objectives)}: others read weights apart from the passes that gather them",
            "choose one",
        ),
    ):
        if is_wrong:
            raise RecipeError(
                f"training.sharding fsdp with {came}", expected=expected, do=f"{do}, or set training.sharding: ddp"
            )


def _outer_targets(plan: Plan) -> list[str]:
    """Embeddings and head, if they carry an adapter."""
    if not plan.method.targets:
        return []
    outer = {name for layer in read_structure(plan.base_model.path).outer_layers for name in (layer.kind, layer.name)}
    return sorted(outer.intersection(plan.method.targets))


def spread(model: TrainableModel, world: World) -> None:
    """Shard a model that each process holds whole, usually on the CPU, over all devices, layer by layer.

    Raises:
        RecipeError: the architecture has no layers to fetch one at a time, or computes logits in another way.
    """
    # Here, since a process that trains alone would load it for nothing.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind = world.device.partition(":")[0]
    # One dimension: every tensor is split over all processes, with no groups that hold copies of each other.
    mesh = init_device_mesh(kind, (world.size,))
    # gradients of bf16 weights are reduced in fp32, like our sums over micro-batches
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    root = _Root(model.module)
    found = layers_of(model.base)
    if found is None or model.path.logits != "product":
        why = "has no one list of layers" if found is None else "forms its logits by its own head"
        raise RecipeError(
            f"training.sharding fsdp, but {type(model.base).__name__} {why}",
            expected="layers that can be fetched one at a time, and logits that are a product with one matrix",
            do="set training.sharding: ddp",
        )
    # Inner modules first: the root takes whatever no layer has taken.
    for part in (*found[2], root):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # From here on parameters are DTensors: an optimizer made earlier would hold the old tensors.
    model.root, model.device = root, world.device


def loss_divisor(model: TrainableModel, weight: float, world: World) -> float:
    """The divisor of a micro-batch's loss that makes the gradients over all ranks sums divided by `weight`.

    torch averages gradients of sharded weights over the ranks; all others are summed by this package.
    """
    return weight if model.root is None else weight / world.size


def missing_passes(model: TrainableModel, num_passes: int, world: World) -> int:
    """The number of extra passes of this rank, so that all ranks make the same number: gathering needs all of them.

    Args:
        model: sharded or not; without shards no rank waits for another within a pass.
        num_passes: of this rank.
        world: the ranks.
    """
    return 0 if model.root is None else world.max(num_passes) - num_passes


def idle_pass(model: TrainableModel, unit: Unit) -> Tensor:
    """A pass with zero loss, and zero gradients for every weight that a real pass reaches."""
    from luthier.ml.training.model import collate

    # One row is enough: the pass exists for its collectives, and its loss is multiplied by 0.
    batch = collate(rows_of([unit])[:1], model.pad_id, model.device)
    return model.within(lambda: Losses(model.loss_sum(batch)[0] * 0.0)).total


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. A sharded one is gathered, a collective that all ranks must join."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shares(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The local part of each tensor: the shard of a sharded one, otherwise the whole tensor."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]


def like(tensor: Tensor, pattern: Tensor | None) -> Tensor:
    """This rank's shard of a tensor that all ranks hold, if `pattern` is sharded; otherwise the tensor."""
    if not is_sharded(pattern) or tensor.shape != pattern.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    there = tensor.to(pattern.device)
    return distribute_tensor(there, pattern.device_mesh, pattern.placements, src_data_rank=None)


@torch.no_grad()
def fill_in(target: TrainableModel | None, weights: Mapping[str, Tensor]) -> None:
    """Gather trained weights by name, one at a time, and write them into an unsharded model; None only gathers."""
    own = {} if target is None else dict(target.module.named_parameters())
    for name, weight in weights.items():
        # Every rank joins the gathering, also where only rank 0 has a target.
        gathered = whole(weight)
        if target is not None:
            own[name].copy_(gathered)
