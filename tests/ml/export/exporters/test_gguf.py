"""A GGUF file holds the merged weights and all that llama.cpp needs to know of tokens and turns."""

from __future__ import annotations

import shutil

import gguf as gguf_library
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.torch import load_file
from tests.zoo.families import make_family

from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import gguf as module
from luthier.ml.export.exporters import registry
from luthier.ml.export.exporters.gguf import write
from luthier.ml.export.exporters.gguf_worker import (
    MoreNames,
    UnpaddedConfig,
    named_for_stripping,
    older_names,
    published_name,
)


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
    with pytest.raises(WorkError, match="LutherieForCausalLM is not supported"):
        run_child(module.CONVERT, document, title="Writing GGUF")


def test_a_config_is_completed_by_the_names_that_the_converter_reads():
    new = {"n_positions": 1024, "vocab_size": 50257, "rope_parameters": {"partial_rotary_factor": 0.25}}
    older_names(new)
    assert (new["n_ctx"], new["rotary_pct"], new["pad_vocab_size_multiple"]) == (1024, 0.25, 1)
    published = {"n_ctx": 512, "n_positions": 1024, "rotary_pct": 0.5, "rope_parameters": {}}
    older_names(published)
    assert published == {"n_ctx": 512, "n_positions": 1024, "rotary_pct": 0.5, "rope_parameters": {}}
    outer = {"text_config": {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4}}}
    older_names(outer)
    assert outer["text_config"]["n_ctx"] == 64
    assert outer["text_config"]["rotary_pct"] == 1.0
    glm, llama = {"model_type": "glm4_moe_lite"}, {"model_type": "llama"}
    older_names(glm)
    older_names(llama)
    assert glm["scoring_func"] == "sigmoid"
    assert "scoring_func" not in llama
    for is_new, heads in ((False, 1), (True, 71)):
        falcon = {"multi_query": True, "new_decoder_architecture": is_new, "num_kv_heads": 71}
        older_names(falcon)
        assert falcon["num_kv_heads"] == heads


def test_hybrids_are_completed_by_how_their_layers_alternate():
    linear, full = "linear_attention", "full_attention"
    nemotron = {"layers_block_type": [linear, "mlp", full, "mlp"], "num_experts_per_tok": 2}
    older_names(nemotron)
    assert (nemotron["hybrid_override_pattern"], nemotron["num_hidden_layers"]) == ("M-*-", 4)
    assert "num_experts_per_tok" not in nemotron  # by which the converter takes it for one with experts
    with_experts = {"layers_block_type": [linear, "moe"], "num_experts_per_tok": 2}
    older_names(with_experts)
    assert (with_experts["hybrid_override_pattern"], with_experts["num_experts_per_tok"]) == ("ME", 2)
    for kinds, interval in (([linear, full] * 2, 2), ([linear] * 3 + [full], 4), ([full, linear, linear, full], None)):
        qwen = {"layer_types": kinds}
        older_names(qwen)
        assert qwen.get("full_attention_interval") == interval
    kimi = {"layer_types": [linear, linear, full], "mlp_layer_types": ["dense", "sparse", "sparse"]}
    kimi |= {"linear_num_heads": 4, "linear_head_dim": 8, "linear_conv_kernel_dim": 4}
    older_names(kimi)
    assert kimi["first_k_dense_replace"] == 1
    assert kimi["linear_attn_config"] == {
        "full_attn_layers": [3], "kda_layers": [1, 2], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4,
    }  # fmt: skip
    granite = {"mamba_n_heads": 4, "layer_types": [linear, full]}
    older_names(granite)
    assert granite["layer_types"] == ["mamba", "attention"]
    falcon = {"mamba_d_head": 16, "hidden_size": 96, "num_attention_heads": 4}
    older_names(falcon)
    assert falcon["head_dim"] == falcon["attn_rotary_emb"] == 24
    bamba = {"mamba_d_head": 16, "hidden_size": 96, "num_attention_heads": 4}
    bamba |= {"rope_parameters": {"partial_rotary_factor": 0.5}}
    older_names(bamba)
    assert bamba["attn_rotary_emb"] == 12


def test_drafting_heads_that_transformers_does_not_save_are_not_announced():
    glm = {"num_hidden_layers": 46, "num_nextn_predict_layers": 1, "text_config": {"mtp_num_hidden_layers": 1}}
    older_names(glm)
    assert glm == {"num_hidden_layers": 46, "num_nextn_predict_layers": 0, "text_config": {"mtp_num_hidden_layers": 0}}


def test_dense_layers_before_experts_have_their_published_name():
    assert published_name("model.layers.0.block_sparse_moe.down_proj.weight") == "model.layers.0.mlp.down_proj.weight"
    for name in (
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.1.block_sparse_moe.shared_experts.down_proj.weight",
        "model.layers.1.block_sparse_moe.experts.0.w1.weight",
    ):
        assert published_name(name) == name


def test_a_vocabulary_is_not_padded():
    config = UnpaddedConfig({"vocab_size": 403})
    config["pad_vocab_size_multiple"] = 8
    config["hidden_size"] = 32
    assert config == {"vocab_size": 403, "pad_vocab_size_multiple": 1, "hidden_size": 32}


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
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    base = make_family(family, tmp_path / family)
    source = make_source(base_path=str(base), adapter_path=None, adapter_sha256=None, base_name=family)
    registry.check("gguf", source, SilentProgress(), tools)


def test_a_file_is_named_so_that_llama_cpp_strips_behind_special_tokens(tmp_path):
    """As Phi 3, whose special tokens swallow the line end behind them; a model of other tokens keeps its name."""
    phi, llama = (make_family(name, tmp_path / name) for name in ("phi3", "llama"))
    assert "phi-3" in named_for_stripping("run-1", phi)
    assert named_for_stripping("Phi-3-mini", phi) == "Phi-3-mini"
    assert named_for_stripping("run-1", llama) == "run-1"
