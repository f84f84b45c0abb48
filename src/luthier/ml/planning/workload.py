"""What a run needs from a machine, as the numbers that memory and time are computed from; no data or files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, Literal, TypeVar

from luthier.core.errors import RecipeError
from luthier.core.forward_path import ForwardPath
from luthier.core.plan import Plan
from luthier.core.results.cost import BF16_MUST_WIN_BY, Device, Layout
from luthier.ml.inference.models.structure import LinearLayer, Structure
from luthier.ml.planning import defaults
from luthier.ml.planning.adapter import num_saved_parameters
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import has_bfloat16
from luthier.ml.planning.inference_cost import Compute, Judging, Stored, TeacherPass, judging_of, teacher_pass
from luthier.ml.planning.rollout_cost import Grading, Rollouts, gradings_of, judges_bytes
from luthier.ml.training.methods.rules import CostModel
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objectives.rules import rows_of_unit
from luthier.ml.training.objectives.rules import rules_of as objective_rules

WorkMethod = CostModel
OWN: Final = "master_"
"""What the names of this project's own optimizers begin with, which are over fp32 masters; other tools' have none."""
AttentionKind = Literal["by_length", "flash", "eager"]
LossKind = Literal["learned_chunks", "all_chunks", "all", "fused", "own_chunks", "own_all", "task_head"]
"""`own_chunks`: by the model's own head, a chunk of learned tokens at a time; `own_all`: by its whole forward;
`task_head`: no logits, but the outputs of a task head, one row of them for each row of the data."""
Sharding = Literal["none", "ddp", "fsdp"]
WHOLE_COPIES: Final = Layout()
"""Each device computes with its own copy of the model, gathered layer by layer where it is sharded."""

BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.01, "nf4": 0.516}
"""Bytes a weight. int8: with a scale an output. nf4: 4 bits and 0.127 of doubly quantised scales (Dettmers et al.,
2023, arXiv:2305.14314, section 3)."""

ADALORA_START: Final = 1.5
"""AdaLoRA begins with half as many ranks again as it ends with (Zhang et al., 2023, arXiv:2303.10512, section 4.1)."""

_PADDING = {"by_length": 0.06, "shuffled": 0.35, "as_given": 0.35}
_PADDING_HEADROOM = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """One run as the cost model sees it. Per device where `sharding` spreads it.

    Attributes:
        compute: precision of products and activations.
        base: how frozen weights are held on the device.
        adapters: how trained weights are held on the device.
        has_fused_kernels: whether normalisation and gate keep no more than this project's kernels keep.
        has_numba_kernels: whether loops compiled by Numba do elementwise work.
        widens_few_rows: whether losses form fp32 tensors of a few rows of logits at a time, as on a CPU, or of a chunk.
        num_reference_tokens: computed forward once before the first step, for an objective that needs the model at its
            start, or a method that finds its first weights on training rows.
        step_passes: forward passes over the rows of each step in addition to those of the loss.
        reference_step_passes: of streamed rows: those for the reference, which validation rows have before the run.
        optimizer_in_backward: gradients are used up as they come, never all held.
        keeps_checkpoints_on_host: the inputs of recomputed layers are kept in the host's memory.
        num_validation_tokens: computed, of one validation.
        initial_rank: AdaLoRA's, where it is not the usual one.
        trainable: parameters that are trained, where rank and targets do not determine them.
        keeps_average: whether an average of the weights is kept with them.
        expert_targets: tensors of experts that carry adapters.
        expert_rank: the rank of each of these.
        rollouts: the answers that each step draws, where it learns from such.
        step_updates: updates of the weights with these answers in each step.
        gradings: of these answers, by graders that ask a model.
        judges_bytes: of the models that are asked, which stay loaded.
        judging: of the held-out rows, afterwards.
        teacher: the model that computes every row once before the first step.
        modules_to_save: embeddings and head that are trained in whole beside adapters.
        keeps_first_weights: whether the weights of the start are kept as a reference, and put back for a pass.
        has_router_loss: whether the routers have one.
        num_head_outputs: of a task head in place of text; 0 without one.
        num_workers: processes that compute micro-batches side by side.
        layout: how several devices share a copy of the model; `sharding` is about its copies.
    """

    structure: Structure
    method: WorkMethod
    rank: int
    targets: tuple[str, ...]
    dropout: float
    compute: Compute
    base: Stored
    adapters: Compute
    optimizer: str
    batches: Batches
    attention: AttentionKind
    loss: LossKind
    gradient_checkpointing: bool
    num_steps: int
    has_fused_kernels: bool = True
    has_numba_kernels: bool = False
    widens_few_rows: bool = False
    is_compiled: bool = False
    optimizer_in_backward: bool = False
    keeps_checkpoints_on_host: bool = False
    sharding: Sharding = "none"
    num_validations: int = 0
    num_validation_tokens: float = 0.0
    num_reference_tokens: float = 0.0
    step_passes: int = 0
    reference_step_passes: int = 0
    num_checkpoints: int = 0
    initial_rank: int = 0
    trainable: int | None = None
    keeps_average: bool = False
    rollouts: Rollouts | None = None
    step_updates: int = 1
    gradings: tuple[Grading, ...] = ()
    judges_bytes: float = 0.0
    judging: Judging | None = None
    teacher: TeacherPass | None = None
    expert_targets: tuple[str, ...] = ()
    expert_rank: int = 0
    modules_to_save: tuple[str, ...] = ()
    keeps_first_weights: bool = False
    has_router_loss: bool = False
    num_head_outputs: int = 0
    num_workers: int = 1
    layout: Layout = WHOLE_COPIES

    def __post_init__(self) -> None:
        for name, value, least in (("num_steps", self.num_steps, 1), ("rank", self.rank, 0)):
            if value < least:
                raise RecipeError(f"{name} is {value}", expected=f"{least} or more", do="correct the recipe")

    @property
    def step_tokens(self) -> float:
        """Tokens of a step, counted in each of its updates."""
        return self.batches.num_tokens * self.step_updates

    @property
    def targeted(self) -> tuple[LinearLayer, ...]:
        """The matrices that carry an adapter; none for full fine-tuning."""
        return () if self.method == "full" else _targeted(self.structure.linear_layers, self.targets)

    @property
    def targeted_experts(self) -> tuple[LinearLayer, ...]:
        """The tensors of experts that carry adapters."""
        return () if self.method == "full" else _targeted(self.structure.experts, self.expert_targets)

    @property
    def num_active_trainable(self) -> float:
        """Parameters of adapters that one token meets: of experts, those of the chosen ones; no whole modules."""
        idle = sum(
            self.expert_rank
            * (x.num_inputs + x.num_outputs)
            * (x.num_matrices - self.structure.active_of(x) / (x.num_inputs * x.num_outputs))
            for x in self.targeted_experts
        )
        return self.num_trainable - self.num_saved - idle

    @property
    def num_saved(self) -> int:
        """Parameters of embeddings and head that are trained in whole beside adapters."""
        return num_saved_parameters(self.structure, self.modules_to_save) if self.modules_to_save else 0

    @property
    def trains_embeddings(self) -> bool:
        """Whether the table of embeddings is trained in whole."""
        return self.method == "full" or self._saves(self.structure.outer_layers[:1])

    @property
    def trains_head(self) -> bool:
        """Whether the output head is trained in whole."""
        return self.method == "full" or self._saves(self.structure.outer_layers[-1:])

    def _saves(self, layers: Layers) -> bool:
        return any(_is_target(layer, self.modules_to_save) for layer in layers)

    @property
    def adapts_head(self) -> bool:
        """Whether the output head carries an adapter."""
        head = self.structure.outer_layers[-1:]
        return self.method != "full" and any(_is_target(layer, self.targets) for layer in head)

    @property
    def adapter_rank(self) -> int:
        """Rank that is held and computed: AdaLoRA's starting rank is larger than its final one."""
        if self.method != "adalora":
            return self.rank
        return self.initial_rank or math.ceil(self.rank * ADALORA_START)

    @property
    def recomputes_inputs(self) -> bool:
        """Whether what adapted or trained matrices read is made again on the way back (ml/training/kernels.py).

        On a CPU; Liger's kernels, which other devices may use instead, keep it.
        """
        reads_again = self.rank > 0 or (self.method == "full" and not self.gradient_checkpointing)
        return self.has_fused_kernels and not self.is_compiled and self.attention == "by_length" and reads_again

    @property
    def num_trainable(self) -> int:
        """Parameters that the optimizer changes."""
        of_head = self.num_head_outputs * (self.structure.hidden_size + 1)
        if self.trainable is not None:
            return self.trainable + of_head
        if self.method == "full":
            return self.structure.num_parameters + of_head
        extra = 1 if self.method == "adalora" else 0  # a singular value for each rank
        routed = sum(self.expert_rank * x.num_matrices * (x.num_inputs + x.num_outputs) for x in self.targeted_experts)
        thin = self.adapter_rank * (widths_of(self.targeted) + extra * len(self.targeted))
        return of_head + routed + self.num_saved + thin

    @property
    def element_bytes(self) -> float:
        """Bytes of one element of an activation."""
        return BYTES[self.compute]


