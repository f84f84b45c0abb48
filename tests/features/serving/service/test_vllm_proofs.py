"""The process that answers proves adapters in vLLM, which a program plays that computes with transformers."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.stream import EngineSettings, Served
from luthier.features.serving.engine_process import open_engine
from luthier.ml.inference import vllm_process
from luthier.ml.inference.models.loading import load_model
from luthier.testing.stream_contract import question, write_all


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(load_model(tiny_model, dtype="float32", attention="sdpa"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_proved_before_it_answers(
    tiny_model: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fork_server: SessionForkServer,
) -> None:
    monkeypatch.setattr(vllm_process, "_LOOK_SECONDS", 0.02)
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", shlex.join([sys.executable, "-m", "luthier.testing.vllm_stub"]))
    monkeypatch.setenv("LUTHIER_VLLM_STUB", json.dumps({"computes": True}))
    served = Served(engine="vllm", path=str(tiny_model), sha256="0" * 64, precision="float32")
    proofs = tmp_path / "proofs"
    with (
        fork_server.forking_vllm(),
        caplog.at_level(logging.INFO, "luthier.engines"),
        closing(open_engine(served, EngineSettings(), proofs_folder=proofs)) as engine,
    ):
        engine.load_adapter("a", str(adapter))
        heard = write_all(engine, {"a": question("Which wood?")}, {"a": "a"})
    assert ("a", 0) in heard.ends
    assert "is proved in vLLM: 8 of 8 greedy texts equal" in caplog.text
    (kept,) = proofs.iterdir()
    assert len(json.loads(kept.read_text())["answers"]) == 8
