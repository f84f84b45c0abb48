"""The memory that is predicted for a run is what torch holds in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import method_plan
from transformers import AutoModelForCausalLM, LlamaConfig

from luthier.core.plan import Plan
from luthier.ml.inference import accelerator as memory
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import hardware
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.model import TrainableModel

from .test_training import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's allocator on a GPU is what is measured")


@pytest.fixture(scope="module")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 400 million random parameters: large beside what the runtime itself takes."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "larger"
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_lies_in_the_predicted_interval(
    make_plan: Callable[..., Plan],
    larger_model: Path,
    tmp_path: Path,
    device: str,
    method: str,
    checkpointing: bool,
) -> None:
    plan = make_plan(
        method, device=device, precision="bfloat16", num_steps=3, gradient_checkpointing=checkpointing, packing=True
    )
    base = plan.base_model.model_copy(update={"path": str(larger_model)})
    trained = method_plan(larger_model, method, 0.0, plan.training.num_steps)
    plan = plan.model_copy(update={"base_model": base, "method": trained})
    structure, card = read_structure(str(larger_model)), this_machine(hardware.measure())
    predicted = predict_memory(workload_of(plan, structure, card), card)
    torch.cuda.empty_cache()
    memory.forget_peaks(device)
    run(plan, TrainableModel.load(plan), tmp_path, packs=True)
    measured = memory.device_peak_memory_bytes(device)
    total, runtime = predicted.total_bytes, predicted.runtime_bytes
    assert total.low - runtime <= measured <= total.high