T = TypeVar("T")
Layers = tuple[LinearLayer, ...]


class ByIdentity(Generic[T]):
    """A key of a cache for one object, equal to keys of the same object alone; the cache keeps the object.

    What follows from the layers of a model is needed hundreds of times while a quote looks for what fits. They are
    hundreds of dataclasses: to hash them takes as long as to look through them.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value


def kinds_of(layers: Layers) -> frozenset[str]:
    """The kinds that these matrices have: `q_proj`, `down_proj`."""
    return _kinds_of(ByIdentity(layers))


def widths_of(layers: Layers) -> int:
    """Inputs and outputs of these matrices, all together."""
    return _widths_of(ByIdentity(layers))


def _targeted(layers: Layers, targets: tuple[str, ...]) -> Layers:
    return _targeted_of(ByIdentity(layers), targets)


def _is_target(layer: LinearLayer, targets: tuple[str, ...]) -> bool:
    return any(layer.name == target or layer.name.endswith(f".{target}") for target in targets)


@lru_cache(maxsize=64)
def _kinds_of(layers: ByIdentity[Layers]) -> frozenset[str]:
    return frozenset(layer.kind for layer in layers.value)


@lru_cache(maxsize=64)
def _widths_of(layers: ByIdentity[Layers]) -> int:
    return sum(layer.num_inputs + layer.num_outputs for layer in layers.value)


@lru_cache(maxsize=64)
def _targeted_of(layers: ByIdentity[Layers], targets: tuple[str, ...]) -> Layers:
    return tuple(layer for layer in layers.value if _is_target(layer, targets))


def workload_of(plan: Plan, structure: Structure, device: Device, *, batches: Batches | None = None) -> Workload:
    """The run of a plan on a device, as this project's own loop would carry it out there.

    On another kind of device than the plan was made for, precision and micro-batch are what would be chosen there.

    Args:
        plan: of the run.
        structure: of the base model.
        device: where it runs.
        batches: the exact ones (`batches_of`) where the schedule is known; else they are derived from the data's
            profile.
    """
    training, rows = plan.training, plan.data.train
    objective = objective_rules(plan.objective.name)
    # Rows that are there before the first step: streamed ones are not.
    before = [one for one in (None if plan.data.stream else rows, plan.data.validation) if one is not None]
    compute, rollouts = plan_precision_on(plan, device), _rollouts(plan)
    return Workload(
        structure=structure,
        method=work_method(plan.method.name),
        rank=plan.method.target_rank or plan.method.rank,
        targets=plan.method.targets,
        dropout=plan.method.dropout,
        compute=compute,
        base=plan.method.quantisation or compute,
        adapters=compute,
        optimizer=OWN + training.optimizer.name,
        batches=batches or _derived_batches(plan, device),
        attention=attention_of(training.forward, device),
        loss=loss_of(training.forward) if plan.objective.task_head is None else "task_head",
        gradient_checkpointing=training.gradient_checkpointing,
        is_compiled=training.compile and device.is_cpu == (training.device == "cpu"),
        has_numba_kernels=training.numba_kernels and device.is_cpu,
        widens_few_rows=device.is_cpu,
        num_steps=training.num_steps,
        sharding="none" if device.num_devices == 1 else "fsdp" if training.sharding == "fsdp" else "ddp",
        num_validations=_num_validations(plan),
        num_validation_tokens=plan.data.validation.num_tokens * 1.05 if plan.data.validation else 0.0,
        num_reference_tokens=objective.reference_passes * sum(float(split.num_tokens) for split in before)
        + _num_first_tokens(plan),
        step_passes=objective.step_passes,
        reference_step_passes=0 if plan.data.stream is None else objective.reference_passes,
        num_checkpoints=_num_checkpoints(plan),
        initial_rank=plan.method.rank,
        trainable=plan.method.num_trainable_parameters,
        keeps_average=training.average is not None,
        teacher=teacher_pass(plan),
        rollouts=rollouts,
        step_updates=plan.objective.num_iterations or 1,
        gradings=gradings_of(plan.objective, rollouts),
        judges_bytes=judges_bytes(plan.objective),
        judging=judging_of(plan, base_parameters=plan.base_model.num_parameters),
        expert_targets=plan.method.expert_targets,
        expert_rank=plan.method.expert_rank or 0,
        modules_to_save=plan.method.modules_to_save,
        keeps_first_weights=_keeps_first_weights(plan),
        has_router_loss=plan.objective.router_aux_loss is not None,
        num_head_outputs=plan.objective.task_head.num_outputs if plan.objective.task_head else 0,
        num_workers=training.micro_batch_workers if device.is_cpu else 1,
    )


def _keeps_first_weights(plan: Plan) -> bool:
    """Whether an objective compares with the model at its start in each step (`objectives.first_weights`)."""
    if plan.objective.draws:
        return bool(plan.objective.kl_weight)
    return plan.data.stream is not None and objective_rules(plan.objective.name).reference_passes > 0


def _num_first_tokens(plan: Plan) -> float:
    """Tokens of the rows that the method computes once before the first step; of streamed rows, of one step alone."""
    rows, most = plan.data.train, plan.training.global_batch_size if plan.data.stream else plan.data.train.num_examples
    num = min(method_rules(plan.method.name).num_first_rows, most)
    return num * rows.num_tokens / max(1, rows.num_examples)


_LOSS_OF: Final[dict[str, LossKind]] = {"product": "learned_chunks", "head": "own_chunks", "model": "own_all"}


def loss_of(path: ForwardPath | None) -> LossKind:
    """Who forms logits, and of how many tokens at a time."""
    return "learned_chunks" if path is None else _LOSS_OF[path.logits]


def attention_of(path: ForwardPath | None, device: Device) -> AttentionKind:
    """Whose attention computes: ours, transformers' fused one, or one that keeps scores of all pairs."""
    if path is None or path.attention == "fast":
        return "by_length" if device.is_cpu else "flash"
    return "eager" if path.attention_function in (None, "eager") else "flash"


