"""Model families as tiny random models: each architecture of transformers with the template of its maker.

    make_family("gpt_oss", folder)      a transformers folder: float32 weights, tokenizer, generation config

Sizes are small and odd on purpose: layers of both kinds where a family mixes kinds, windows and chunks of 16 tokens,
multipliers, caps and scales that are not 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from tests.zoo.makers import make_tokenizer, stop_ids
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from luthier.ml.inference.models.quiet import quiet_transformers

CONTEXT_TOKENS: Final = 4096
WINDOW_TOKENS: Final = 16

_HIDDEN, _HEADS = 32, 4
# Every size that some config has under this name.
_SMALL: Final[dict[str, Any]] = {
    "hidden_size": _HIDDEN, "n_embd": _HIDDEN, "d_model": _HIDDEN, "word_embed_proj_dim": _HIDDEN,
    "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64, "intermediate_size_mlp": 64, "ffn_hidden_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": _HEADS, "n_head": _HEADS, "n_heads": _HEADS, "attention_heads": _HEADS, "num_heads": _HEADS,
    "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "max_position_embeddings": CONTEXT_TOKENS, "n_positions": CONTEXT_TOKENS, "n_ctx": CONTEXT_TOKENS,
    "max_seq_len": CONTEXT_TOKENS, "context_length": CONTEXT_TOKENS,
    "sliding_window": WINDOW_TOKENS, "attention_window_size": WINDOW_TOKENS, "window_size": WINDOW_TOKENS,
    "attention_chunk_size": WINDOW_TOKENS,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "expert_hidden_size": 24, "expert_ffn_hidden_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "n_shared_experts": 1, "moe_num_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 8, "linear_num_heads": 4,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_chunk_size": WINDOW_TOKENS,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_mamba_heads": 4, "mamba_expand": 2,
    "state_size": 8, "chunk_size": WINDOW_TOKENS, "block_size": WINDOW_TOKENS, "block_multiple_of": 8,
    "lru_width": _HIDDEN, "hidden_size_per_layer_input": 8, "global_head_dim": 16, "laurel_rank": 8,
    "depth": 2, "out_hidden_size": _HIDDEN, "num_position_embeddings": 64, "image_size": 28, "patch_size": 14,
    "embed_dim": _HIDDEN, "projection_dim": _HIDDEN, "output_hidden_size": _HIDDEN, "d_ff": 64,
    "alignment_intermediate_size": 64, "projector_hidden_size": 64, "num_patches": 4,
    "initializer_range": 0.15, "init_std": 0.15,
}  # fmt: skip
# Sizes of a vision tower that language models have under the same name, and otherwise.
_SMALL_VISION: Final[dict[str, Any]] = {"num_key_value_heads": _HEADS, "initializer_range": 0.02}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture as its maker ships it.

    model_type: the name in transformers. maker: a key of `MAKERS`. config: what differs from the small sizes;
    a value of None leaves the size as the config has it, but for a window, which is then none.
    """

    name: str
    model_type: str
    maker: str = "chatml"
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_image_text(self) -> bool:
        """Whether the published model has a vision tower."""
        return "vision_config" in getattr(CONFIG_MAPPING[self.model_type], "sub_configs", {})


def _family(name: str, maker: str = "chatml", /, model_type: str | None = None, **config: Any) -> Family:
    return Family(name, model_type or name, maker, config)


_MIXED_WINDOWS: Final = ["sliding_attention", "full_attention"]
# The order of Command R7B, which llama.cpp takes for granted
_THREE_WINDOWS: Final = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
# That of Gemma 3, which llama.cpp takes for granted, too
_FIVE_WINDOWS: Final = ["sliding_attention"] * 5 + ["full_attention"]
_MIXED_LINEAR: Final = ["linear_attention", "full_attention"]
_MROPE: Final = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
_PARTIAL_MROPE: Final = _MROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5, "mrope_interleaved": True}
_YARN: Final = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip

_GRANITE: Final = {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3,
}  # fmt: skip
_LLAMA4_VISION: Final = {
    "vision_output_dim": _HIDDEN, "projector_input_dim": _HIDDEN, "projector_output_dim": _HIDDEN,
}  # fmt: skip

