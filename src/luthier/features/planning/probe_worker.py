"""What a probe runs in a child process: real training steps of given shapes, on made-up tokens, timed and weighed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.child_process.channel import Channel
from luthier.core.registry import STORED
from luthier.core.system.files import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.dataset import TokenisedExample
    from luthier.core.events import Event
    from luthier.core.plan import ObjectivePlan, Plan
    from luthier.ml.training.model import TrainableModel

_SEED = 0


def probe(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Train given steps by a plan's settings in a child process, with an event after each.

    Args:
        document: `plan`, and `steps`; a step is micro-batches, a micro-batch the tokens of its shared prefixes and
            the rows, a row its tokens and how many of them are learned.
        channel: of the child process.

    Returns:
        `step_seconds` (of each), `peak_memory_bytes` counted as a run's are, and `refused`, the setting of training
        that the model cannot have, so that nothing was run, or None.
    """
    return run(document["plan"], document["steps"], lambda: channel.emit("step"))


def run(plan_document: dict[str, Any], steps: list[Any], step_done: Callable[[], None]) -> dict[str, Any]:
    """Train the steps by the plan's settings; the answer of `probe`."""
    # Environment variables that torch reads while it is imported.
    _make_torch_ready()
    import torch

    from luthier.core.plan import ObjectivePlan, Plan
    from luthier.core.ports import SilentProgress
    from luthier.ml.inference import accelerator as memory
    from luthier.ml.inference.accelerator import compute_exactly
    from luthier.ml.training.checkpoint import CheckpointStore
    from luthier.ml.training.loop import train
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objective_protocol import Tools
    from luthier.ml.training.objectives.distillation import Distillation
    from luthier.ml.training.objectives.rules import load_objective, rules_of

    _load_what_a_run_loads(plan_document["base_model"]["path"])
    plan = _shortened(Plan.model_validate(plan_document, context=STORED), len(steps))
    device = plan.training.device
    if plan.objective.draws:  # the rows given represent drawn answers, and what is probed is how long learning takes
        plan = plan.model_copy(update={"objective": ObjectivePlan(name="sft")})
    torch.set_num_threads(plan.training.num_threads)
    compute_exactly(device)
    memory.forget_peaks(device)
    model = TrainableModel.load(plan, base_dropout=not rules_of(plan.objective.name).dropout_is_noise)
    if (setting := _refused(plan, model, steps)) is not None:
        return {"refused": setting}
    is_streamed = plan.data.stream is not None  # then each step computes the reference of its rows, which takes time
    objective = load_objective(plan.objective, Tools(is_streamed=is_streamed))
    units, schedule = _made_up(steps, model.vocabulary_size, plan.objective)
    seconds: list[float] = []
    if isinstance(objective, Distillation):  # what a teacher says takes as long to learn if it is made up
        objective.rehearse(model)
    else:
        with scratch_folder(Path(tempfile.gettempdir()), "luthier-probe-") as folder:
            objective.prepare(model, () if is_streamed else units, folder, SilentProgress())

    class NoCheckpoints(CheckpointStore):
        """A probe starts from scratch and leaves nothing behind."""

        def latest(self) -> tuple[None, list[str]]:
            return None, []

        def save(self, state: Any, weights: Any, moments: Any, method: Any = None) -> tuple[Path, int]:  # noqa: ARG002
            return self.folder, 0

    def note(event: Event) -> None:
        if event.kind == "step":
            seconds.append(event.seconds)
            step_done()

    train(
        plan,
        model,
        objective,
        units,
        [],
        schedule,
        NoCheckpoints(Path(), 1),
        emit=note,
        stop_requested=lambda: None,
        progress=SilentProgress(),
    )
    peak = memory.device_peak_memory_bytes(device)
    return {"step_seconds": seconds, "peak_memory_bytes": peak, "refused": None}


def _make_torch_ready() -> None:
    """Settings that must be made before torch is loaded."""
    from luthier.core.system.process_setup import keep_few_kernels, keep_products_exact

    keep_few_kernels()
    keep_products_exact()


