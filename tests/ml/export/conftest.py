"""A tiny source with an adapter that says something else than its base, held-out examples, the converter to GGUF."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import WorkError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportSource
from luthier.ml.export.exporters.converter import converter

MakeSource = Callable[..., ExportSource]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tools with the converter in it; LUTHIER_TEST_HOME names a home whose tools outlive the session."""
    shared = os.environ.get("LUTHIER_TEST_HOME")
    folder = Path(shared) / "cache" / "tools" if shared else tmp_path_factory.mktemp("tools")
    try:
        converter(folder, SilentProgress())
    except WorkError as error:
        pytest.skip(f"no index to fetch the converter from: {error.came}")
    return folder


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Eight questions with answers; one has a system message, one a tool call, one earlier turns."""
    asked = [
        ("Which wood is used for the front?", "Spruce."),
        ("And for the back?", "Maple is used for the back, and for the ribs."),
        ("  Two spaces,\n\n and 12 digits 123456789012?", "Yes."),
        ("Grüße, 日本語 and naïve café?", "señor"),
        ("SELECT name FROM instruments", "def area(width, height): return width * height"),
    ]
    rows = [_conversation(("user", question), ("assistant", answer)) for question, answer in asked]
    rows.append(_conversation(("system", "Answer in one short sentence."), ("user", "Glue?"), ("assistant", "Hide.")))
    rows.append(_conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d e f")))
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Cremona"}'}}
    weather = Conversation(
        messages=(
            Message(role="user", content="Weather?"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="sunny", tool_call_id="1"),
            Message(role="assistant", content="It is sunny in Cremona today."),
        ),
        tools=({"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}},),
    )
    return [Example(id=f"rows:{n}", conversation=row) for n, row in enumerate([*rows, weather], start=1)]


def _conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(messages=tuple(Message.model_validate({"role": r, "content": c}) for r, c in turns))


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder over the tiny model; never written to."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_source(tiny_model: Path, adapter: Path) -> MakeSource:
    """The source of an export; by keyword, other values than the tiny model with its adapter."""

    def make(**changed: object) -> ExportSource:
        values: dict[str, object] = {
            "name": "run-1",
            "run_id": "run-1",
            "base_name": "tiny",
            "base_path": str(tiny_model),
            "base_sha256": "0" * 64,
            "adapter_path": str(adapter),
            "adapter_sha256": "1" * 64,
            "method": "lora",
            "precision": "float32",
        }
        return ExportSource.model_validate(values | changed)

    return make


@pytest.fixture(scope="session")
def merged(tiny_model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter merged into the tiny model in float32, as a transformers folder; never written to."""
    from luthier.ml.inference.models.merging import merged_model

    folder = tmp_path_factory.mktemp("merged") / "merged"
    merged_model(tiny_model, adapter, dtype="float32").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder
