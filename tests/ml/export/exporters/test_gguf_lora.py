"""A GGUF adapter adds to a GGUF base what merging adds."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.ml.export.exporters.adapter import NotPlainError, write_gguf_lora
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.quiet import quiet_peft

TARGETS = ["q_proj", "k_proj", "o_proj", "down_proj"]


def trained(base, folder, **settings):
    """A PEFT folder with random matrices: its tensors and its config."""
    torch.manual_seed(1)
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | settings
    with quiet_peft():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


def weights(file):
    return {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in GGUFReader(file).tensors}


def added(file):
    """What llama.cpp adds to each matrix: alpha / rank times B A."""
    alpha, found = GGUFReader(file).fields["adapter.lora.alpha"].contents(), weights(file)
    names = {name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")}
    return {
        name: alpha / found[f"{name}.lora_a"].shape[0] * found[f"{name}.lora_b"] @ found[f"{name}.lora_a"]
        for name in names
    }


def test_base_and_adapter_make_what_merging_makes(base_gguf, merged_gguf, adapter, tiny_model, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    write_gguf_lora(tensors, config, tiny_model, tmp_path / "adapter.gguf", name="a")
    base, merged, update = (
        weights(base_gguf / "model.gguf"),
        weights(merged_gguf / "model.gguf"),
        added(tmp_path / "adapter.gguf"),
    )
    changed = {name for name in base if not np.allclose(base[name], merged[name], atol=1e-5)}
    assert changed == {f"{name}" for name in update}
    for name, change in update.items():
        np.testing.assert_allclose(base[name] + change, merged[name], atol=1e-5)


def test_llama_cpp_applies_it_as_if_it_were_merged(base_gguf, merged_gguf, adapter, tiny_model, tmp_path):
    pytest.importorskip("xllamacpp")
    from luthier.ml.export.runtimes.llama_cpp_runtime import LlamaCppRuntime

    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    write_gguf_lora(tensors, config, tiny_model, tmp_path / "adapter.gguf", name="a")
    said = []
    for folder, over in ((merged_gguf, None), (base_gguf, tmp_path / "adapter.gguf"), (base_gguf, None)):
        with closing(LlamaCppRuntime(folder, over)) as runtime:
            said.append(runtime.log_probabilities(list(range(40, 60))))
    merged, applied, base = said
    np.testing.assert_allclose(applied, merged, atol=1e-3)
    assert np.abs(base - merged).max() > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.mlp.down_proj": 2}, "alpha_pattern": {"layers.0.mlp.down_proj": 3}},
    ],
    ids=["rslora", "ranks"],
)
def test_scales_of_their_own_are_kept(tiny_model, tmp_path, settings):
    tensors, config = trained(tiny_model, tmp_path / "peft", **settings)
    write_gguf_lora(tensors, config, tiny_model, tmp_path / "adapter.gguf", name="a")
    adapted = attach_adapter(load_model(tiny_model, dtype="float32", attention="sdpa"), tmp_path / "peft")
    update = added(tmp_path / "adapter.gguf")
    for number, layer in enumerate(adapted.get_base_model().model.layers):
        expected = layer.mlp.down_proj.get_delta_weight("default").numpy()
        np.testing.assert_allclose(update[f"blk.{number}.ffn_down.weight"], expected, atol=1e-6)


def test_what_llama_cpp_has_no_place_for_is_refused(tiny_model, tmp_path):
    tensors, config = trained(tiny_model, tmp_path / "peft")
    for change, reason in (
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"peft_type": "IA3"}, "not a low-rank adapter but IA3"),
    ):
        with pytest.raises(NotPlainError, match=reason):
            write_gguf_lora(tensors, config | change, tiny_model, tmp_path / "a.gguf", name="a")
    tensors, config = trained(tiny_model, tmp_path / "head", target_modules=["lm_head"])
    with pytest.raises(NotPlainError, match=r"lm_head, which llama\.cpp adapts in no file"):
        write_gguf_lora(tensors, config, tiny_model, tmp_path / "a.gguf", name="a")
    assert not (tmp_path / "a.gguf").exists()


def test_an_unknown_family_is_refused(tmp_path, tiny_model):
    tensors, config = trained(tiny_model, tmp_path / "peft")
    base = json.loads((tiny_model / "config.json").read_text()) | {"architectures": ["OtherForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(base))
    with pytest.raises(NotPlainError, match=r"OtherForCausalLM in llama\.cpp are not known here"):
        write_gguf_lora(tensors, config, tmp_path, tmp_path / "a.gguf", name="a")
