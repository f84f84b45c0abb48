"""The adapter as llama.cpp takes it is run over its base before it is let out."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import gguf
from luthier.ml.export.exporters.adapter import write_gguf_lora
from luthier.ml.export.parity import prove_gguf_adapter
from luthier.ml.export.source_side import observe_source

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def observed(make_source, examples):
    return observe_source(make_source(), examples, SilentProgress())


@pytest.fixture(scope="module", autouse=True)
def base_written_once(tmp_path_factory):
    """The base that each proof writes is the same one: converted for the first of them, copied for the others."""
    write, made = gguf.write, {}

    def write_once(source, target, precision, progress, tools):
        key = (source.model_dump_json(), precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("base") / "gguf"
            folder.mkdir()
            made[key] = folder, write(source, folder, precision, progress, tools)
        shutil.copytree(made[key][0], target, dirs_exist_ok=True)
        return made[key][1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf, "write", write_once)
        yield
    assert len(made) <= 1


def _written(adapter, base, folder, scale=1.0):
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {name: x * (scale if "lora_B" in name else 1.0) for name, x in tensors.items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    write_gguf_lora(changed, config, base, folder / "adapter.gguf", name="a")
    return folder / "adapter.gguf"


def test_what_llama_cpp_adds_is_what_was_trained(observed, make_source, adapter, tiny_model, tools, tmp_path):
    file = _written(adapter, tiny_model, tmp_path)
    report = prove_gguf_adapter(make_source(), file, observed, tmp_path, SilentProgress(), tools)
    assert report.passed, report.reasons
    assert (report.runtime, report.num_prompts) == ("llama.cpp", len(observed.answers))
    assert report.num_prompts_same_tokens == report.num_prompts
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.gguf"]  # the base is gone again


@pytest.mark.parametrize(("scale", "reason"), [(0.0, "nearer to the base"), (3.0, "differ by up to")])
def test_an_adapter_of_another_size_is_found_out(
    observed, make_source, adapter, tiny_model, tools, tmp_path, scale, reason
):
    file = _written(adapter, tiny_model, tmp_path, scale)
    report = prove_gguf_adapter(make_source(), file, observed, tmp_path, SilentProgress(), tools)
    assert not report.passed
    assert any(reason in one for one in report.reasons)
