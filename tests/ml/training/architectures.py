"""Tiny random models of many architectures, with weights large enough for caps, scales and windows to show."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import PreTrainedModel

from luthier.ml.inference.models.architecture import config_of, empty_model

VOCABULARY: Final = 128
_PLAIN: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_HEADS: Final = _PLAIN | {"head_dim": 8}
_EXPERTS: Final = _PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: Final = _PLAIN | {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
_DELTA: Final[dict[str, Any]] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_CHUNKED: Final = _HEADS | {
    "intermediate_size_mlp": 64, "num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 8,
    "interleave_moe_layer_step": 1, "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
}  # fmt: skip
_TOWER: Final[dict[str, Any]] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_QWEN_TOWER: Final[dict[str, Any]] = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
}  # fmt: skip
_GPT: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_STATES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

ARCHITECTURES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("llama", _PLAIN),
    "qwen3": ("qwen3", _HEADS),
    "mistral, windows": ("mistral", _PLAIN | {"sliding_window": 8}),
    "mixtral": ("mixtral", _EXPERTS),
    "qwen3 moe": ("qwen3_moe", _EXPERTS | {"num_experts": 4}),
    "olmo2": ("olmo2", _PLAIN),
    "gemma2, caps": (
        "gemma2",
        _HEADS | {"sliding_window": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0},
    ),
    "gemma3 text": ("gemma3_text", _HEADS | {"sliding_window": 8}),
    "gemma3 as published": (
        "gemma3",
        {"text_config": _HEADS | {"sliding_window": 8}, "vision_config": _TOWER, "mm_tokens_per_image": 4},
    ),
    "gemma4 text": (
        "gemma4_text",
        _HEADS
        | {"sliding_window": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8}
        | {"vocab_size_per_layer_input": VOCABULARY},
    ),
    "gemma4 text, shared keys": (
        "gemma4_text",
        _HEADS
        | {"sliding_window": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8}
        | {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2}
        | {"vocab_size_per_layer_input": VOCABULARY},
    ),
    "mistral3 as published": (
        "mistral3",
        {
            "text_config": _HEADS | {"model_type": "mistral"},
            "vision_config": _TOWER | {"model_type": "pixtral", "head_dim": 8},
        },
    ),
    "qwen3 vl as published": (
        "qwen3_vl",
        {
            "text_config": _HEADS
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
            "vision_config": _QWEN_TOWER | {"deepstack_visual_indexes": [0]},
        },
    ),
    "qwen3.5 as published": ("qwen3_5", {"text_config": _HEADS | _DELTA, "vision_config": _QWEN_TOWER}),
    "llama4 as published": (
        "llama4",
        {
            "text_config": _CHUNKED,
            "vision_config": _TOWER
            | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
            | {"pixel_shuffle_ratio": 0.5},
        },
    ),
    "llama4 text, chunks": ("llama4_text", _CHUNKED),
    "granite, dropout": (
        "granite",
        _PLAIN | {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3}
        | {"embedding_multiplier": 3.0, "attention_dropout": 0.1},
    ),
    "granite hybrid": (
        "granitemoehybrid",
        _PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32}
        | {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
        | {"mamba_n_groups": 1, "mamba_expand": 2, "logits_scaling": 3.0},
    ),
    "cohere": ("cohere", _PLAIN | {"logit_scale": 0.25}),
    "falcon h1": (
        "falcon_h1",
        _PLAIN | {"lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
        | {"mamba_d_state": 8, "embedding_multiplier": 2.0, "key_multiplier": 0.7},
    ),
    "falcon, alibi": ("falcon", _PLAIN | {"alibi": True, "new_decoder_architecture": False}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "phi": ("phi", _PLAIN),
    "mamba2": ("mamba2", _STATES | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "deepseek v3": ("deepseek_v3", _LATENT),
    "gpt oss": ("gpt_oss", _HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen3 next": (
        "qwen3_next",
        _EXPERTS | _HEADS | _DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "lfm2": ("lfm2", _PLAIN | {"layer_types": ["conv", "full_attention"]}),
    "recurrent gemma": (
        "recurrent_gemma",
        _PLAIN | {"attention_window_size": 8, "lru_width": 32, "num_hidden_layers": 3, "logits_soft_cap": 2.0},
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model of that architecture in eval mode; every vector of weights is random, too."""
    kind, entries = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = empty_model(config_of({"model_type": kind, **entries}), device="cpu", dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.dim() >= 2:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(noise * 0.1)
    return (model if dtype == torch.float32 else model.to(dtype)).eval()