def _rollouts(plan: Plan) -> Rollouts | None:
    """What a mean step draws, answers as long as they may be."""
    objective, rows = plan.objective, plan.data.train
    if objective.num_samples is None or objective.max_new_tokens is None:
        return None
    per_step = min(plan.training.global_batch_size, rows.num_examples)
    # What is not learned is the prompt.
    mean_prompt = (rows.num_tokens - rows.num_trained_tokens) / max(1, rows.num_examples)
    validation = plan.data.validation
    return Rollouts(
        num_answers=per_step * objective.num_samples,
        prompt_tokens=per_step * mean_prompt,
        new_tokens=objective.max_new_tokens,
        most_tokens=rows.max_tokens + objective.max_new_tokens,
        num_validated=validation.num_examples if validation else 0,
    )


def work_method(name: str) -> WorkMethod:
    """The method whose cost model a method declares as its own."""
    return method_rules(name).costs_as


def packs_on(plan: Plan, device: Device) -> bool:
    """Whether the rows of a micro-batch would be packed on a device: as requested, else on an accelerator."""
    if device.is_cpu == (plan.training.device == "cpu"):
        return plan.training.packing
    asked = plan.recipe.training.packing if plan.recipe.training else None
    return asked if isinstance(asked, bool) else not device.is_cpu


