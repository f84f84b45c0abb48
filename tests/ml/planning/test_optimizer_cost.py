"""What an optimizer holds, against what it really holds; what it computes, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning import memory, speed
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import checkpoint_seconds
from luthier.ml.planning.workload_variants import with_method
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers import update_rules
from luthier.ml.training.optimizers.rules import RULES

Make = Callable[..., Any]
OWN = [f"master_{name}" for name in RULES]


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize(
    ("name", "method"), [("llama", "lora"), ("llama", "full"), ("llama_untied", "full"), ("mixtral", "full")]
)
def test_moments_are_as_large_as_those_that_are_held(
    kind: str, name: str, method: str, architecture: Make, make_workload: Make, make_model: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if RULES[kind.removeprefix("master_")].only_full and method == "lora":
        pytest.skip("for full tuning alone")
    monkeypatch.setattr(update_rules, "MIN_PACKED", 129)  # all but the vectors
    config = architecture(name)
    work = make_workload(structure_of(config), method, optimizer=kind, rank=8)
    model = make_model(config, work)
    plan = _Plan(kind.removeprefix("master_"))
    optimizer = MasterOptimizer(model.module, plan)  # type: ignore[arg-type]
    optimizer.step(0.0, 1.0)
    held = sum(part.nbytes for part in optimizer.moment_state().values())
    # what no structure tells: norms in 32 bits, blocks that are not full, the rows of experts
    assert memory.moment_bytes(work, on_device=False) == pytest.approx(held, rel=0.08, abs=10_000)


class _Plan:
    """The part of a training plan that an optimizer reads."""

    weight_decay, learning_rate, clip_gradient_norm = 0.0, 1e-3, 1.0

    def __init__(self, name: str) -> None:
        from luthier.core.plan import OptimizerPlan

        self.optimizer = OptimizerPlan.model_validate({"name": name} | dict(RULES[name].settings))


def test_smaller_moments_make_smaller_peaks_and_checkpoints(
    architecture: Make, make_workload: Make, device: Device
) -> None:
    work = make_workload(structure_of(architecture("llama", hidden_size=1024, num_hidden_layers=8)), "full")
    kinds = ["master_adamw", "master_muon", "master_adamw_8bit", "master_adafactor"]
    found = [replace(work, optimizer=kind) for kind in kinds]
    held = [predict_memory(one, device).optimizer_bytes for one in found]
    written = [checkpoint_seconds(one) for one in found]
    assert held == sorted(held, reverse=True)
    assert written == sorted(written, reverse=True)
    count = work.num_trainable
    assert held[0] == 12 * count
    assert held[2] < 0.55 * held[0]
    gpu = device.model_copy(update={"is_cpu": False, "name": "a100-80g"})
    paged = predict_memory(replace(work, optimizer="master_paged_adamw_8bit"), gpu).optimizer_bytes
    assert paged == pytest.approx(4 * count + 8 * work.structure.head_parameters)


def test_muons_iterations_by_hand(architecture: Make, make_workload: Make, device: Device) -> None:
    work = make_workload(structure_of(architecture("llama")), "full")
    muon = replace(work, optimizer="master_muon")
    # width 64, 160 in the MLP, keys and values 32: short and long sides of the matrices of one layer
    sides = [(64, 64), (32, 64), (32, 64), (64, 64), (64, 160), (64, 160), (64, 160)]
    by_hand = 3 * sum(5 * (2 * a * a * b + 2 * a**3 + 2 * a * a * b) for a, b in sides)
    assert memory.step_flops(muon) == by_hand
    more = speed.time_terms(muon, device)["products"] - speed.time_terms(work, device)["products"]
    assert more == pytest.approx(by_hand / (device.bfloat16_tflops * 1e12))
    assert memory.step_flops(work) == 0


def test_an_adapter_in_place_of_muons_full_tuning_is_moved_by_adamw(architecture: Make, make_workload: Make) -> None:
    work = make_workload(structure_of(architecture("llama")), "full", optimizer="master_muon")
    assert with_method(work, "lora").optimizer == "master_adamw"
    assert with_method(replace(work, optimizer="master_adamw_8bit"), "lora").optimizer == "master_adamw_8bit"