FAMILIES: Final[dict[str, Family]] = {
    family.name: family
    for family in (
        # dense
        _family("llama", "llama31"),
        _family("llama32", "llama32", model_type="llama", tie_word_embeddings=True),
        _family("llama_hermes", "hermes3", model_type="llama"),
        _family("llama_deepseek", "deepseek_r1", model_type="llama"),
        _family("qwen2", "qwen25"),
        # with rows beyond its tokens, as published: transformers adds one to tokenizers of Qwen 2
        _family("qwen2_deepseek", "deepseek_r1", model_type="qwen2", vocab_size=512),
        _family("qwen2_qwq", "qwq", model_type="qwen2"),
        _family("qwen3", "qwen3"),
        _family("gemma", "gemma2"),
        _family("gemma2", "gemma2", layer_types=_MIXED_WINDOWS, attn_logit_softcapping=5.0,
                final_logit_softcapping=3.0, query_pre_attn_scalar=8),
        _family("gemma3_text", "gemma3", num_hidden_layers=6, layer_types=_FIVE_WINDOWS, query_pre_attn_scalar=8),
        _family("gemma3n_text", "gemma3", num_hidden_layers=4, num_kv_shared_layers=2, intermediate_size=[64] * 4,
                layer_types=_MIXED_WINDOWS * 2, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
                # sizes of both that Google has published: llama.cpp knows no others
                hidden_size_per_layer_input=256, laurel_rank=64),
        _family("gemma4_text", "gemma4", num_hidden_layers=4, num_kv_shared_layers=2, num_experts=None,
                layer_types=_MIXED_WINDOWS * 2, num_global_key_value_heads=1),
        # with a scale of its own, which no model of its size that Google has published has
        _family("vaultgemma", "gemma2", layer_types=_MIXED_WINDOWS, query_pre_attn_scalar=12),
        # with a window that the rows of a proof fit into, here and below where it is 256: llama.cpp leaves it out
        _family("mistral", "mistral_spm", sliding_window=256),
        _family("ministral", "mistral_nemo", layer_types=_MIXED_WINDOWS, sliding_window=256),
        _family("ministral3", "ministral3", sliding_window=None),
        _family("phi", partial_rotary_factor=0.5, num_key_value_heads=_HEADS, intermediate_size=4 * _HIDDEN),
        _family("phi3", "phi35", sliding_window=256),
        _family("glm", "glm46", partial_rotary_factor=0.5),
        _family("glm4", "glm46", partial_rotary_factor=0.5),
        _family("granite", "granite33", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.7,
                attention_multiplier=0.3),
        _family("smollm3", "qwen3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0],
                layer_types=["full_attention"] * 4),
        _family("olmo", clip_qkv=4.0),
        _family("olmo2", "chatml"),
        _family("olmo3", "chatml", layer_types=_MIXED_WINDOWS),
        _family("falcon", multi_query=True, ffn_hidden_size=4 * _HIDDEN),
        _family("falcon_alibi", model_type="falcon", ffn_hidden_size=4 * _HIDDEN, alibi=True,
                new_decoder_architecture=False, multi_query=False),
        _family("nemotron", "chatml_pieces", partial_rotary_factor=0.5),
        _family("cohere", logit_scale=0.25),
        # Command R+: llama.cpp takes it by its number of layers, 64
        _family("cohere_plus", model_type="cohere", logit_scale=0.25, use_qk_norm=True),
        _family("cohere2", logit_scale=0.25, num_hidden_layers=4, layer_types=_THREE_WINDOWS),
        _family("starcoder2", sliding_window=256),
        _family("gpt2", "chatml_gpt2", n_inner=None),
        _family("gpt_bigcode", n_inner=None),
        _family("gpt_neo", attention_types=[[["global", "local"], 1]]),
        _family("gpt_neox"),
        _family("gptj"),
        _family("codegen"),
        _family("bloom"),
        _family("mpt"),
        _family("opt"),
        _family("stablelm", partial_rotary_factor=0.5, use_qkv_bias=True),
        # the model of 1.2B has no windows; that of 32B has, by which llama.cpp takes it where it has 64 layers
        _family("exaone4", sliding_window=None, layer_types=["full_attention"] * 2),
        _family("exaone4_windows", model_type="exaone4", layer_types=_MIXED_WINDOWS),
        _family("ernie4_5", "chatml_pieces"),
        _family("hunyuan_v1_dense"),
        _family("seed_oss", "qwen3"),
        _family("apertus"),
        _family("arcee"),
        _family("bitnet", tie_word_embeddings=True),
        _family("helium"),
        _family("persimmon"),
        _family("xglm"),
        _family("minicpm3", num_key_value_heads=_HEADS),
        _family("diffllama"),
        _family("cwm", "llama31", layer_types=_MIXED_WINDOWS, sliding_window=256),
        _family("nanochat"),
        _family("doge"),
        _family("hyperclovax"),
        _family("jais2"),
        _family("granite_swa", "granite33", layer_types=_MIXED_WINDOWS, **_GRANITE),
        _family("youtu", num_key_value_heads=_HEADS, head_dim=None),
        _family("biogpt"),
        _family("modernbert-decoder", "llama31", local_attention=32),
        # with a scale for each logit, and layers that are gone through twice
        _family("dory", num_hidden_layers=3, n_input_layers=1, n_output_layers=1,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        # read from left to right: as published it reads prompts in both directions, and is refused
        _family("hrm_text", prefix_lm=False),
        # experts
        _family("mixtral", "mistral_nemo", sliding_window=None),
        _family("qwen2_moe", "qwen25", decoder_sparse_step=1),
        # with weights of experts that add up to 1, as published: llama.cpp takes them for granted
        _family("qwen3_moe", "qwen3_2507", decoder_sparse_step=1, norm_topk_prob=True),
        _family("qwen3_moe_coder", "qwen3_coder", model_type="qwen3_moe", decoder_sparse_step=1, norm_topk_prob=True),
        _family("gpt_oss", "gpt_oss", layer_types=_MIXED_WINDOWS),
        # without the noise that its routers draw in training, so that its losses can be compared
        _family("phimoe", "phi35_small", sliding_window=WINDOW_TOKENS, router_jitter_noise=0.0, input_jitter_noise=0.0),
        _family("glm4_moe", "glm46", partial_rotary_factor=0.5),
        _family("glm4_moe_lite", "glm46", num_key_value_heads=_HEADS),
        _family("granitemoe", "granite33", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.7,
                attention_multiplier=0.3),
        _family("olmoe", num_key_value_heads=_HEADS),
        _family("deepseek_v2", "deepseek_coder", num_key_value_heads=_HEADS, head_dim=None),
        _family("deepseek_v3", "deepseek_v31", num_key_value_heads=_HEADS, head_dim=None, rope_parameters=_YARN,
                scoring_func="sigmoid"),
        _family("kimi_k2", "kimi_k2", model_type="deepseek_v3", num_key_value_heads=_HEADS, head_dim=None),
        _family("ernie4_5_moe"),
        _family("hunyuan_v1_moe"),
        _family("dots1", num_key_value_heads=_HEADS, layer_types=_MIXED_WINDOWS, sliding_window=256),
        _family("minimax_m2", "qwen3", scoring_func="sigmoid"),
        _family("dbrx", attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
                ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}),
        _family("jetmoe", kv_channels=8),
        _family("flex_olmo"),
        _family("granitemoe_swa", "granite33", layer_types=_MIXED_WINDOWS, **_GRANITE),
        _family("flint", layer_types=_MIXED_WINDOWS, mlp_only_layers=[0]),
        _family("kolibri1", layer_types=_MIXED_WINDOWS),
        _family("mellum", layer_types=_MIXED_WINDOWS),
        # with heads of another number in each layer, as published
        _family("laguna", layer_types=_MIXED_WINDOWS, num_attention_heads_per_layer=[2, 4],
                mlp_layer_types=["dense", "sparse"], moe_routed_scaling_factor=1.5, moe_router_logit_softcapping=2.0),
        _family("afmoe", layer_types=_MIXED_WINDOWS, mup_enabled=True, route_scale=1.5, num_shared_experts=1),
        _family("exaone_moe", layer_types=_MIXED_WINDOWS),
        _family("cohere2_moe", layer_types=_MIXED_WINDOWS, logit_scale=0.25, num_shared_experts=1,
                mlp_layer_types=["dense", "sparse"]),
        _family("mimo_v2_flash", layer_types=_MIXED_WINDOWS),
        _family("solar_open"),
        _family("hy_v3"),
        # with more heads that choose keys than would leave ties
        _family("deepseek_v32", num_key_value_heads=_HEADS, head_dim=None, index_topk=8, index_head_dim=8,
                index_n_heads=16),
        # with limits that its gates reach
        _family("deepseek_v4", head_dim=8, num_key_value_heads=1, o_groups=2, o_lora_rank=8, index_n_heads=16,
                index_head_dim=8, index_topk=4, swiglu_limit=0.5),
        # state-space, linear attention and hybrids
        _family("qwen3_next", "qwen3_2507", layer_types=_MIXED_LINEAR, decoder_sparse_step=1),
        # with sections of the width of its heads: without any, llama.cpp takes those of the published ones, 32 wide
        _family("qwen3_5_text", "qwen35", layer_types=_MIXED_LINEAR, rope_parameters=_PARTIAL_MROPE),
        _family("qwen3_5_moe_text", "qwen35", layer_types=_MIXED_LINEAR, rope_parameters=_PARTIAL_MROPE),
        # with keys chosen block by block, streams of residuals, and embeddings of the last two and three tokens
        _family("qwen4_exp_text", "qwen35", layer_types=["linear_attention", "indexed_attention"],
                rope_parameters=_PARTIAL_MROPE, hc_count=2, hc_lowrank=8, ple_layer_ids=[1], heads_per_ngram=2,
                ngram_vocab_size_base=40, make_ngram_vocab_size_divisible_by=8, split_ngram_parts=2,
                indexer_n_heads=16, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
                indexer_compress_ratio=4),
        _family("granitemoehybrid", "granite33", layer_types=["mamba", "attention"], num_local_experts=4,
                embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.7, attention_multiplier=0.3),
        _family("lfm2", "lfm25", layer_types=["conv", "full_attention"]),
        _family("lfm2_moe", "lfm25", layer_types=["conv", "full_attention"]),
        _family("falcon_h1", lm_head_multiplier=0.6, embedding_multiplier=2.0, key_multiplier=0.5,
                attention_out_multiplier=0.8, ssm_in_multiplier=0.7, mlp_multipliers=[0.9, 0.8]),
        _family("mamba"),
        _family("mamba2", num_heads=4, head_dim=16, n_groups=1),
        _family("falcon_mamba"),
        _family("jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
                use_mamba_kernels=False),
        _family("bamba", attn_layer_indices=[1]),
        _family("zamba2", num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "mamba"], adapter_rank=4,
                num_key_value_heads=_HEADS, use_mamba_kernels=False),
        _family("nemotron_h", "nemotron3", layers_block_type=["mamba", "attention", "moe"], n_groups=1,
                num_hidden_layers=None, use_mamba_kernels=False),
        _family("kimi_linear", "kimi_k2", num_key_value_heads=_HEADS, head_dim=None, layer_types=_MIXED_LINEAR,
                mlp_layer_types=["dense", "sparse"], q_lora_rank=None),
        _family("minimax", layer_types=_MIXED_LINEAR),
        _family("recurrent_gemma", "gemma2", num_hidden_layers=3),
        _family("olmo_hybrid", layer_types=_MIXED_LINEAR),
        _family("rwkv", attention_hidden_size=_HIDDEN),
        _family("lfm3", "lfm25", num_hidden_layers=3, layer_types=["conv", "sliding_attention", "full_attention"]),
        _family("lara_mini", num_hidden_layers=3,
                layer_types=["linear_attention", "sliding_attention", "full_attention"]),
        _family("zaya", layer_types=["hybrid", "hybrid_sliding"], num_experts_per_tok=1, router_hidden_size=16),
        _family("inkling_text", swa_num_attention_heads=_HEADS, swa_num_key_value_heads=2, swa_head_dim=8,
                sliding_window_size=WINDOW_TOKENS, d_rel=4, rel_extent=32, mlp_layer_types=["dense", "sparse"],
                layer_types=None),
        # with a vision tower
        _family("gemma3", "gemma3", mm_tokens_per_image=4, text_config={
            "num_hidden_layers": 6, "layer_types": _FIVE_WINDOWS, "query_pre_attn_scalar": 8,
        }),
        _family("gemma4", "gemma4", audio_config=None, text_config={
            "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": _MIXED_WINDOWS * 2,
            "num_global_key_value_heads": 1, "num_experts": None,
        }),
        _family("gemma4_unified", "gemma4", text_config={
            "num_hidden_layers": 4, "layer_types": _MIXED_WINDOWS * 2, "num_global_key_value_heads": 1,
        }),
        _family("mistral3", "mistral_small", text_config={"sliding_window": None}),
        _family("mistral3_ministral", "ministral3", model_type="mistral3",
                text_config={"model_type": "ministral3", "sliding_window": None}),
        _family("qwen2_vl", "qwen25", text_config={"rope_parameters": _MROPE}),
        _family("qwen2_5_vl", "qwen25", text_config={"rope_parameters": _MROPE},
                vision_config={"fullatt_block_indexes": [1]}),
        _family("qwen3_vl", "qwen3_vl", text_config={"rope_parameters": _MROPE},
                vision_config={"deepstack_visual_indexes": [0]}),
        _family("qwen3_5", "qwen35", text_config={"layer_types": _MIXED_LINEAR, "rope_parameters": _PARTIAL_MROPE}),
        _family("qwen3_5_moe", "qwen35", text_config={
            "layer_types": _MIXED_LINEAR, "rope_parameters": _PARTIAL_MROPE,
        }),
        _family("llama4", "llama31", text_config={
            "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0], "moe_layers": [1],
            "interleave_moe_layer_step": 2,
        }, vision_config=_LLAMA4_VISION),
        # as published, which llama.cpp takes for granted: chunks of 8,192 tokens in three of four layers
        _family("llama4_scout", "llama31", model_type="llama4", text_config={
            "num_hidden_layers": 4, "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
            "no_rope_layers": [1, 1, 1, 0], "moe_layers": [0, 1, 2, 3], "interleave_moe_layer_step": 1,
            "attention_chunk_size": 8192,
        }, vision_config=_LLAMA4_VISION),
        _family("lfm2_vl", "lfm25", text_config={"layer_types": ["conv", "full_attention"]}),
        _family("smolvlm", "chatml", text_config={}),
        _family("llava", "chatml", text_config={}),
        _family("glm4v", "glm46", text_config={"rope_parameters": _MROPE | {"partial_rotary_factor": 1.0}}),
        _family("cohere2_vision", "chatml", text_config={
            "num_hidden_layers": 4, "layer_types": _THREE_WINDOWS, "logit_scale": 0.25,
        }),
    )
}  # fmt: skip