def _refused(plan: Plan, model: TrainableModel, steps: list[Any]) -> str | None:
    """The first setting of training with which the model computes something else; None where there is none."""
    from luthier.ml.training.equivalence import why_not_compiled, why_not_packed

    if any(any(prefixes) for step in steps for prefixes, _ in step) and not model.can_share_prefix():
        return "shared_prefix"
    if plan.training.packing and why_not_packed(model) is not None:
        return "packing"
    return "compile" if plan.training.compile and why_not_compiled(model) is not None else None


def _load_what_a_run_loads(model_path: str) -> None:
    """A run's process has read rows with the tokenizer and opened its database before: that is part of its memory."""
    from importlib import import_module

    # Imports and no strings, where the order of features allows it: a module that moves fails the type check.
    import luthier.ml.data.rows.formats
    import luthier.ml.data.split.split
    import luthier.ml.data.tokenise.loss_mask
    import luthier.ml.evaluation.few_shot
    import luthier.ml.inference.models.sources  # noqa: F401

    # By its name: planning is below runs, and may not import it.
    import_module("luthier.features.runs.store")
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    ChatTemplate.load(model_path, "auto")
    read_structure(model_path)


def _shortened(plan: Plan, num_steps: int) -> Plan:
    # Nothing but steps: validation and warm-up would be timed with them.
    after = {"num_steps": num_steps, "num_warmup_steps": 0, "validate_every_steps": 0, "early_stopping_patience": 0}
    return plan.model_copy(update={"training": plan.training.model_copy(update=after), "budget": None})


class _Given:
    """A schedule whose steps are given, micro-batch by micro-batch, as indices of examples."""

    def __init__(self, steps: list[tuple[tuple[int, ...], ...]], shared_tokens: dict[int, tuple[int, ...]]) -> None:
        self._steps, self._shared_tokens = steps, shared_tokens

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self._steps[step]

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        return self._steps[step][rank::size]

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        return self._shared_tokens[micro_batch[0]]

    def epoch_of(self, step: int) -> float:
        return step / len(self._steps)

    def position(self, step: int) -> None:
        """Nothing is streamed."""

    def resume_at(self, position: object) -> None:
        """Nothing is resumed."""


def _made_up(
    steps: list[Any], vocabulary: int, objective: ObjectivePlan
) -> tuple[list[tuple[TokenisedExample, ...]], _Given]:
    """Units of random tokens, the last of each learned, as many as requested; those of a batch may share a prefix."""
    import random
    from array import array

    from luthier.core.dataset import TokenisedExample
    from luthier.ml.training.objectives.heads import with_made_up_targets
    from luthier.ml.training.objectives.rules import rules_of

    rows_per_unit = rules_of(objective.name).rows_per_unit
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    units: list[tuple[TokenisedExample, ...]] = []
    num_rows = 0
    made, shared_tokens = [], {}
    for step in steps:
        batches = []
        for prefixes, rows in step:
            first = len(units)
            shared_tokens[first] = tuple(prefixes)
            # Without prefixes one empty list represents all rows.
            shared = [array("i", (draw.randrange(vocabulary) for _ in range(num))) for num in prefixes or [0]]
            made_up = []
            for number, (num_tokens, num_learned) in enumerate(rows):
                beginning = shared[number * len(shared) // len(rows)]
                own = array("i", (draw.randrange(vocabulary) for _ in range(num_tokens - len(beginning))))
                ids = beginning + own
                # One byte a token, 1 where it is learned.
                mask = bytes(num_tokens - num_learned) + b"\x01" * num_learned
                name, is_wanted = f"probe:{num_rows}", num_rows % 2 == 0
                made_up.append(TokenisedExample(name, ids, mask, is_wanted=is_wanted))
                num_rows += 1
            units += [tuple(made_up[i : i + rows_per_unit]) for i in range(0, len(made_up), rows_per_unit)]
            batches.append(tuple(range(first, len(units))))
        made.append(tuple(batches))
    return with_made_up_targets(units, objective.task_head), _Given(made, shared_tokens)
