from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import ModelSourceError
from luthier.core.stream import Served
from luthier.core.system import machine_memory
from luthier.features.models.resolve import Precision
from luthier.features.serving.engine_process import split
from luthier.features.serving.memory_budget import host_bytes, weight_bytes


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"0" * 100)
    return folder


def no_precision() -> Precision:
    raise AssertionError("the model says its precision itself")


def test_a_base_by_itself_and_under_adapters_is_the_same(tiny_model: Path, adapter: Path) -> None:
    base, none = split(Served(path=str(tiny_model), sha256="a"), lambda: "bfloat16")
    assert none is None
    assert base.template == "chat"
    assert base.precision == "bfloat16"
    tuned = Served(
        path=str(tiny_model), sha256="a", adapter_path=str(adapter), template="chat", precision=base.precision
    )
    assert split(tuned, no_precision) == (base, str(adapter))


def test_an_adapter_that_cannot_share_is_part_of_what_is_opened(tiny_model: Path, adapter: Path) -> None:
    served = Served(path=str(tiny_model), sha256="a", adapter_path=str(adapter), precision="float32")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    opened, over_it = split(served, no_precision)
    assert (opened.adapter_path, over_it) == (str(adapter), None)
    assert split(served, no_precision) == (opened, None)
    (adapter / "adapter_model.safetensors").write_bytes(b"0" * 101)
    again, _ = split(served, no_precision)
    assert again != opened, "the loaded one has the weights of before"
    assert again.model_copy(update={"adapter_stamp": opened.adapter_stamp}) == opened
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelSourceError, match="adapter_config"):
        split(served, no_precision)


def test_other_engines_load_their_adapters_themselves() -> None:
    served = Served(engine="llama_cpp", path="/a.gguf", sha256="a", adapter_path="/b.gguf")
    assert split(served, no_precision) == (served.model_copy(update={"adapter_path": None}), "/b.gguf")


def test_weights_are_counted_by_their_files(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    assert weight_bytes(str(adapter)) == 100
    assert weight_bytes(str(tiny_model)) == (tiny_model / "model.safetensors").stat().st_size
    (tmp_path / "a.gguf").write_bytes(b"123")
    assert weight_bytes(str(tmp_path / "a.gguf")) == 3
    assert weight_bytes(None) == weight_bytes("https://elsewhere/v1") == 0
    assert 0 < host_bytes() <= machine_memory.memory_bytes()[0]


def test_copies_with_unlike_fallbacks_share_their_base() -> None:
    own = Served(path="/model", sha256="a", adapter_path="/adapter")
    copy = Served(engine="llama_cpp", path="/a.gguf", sha256="b", adapter_path="/b.gguf", fallback=own)
    other = copy.model_copy(update={"adapter_path": "/c.gguf", "fallback": own.model_copy(update={"sha256": "c"})})
    base = Served(engine="llama_cpp", path="/a.gguf", sha256="b")
    assert split(copy, no_precision) == (base, "/b.gguf")
    assert split(other, no_precision) == (base, "/c.gguf")