def make_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the tiny model of a family as a transformers folder and return the folder. Equal arguments, equal bytes."""
    family = FAMILIES[name]
    tokenizer = make_tokenizer(family.maker)
    config = family_config(family, vocabulary=len(tokenizer), tokens={
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    })  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = _model_of(config)
        for parameter in model.parameters():
            # zeros and ones of a start would hide a bias, a gate or a norm that is forgotten
            if parameter.ndim == 1:
                parameter.data += 0.05 * torch.randn_like(parameter)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(family.maker, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def family_config(family: Family, *, vocabulary: int, tokens: Mapping[str, int | None]) -> PretrainedConfig:
    """The config of a family in small sizes. tokens: the ids of the special tokens."""
    own = dict(family.config)
    return AutoConfig.for_model(family.model_type, **_sized(CONFIG_MAPPING[family.model_type], own, vocabulary, tokens))


def _sized(kind: type, own: Mapping[str, Any], vocabulary: int, tokens: Mapping[str, int | None]) -> dict[str, Any]:
    """Arguments for a config class: small sizes where it has them, then its own, and the same for configs within."""
    known = set(getattr(kind, "__dataclass_fields__", ())) | set(inspect.signature(kind.__init__).parameters)
    own = dict(own)
    sizes = {**_SMALL, "vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary, **tokens}
    sized = {name: value for name, value in sizes.items() if name in known}
    for name, inner in getattr(kind, "sub_configs", {}).items():
        given = own.pop(name, {})
        if given is None or name in ("attn_config", "ffn_config"):
            sized[name] = given
            continue
        made = _inner_kind(inner, name, given, kind)
        sized[name] = _sized(made, given, vocabulary, tokens)
        if name != "text_config":
            sized[name].update({k: v for k, v in _SMALL_VISION.items() if k in sized[name] and k not in given})
            sized[name] = {k: v for k, v in sized[name].items() if k not in (*tokens, "vocab_size")}
        if "model_type" not in given and getattr(made, "model_type", ""):
            sized[name]["model_type"] = made.model_type
    for name, value in own.items():
        if value is None and name not in ("sliding_window", "q_lora_rank"):
            sized.pop(name, None)
        else:
            sized[name] = value
    return sized


def _inner_kind(declared: type, name: str, given: Mapping[str, Any], outer: type) -> type:
    """The class of a config within another; where any may be there, the one that the outer config has by itself."""
    if "model_type" in given:
        return CONFIG_MAPPING[given["model_type"]]
    if getattr(declared, "model_type", "") in CONFIG_MAPPING:
        return declared
    return type(getattr(outer(), name)) if declared.__name__.startswith("Auto") else declared


def _model_of(config: PretrainedConfig) -> PreTrainedModel:
    # a config that has both classes is published with its vision tower
    has_vision = getattr(config, "vision_config", None) is not None
    kind = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    return model
