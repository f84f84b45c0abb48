"""What an accelerator is given that a CPU is not: rows laid end to end, and layers that are compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from luthier.core.errors import RecipeError, RequestError
from luthier.core.plan import Plan, ValueSource
from luthier.core.recipe import OrderName, Switch
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import defaults
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.provenance import Provenance
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import workload_of

COMPILE_SECONDS: Final = 180.0
"""What compiling the layers of a model is assumed to take, forward and backward, once a run: nobody has measured it
on an accelerator for this project, so a run must be predicted to gain more than that."""

COMPILED_METHODS: Final = ("full", "lora", "rslora", "loraplus", "pissa", "olora")
"""Methods whose matrices a compiler sees through; others would have it compile every layer by itself."""


def packs(asked: Switch | None, hardware: Hardware, sources: Provenance) -> bool:
    """Whether the rows of a micro-batch lie end to end: as asked, else on an accelerator."""
    if isinstance(asked, bool):
        sources.note("training.packing", "asked", "in the recipe")
        return asked
    if hardware.device == "cpu":
        sources.note("training.packing", "derived", "batches of like length are faster on a CPU, and need no mask")
        return False
    sources.note(
        "training.packing",
        "derived",
        f"on {hardware.device} rows end to end waste nothing on padding; first the model proves to train the same",
    )
    return True


def usual_order(*, is_packed: bool) -> tuple[OrderName, str]:
    """The order of rows where nobody asks for one, and why: sorting by length pays where rows would be padded."""
    return defaults.ORDER_PACKED if is_packed else defaults.ORDER


def attention_on(hardware: Hardware, sources: Provenance) -> Literal["by_length", "sdpa"]:
    """How attention over rows side by side is computed."""
    sources.note("training.attention", "derived", f"the faster kind on {hardware.device} at each length")
    return "by_length" if hardware.device == "cpu" else "sdpa"


def compiled_for(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with its layers compiled or not: as asked, else where an accelerator gains more than it costs.

    So it does with an objective for which the model writes answers between its steps, token by token.

    Raises:
        RecipeError: it is requested with a method whose matrices a compiler does not see through: those over a packed
            base are unpacked by a kernel of another library, and others keep something from one call to the next.
    """
    asked = plan.recipe.training.compile if plan.recipe.training else None
    if asked is True and plan.objective.draws:
        raise RecipeError(
            f"training.compile is true with objective {plan.objective.name}",
            expected="an objective that learns from given rows: writing answers would compile the layers each time",
            do="remove training.compile",
        )
    if asked is True and plan.method.name not in COMPILED_METHODS:
        raise RecipeError(
            f"training.compile is true with method {plan.method.name}",
            expected=f"one of the methods {', '.join(COMPILED_METHODS)}",
            do="remove training.compile, or choose one of these methods",
        )
    if asked is True and plan.method.expert_targets:
        raise RecipeError(
            f"training.compile is true with adapters on experts ({', '.join(plan.method.expert_targets)})",
            expected="matrices that a compiler sees through: which expert a token meets is known only as it runs",
            do="remove training.compile, or leave experts out of method.targets",
        )
    if asked is True and plan.objective.router_aux_loss is not None:
        raise RecipeError(
            "training.compile is true with objective.router_aux_loss",
            expected="layers that leave nothing behind but their states: the loss reads the logits of their routers",
            do="remove training.compile, or set objective.router_aux_loss: off",
        )
    if isinstance(asked, bool):
        return _with(plan, asked, ValueSource(source="asked", why="in the recipe"))
    does, why = _pays(plan, structure, hardware)
    return _with(plan, does, ValueSource(source="derived", why=why))


def _with(plan: Plan, does: bool, source: ValueSource) -> Plan:
    sources = {}
    for name, found in plan.sources.items():
        if name != "training.compile":
            sources[name] = found
        if name == "training.packing":  # beside it, where a reader looks for it
            sources["training.compile"] = source
    return plan.model_copy(update={"training": plan.training.model_copy(update={"compile": does}), "sources": sources})


def _pays(plan: Plan, structure: Structure, hardware: Hardware) -> tuple[bool, str]:
    if hardware.device == "cpu":
        return False, "on a CPU it gains a few percent and costs minutes"
    if plan.objective.draws:
        return False, "the model writes answers between steps, for which compiled layers would be compiled again"
    if plan.method.expert_targets:
        return False, "a compiler does not see through experts: which one a token meets is known only as it runs"
    if plan.objective.router_aux_loss is not None:
        return False, "the loss of the routers reads their logits out of the layers"
    if plan.method.name not in COMPILED_METHODS:
        return False, f"a compiler does not see through the matrices of method {plan.method.name}"
    try:
        device = this_machine(hardware)
    except RequestError as error:
        return False, f"what it would gain is not known: {error.came} is not in the table of devices"
    plain = workload_of(plan, structure, device)
    # Both by the same model, so that its errors largely cancel in the difference.
    faster = replace(plain, is_compiled=True)
    saved = plan.training.num_steps * (step_seconds(plain, device).value - step_seconds(faster, device).value)
    why = f"predicted to save {saved:,.0f} s of this run, for about {COMPILE_SECONDS:,.0f} s of compiling (assumed)"
    return saved > COMPILE_SECONDS, why
