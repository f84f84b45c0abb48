"""A tiny Llama and its LoRA adapters as GGUF files, written here without a converter, for tests of llama.cpp.

Laid out as llama.cpp's own converters do it: it rotates neighbouring pairs where transformers rotates the two halves of
a head, so the rows of the query and key projections are reordered, and with them the rows of B of an adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import PretrainedConfig

from luthier.ml.inference.models.loading import load_model, load_tokenizer


def write_tiny_gguf(
    folder: Path, target: Path, *, pre: str = "gpt-2", precision: Literal["float32", "bfloat16"] = "bfloat16"
) -> Path:
    """Write a Llama in a transformers folder with a byte-level tokenizer as a GGUF of 32 bits a weight; returns target.

    Args:
        folder: The transformers folder.
        target: The file to write.
        pre: The name of llama.cpp's pre-tokenizer.
        precision: What the weights are rounded to before.
    """
    model, tokenizer = load_model(folder, dtype=precision, attention="sdpa"), load_tokenizer(folder)
    config = model.config
    out = gguf.GGUFWriter(target, "llama")
    out.add_license("cc0-1.0")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.head_dim)
    out.add_vocab_size(config.vocab_size)
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    specials = set(tokenizer.all_special_ids)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokenizer.convert_ids_to_tokens(list(range(config.vocab_size))))
    # 3 is CONTROL, 1 is NORMAL in llama.cpp's enumeration of token types.
    out.add_token_types([3 if number in specials else 1 for number in range(config.vocab_size)])
    out.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_pad_token_id(tokenizer.pad_token_id)
    out.add_add_bos_token(False)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        # Tied embeddings: llama.cpp takes the head from `token_embd`.
        if name != "lm_head.weight":
            out.add_tensor(
                names.get_name(name, try_suffixes=(".weight",)), _in_pairs(name, tensor.float().numpy(), config)
            )
    return _written(out, target)


def write_tiny_gguf_adapter(folder: Path, adapter: Path, target: Path) -> Path:
    """Write a LoRA adapter in a PEFT folder over that base as a GGUF in 32 bits; returns target."""
    config = load_model(folder, dtype="float32", attention="sdpa").config
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    out = gguf.GGUFWriter(target, "llama")
    out.add_type("adapter")
    out.add_string(gguf.Keys.Adapter.TYPE, "lora")
    out.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, array in load_file(adapter / "adapter_model.safetensors").items():
        plain, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        values = array.astype(np.float32)
        if side == "lora_B":
            values = _in_pairs(plain, values, config)
        out.add_tensor(f"{names.get_name(plain)}.weight.{side.lower()}", values)
    return _written(out, target)


def _in_pairs(name: str, array: NDArray[np.float32], config: PretrainedConfig) -> NDArray[np.float32]:
    for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if kind in name:
            # [heads * d, in] -> [heads, 2, d / 2, in] -> [heads, d / 2, 2, in] -> [heads * d, in]: halves become
            # neighbouring pairs.
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)


def _written(out: gguf.GGUFWriter, target: Path) -> Path:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target
