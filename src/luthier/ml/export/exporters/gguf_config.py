"""A config as llama.cpp's converter reads it: complete, and by the names of the published files.

transformers 5 saves configs under its own names and leaves out what its classes always do. What is written here is
read by the converter alone, in its child process.
"""

from __future__ import annotations

import re
from typing import Any, Final


class UnpaddedConfig(dict[str, Any]):
    """A config in which the vocabulary is never padded: the converter writes the embeddings as they are.

    Hybrids of Mamba 2 set the padding to 8 while they write the tokens, and llama.cpp refuses a file that has more
    tokens than rows.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, 1 if name == "pad_vocab_size_multiple" else value)


_DENSE: Final = re.compile(r"\.block_sparse_moe\.(?=(?:gate|up|down)_proj\.)")


def published_name(tensor: str) -> str:
    """The name that a tensor has in published models.

    transformers saves the dense layers before the experts of Kimi Linear under the name of those with experts.
    """
    return _DENSE.sub(".mlp.", tensor)


def older_names(hparams: dict[str, Any]) -> None:
    """Complete a config by the entries that the converter reads by the names of earlier versions of transformers.

    transformers 5 saves configs without them; those of published models, which have them, stay as they are.

    Args:
        hparams: The config as a plain document; that of its language model is completed, too.
    """
    text = hparams.get("text_config")
    for part in (hparams, text if isinstance(text, dict) else {}):
        rope = part.get("rope_parameters") or {}
        context = part.get("n_positions") or part.get("max_position_embeddings")
        rotated, width = rope.get("partial_rotary_factor", 1.0), part.get("head_dim")
        older = {
            "n_ctx": context,
            "rotary_pct": rotated if rope else None,
            "rotary_dim": int(rotated * width) if rope and width else None,
            # embeddings have as many rows as the config says: padding is for files that were padded before
            "pad_vocab_size_multiple": 1 if part.get("vocab_size") else None,
            "scoring_func": "sigmoid" if part.get("model_type") in _ROUTED_BY_SIGMOID else None,
        }
        if part.get("model_type") == "hunyuan_v1_moe":  # published once a layer; transformers has one width for all
            older |= {"moe_intermediate_size": [part["intermediate_size"]], "num_shared_expert": [1]}
            part["moe_topk"] = one if isinstance(one := part["moe_topk"], list) else [one]
        older |= _of_full_attention(part) | _of_hybrids(part)
        for name, value in older.items():
            if value is not None and part.get(name) is None:
                part[name] = value
        if part.get("mamba_n_heads") and part.get("layer_types"):  # Granite 4
            part["layer_types"] = [_KINDS_OF_GRANITE.get(kind, kind) for kind in part["layer_types"]]
        # The converter appends as many layers as these say, whose tensors transformers does not save.
        part.update(dict.fromkeys(part.keys() & {"num_nextn_predict_layers", "mtp_num_hidden_layers"}, 0))
        pattern = part.get("hybrid_override_pattern")
        if pattern and "E" not in pattern:
            part.pop("num_experts_per_tok", None)  # a default of transformers; the converter takes it for experts
        # one head for keys and values, despite what transformers writes: published files leave the number out
        if part.get("multi_query") and not part.get("new_decoder_architecture") and "num_kv_heads" in part:
            part["num_kv_heads"] = 1


def _of_full_attention(part: dict[str, Any]) -> dict[str, Any]:
    """What only layers with full attention have, by the names of a config that lists no layers (Gemma 4)."""
    kinds, layers = part.get("layer_types") or [], part.get("per_layer_config") or {}
    full = [own for number, own in layers.items() if number.isdigit() and kinds[int(number)] == "full_attention"]
    if not full or any(own != full[0] for own in full):
        return {}
    return {
        "global_head_dim": full[0].get("head_dim"),
        "num_global_key_value_heads": full[0].get("num_key_value_heads"),
    }


_ROUTED_BY_SIGMOID: Final = ("deepseek_v3", "dots1", "glm4_moe_lite", "minimax_m2")
"""Types whose router is always a sigmoid in transformers; llama.cpp takes a softmax where the file names none."""
_KINDS_OF_GRANITE: Final = {"linear_attention": "mamba", "full_attention": "attention"}
# The letters of Nemotron-H for the kinds of its layers.
_LETTERS: Final = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def _of_hybrids(part: dict[str, Any]) -> dict[str, Any]:
    """What hybrids say by other names: how kinds of layers alternate or begin, and the width of attention heads."""
    older: dict[str, Any] = {}
    blocks = part.get("layers_block_type") or []
    if blocks and _LETTERS.keys() >= set(blocks):
        older |= {
            "num_hidden_layers": len(blocks),
            "hybrid_override_pattern": "".join(_LETTERS[kind] for kind in blocks),
        }
    kinds = part.get("layer_types") or []
    full = [number for number, kind in enumerate(kinds, start=1) if kind == "full_attention"]
    feed_forward = part.get("mlp_layer_types") or []
    num_dense = next((number for number, kind in enumerate(feed_forward) if kind != "dense"), len(feed_forward))
    if feed_forward and "dense" not in feed_forward[num_dense:]:
        older["first_k_dense_replace"] = num_dense
    if part.get("linear_num_heads") and part.get("linear_head_dim"):  # Kimi Linear, which counts layers from 1
        older["moe_router_activation_func"] = "sigmoid"
        older["linear_attn_config"] = {
            "full_attn_layers": full,
            "kda_layers": [number for number, kind in enumerate(kinds, start=1) if kind == "linear_attention"],
            "num_heads": part["linear_num_heads"],
            "head_dim": part["linear_head_dim"],
            "short_conv_kernel_size": part.get("linear_conv_kernel_dim"),
        }
    if full and "linear_attention" in kinds and full == list(range(full[0], len(kinds) + 1, full[0])):
        older["full_attention_interval"] = full[0]
    # next to heads of Mamba, which have a separate width
    if part.get("mamba_d_head") and part.get("num_attention_heads"):
        width = part["hidden_size"] // part["num_attention_heads"]
        rotated = (part.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
        older |= {"head_dim": width, "attn_rotary_emb": int(rotated * width)}
    return older
