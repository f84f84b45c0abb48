import shutil
from array import array
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.core.dataset import TokenisedExample
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model, write_tiny_gguf, write_tiny_gguf_adapter

TEXTS = (
    "Spruce is light and stiff along the grain.",
    "The luthier answered honestly, and the customer came back with a cello and two guitars.",
    "Maple.",
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def template(tiny) -> ChatTemplate:
    return ChatTemplate.load(tiny)


@pytest.fixture(scope="session")
def examples(template) -> list[TokenisedExample]:
    found = []
    for number, text in enumerate(TEXTS):
        ids, _ = template.encode(text)
        learned = bytes(place >= 1 + number for place in range(len(ids)))
        found.append(TokenisedExample(id=f"rows.jsonl:{number + 1}", input_ids=array("i", ids), loss_mask=learned))
    return found


@pytest.fixture(scope="session")
def tiny_gguf(tiny, tmp_path_factory) -> Path:
    """The tiny model as a GGUF file beside its tokenizer."""
    folder = tmp_path_factory.mktemp("gguf")
    for file in (*tiny.glob("tokenizer*"), tiny / "chat_template.jinja", tiny / "generation_config.json"):
        shutil.copy(file, folder)
    return write_tiny_gguf(tiny, folder / "tiny.gguf", precision="float32")


@pytest.fixture(scope="session")
def peft_adapters(tiny, tmp_path_factory) -> list[Path]:
    """Two random LoRA adapters over the tiny model, as PEFT folders."""
    made = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
            adapted = get_peft_model(load_model(tiny, dtype="float32", attention="sdpa"), config)
        folder = tmp_path_factory.mktemp("adapters") / f"adapter-{seed}"
        adapted.save_pretrained(folder)
        made.append(folder)
    return made


@pytest.fixture(scope="session")
def gguf_adapters(tiny, peft_adapters) -> list[Path]:
    """The same adapters as GGUF files."""
    return [write_tiny_gguf_adapter(tiny, folder, folder.with_suffix(".gguf")) for folder in peft_adapters]