def plan_precision_on(plan: Plan, device: Device) -> Compute:
    """What the run of a plan computes in on a device: as requested, else what would be chosen there."""
    asked = plan.recipe.training.precision if plan.recipe.training else None
    # A measured precision says nothing about the other kind of device.
    if asked not in (None, "auto") or device.is_cpu == (plan.training.device == "cpu"):
        return plan.training.precision
    return precision_on(device)


def precision_on(device: Device) -> Compute:
    """What a run computes in on a device: bfloat16 where it has units for that, on a CPU where that clearly wins."""
    wins = device.bfloat16_tflops > BF16_MUST_WIN_BY * device.float32_tflops
    return "bfloat16" if (wins if device.is_cpu else has_bfloat16(device)) else "float32"


def _derived_batches(plan: Plan, device: Device) -> Batches:
    training, rows = plan.training, plan.data.train
    budget = training.micro_batch_tokens
    source = plan.sources["training.micro_batch_tokens"].source
    is_alike = device.is_cpu == (training.device == "cpu")
    if source == "default" or (source == "derived" and not is_alike):
        usual = defaults.MICRO_BATCH_TOKENS_CPU if device.is_cpu else defaults.MICRO_BATCH_TOKENS_GPU
        budget = max(usual, rows.max_tokens)
    units = min(training.global_batch_size, rows.num_examples)
    # A unit of the objective may be several rows: a preference pair is two, a search with a hard negative three.
    rows_per_unit = rows_of_unit(plan.objective.name, rows) * rows.sequences_per_example
    per_step = math.ceil(units * rows_per_unit)
    # Devices share the units of a step evenly: no micro-batch has more than one device's.
    share = math.ceil(math.ceil(units / device.num_devices) * rows_per_unit)
    longest = max(2, rows.max_tokens)
    padding = 0.0 if packs_on(plan, device) else _PADDING[training.order]
    length = min(longest, rows.mean_tokens / (1 - padding))
    # With workers a step is cut into more micro-batches than the budget requires.
    least = training.min_micro_batches if device.is_cpu else 1
    budget = min(budget, max(longest, math.ceil(share / least) * math.ceil(length)))
    in_one = max(1, min(share, int(budget // max(length, 1))))
    peak_rows = max(1, min(share, budget // longest))
    # shorter rows fill the budget better than the longest do: the peak is the budget where a step holds that much
    peak_length = max(longest, int(min(budget, share * longest) / peak_rows * _PADDING_HEADROOM))
    return Batches(
        peak_rows=peak_rows,
        peak_length=min(peak_length, max(longest, budget // peak_rows)),
        num_tokens=per_step * rows.mean_tokens,
        num_computed=per_step * length,
        num_learned=units * rows.num_trained_tokens / max(1, rows.num_examples),
        num_micro_batches=math.ceil(share / in_one) * device.num_devices,
        length=length,
    )


def _num_checkpoints(plan: Plan) -> int:
    """Checkpoints that are written: at every so many steps, at the last, and at half of the validations beside these.

    A validation that finds a new best has its step saved; how many do is not known, and the bill of a run takes half.
    """
    p = plan.training
    periodic, is_apart = divmod(p.num_steps, p.checkpoint_every_steps)
    if not (num := _num_validations(plan)):
        return periodic + bool(is_apart)
    # Steps at which both happen; the last step is one of them.
    together, is_alone = divmod(p.num_steps, math.lcm(p.checkpoint_every_steps, p.validate_every_steps))
    return periodic + bool(is_apart) + math.ceil((num - together - bool(is_alone)) / 2)


def _num_validations(plan: Plan) -> int:
    every = plan.training.validate_every_steps
    return math.ceil(plan.training.num_steps / every) if plan.data.validation and every else 0
