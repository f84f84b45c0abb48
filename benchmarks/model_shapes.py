"""Shapes of known models, from their published configurations, to be filled with random weights: nothing is fetched.

Llama 3 8B: Grattafiori et al., 2024, "The Llama 3 Herd of Models", arXiv:2407.21783, table 3. Qwen2.5 7B: Qwen Team,
2024, "Qwen2.5 Technical Report", arXiv:2412.15115, and the figures of its model card. Speed and memory do not depend on
what the weights are.
"""

from __future__ import annotations

from typing import Any, Final

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
    "qwen-2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}
"""By name, the entries of a config.json."""
