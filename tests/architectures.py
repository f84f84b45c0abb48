"""Small configs of architectures that lay their matrices differently, for tests of structure and adapters."""

from __future__ import annotations

from typing import Any, Final

_COMMON: Final[dict[str, Any]] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LATENT: Final[dict[str, Any]] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
_ROUTED: Final[dict[str, Any]] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_GROUPS: Final[dict[str, Any]] = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
_MAMBA: Final[dict[str, Any]] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
}

SMALL: Final[dict[str, dict[str, Any]]] = {
    "llama": _COMMON,
    "gemma3_text": _COMMON | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
             "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0},
    "mamba2": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8,
               "head_dim": 8, "n_groups": 1, "pad_token_id": 0, "chunk_size": 16},
    "falcon_h1": _COMMON | _MAMBA,
    "mixtral": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": _COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                            "shared_expert_intermediate_size": 40},
    "qwen3_moe": _COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "gpt_oss": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
                          "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_next": _COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                             "shared_expert_intermediate_size": 40, "linear_num_value_heads": 4,
                             "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                             "layer_types": ["linear_attention", "full_attention"]},
    "deepseek_v3": _COMMON | _LATENT | _ROUTED | _GROUPS,
    "glm4_moe": _COMMON | _ROUTED | _GROUPS,
    "granitemoehybrid": _COMMON | _MAMBA | {"num_local_experts": 4, "num_experts_per_tok": 2,
                                            "shared_intermediate_size": 40, "layer_types": ["mamba", "attention"]},
    "llama4_text": _COMMON | {"intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 2,
                              "interleave_moe_layer_step": 1, "attention_chunk_size": 64},
    "phimoe": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "dbrx": {"vocab_size": 96, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "pad_token_id": 0,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "jetmoe": _COMMON | {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                         "num_key_value_heads": 2},
    "afmoe": _COMMON | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
                        "num_dense_layers": 1, "layer_types": ["full_attention", "full_attention"]},
    "nemotron_h": _COMMON | _ROUTED | {"layers_block_type": ["mamba", "moe", "attention"], "num_hidden_layers": 3,
                                       "n_group": 1, "topk_group": 1, "mamba_num_heads": 8, "mamba_head_dim": 8,
                                       "ssm_state_size": 8, "n_groups": 1, "n_shared_experts": 1,
                                       "moe_shared_expert_intermediate_size": 40},
}  # fmt: skip
"""By model_type: entries of a config.json of a model with two layers, and four experts of which two are active."""


def small(kind: str) -> dict[str, Any]:
    """The entries of one of them, its `model_type` among them."""
    return {"model_type": kind, **SMALL[kind]}
