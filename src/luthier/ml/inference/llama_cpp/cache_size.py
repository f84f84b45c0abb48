"""How many tokens llama.cpp keeps keys and values of, and what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from luthier.ml.inference.models.gguf.files import GgufHeader, read_gguf_header

DEFAULT_SLOTS: Final = 16
CACHE_BYTES: Final = 512 << 20


def memory_bytes(model: Path) -> int:
    """What the engine takes for a GGUF model with its own defaults: weights, keys and values."""
    header = read_gguf_header(model)
    token_bytes = bytes_of_a_token(header)
    return model.stat().st_size + token_bytes * pool_tokens(header, DEFAULT_SLOTS, CACHE_BYTES // token_bytes)


def pool_tokens(header: GgufHeader, num_slots: int, most_tokens: int) -> int:
    """Tokens whose keys and values are kept: one answer of a whole context always fits, above any maximum.

    Args:
        header: of the model.
        num_slots: answers that are written together.
        most_tokens: that fit into memory.
    """
    context = header.number("context_length", 4096)
    return max(context, min(num_slots * context, most_tokens))


def bytes_of_a_token(header: GgufHeader) -> int:
    """Of its keys and values, in 16 bits, over all layers."""
    heads = header.number("attention.head_count", 1)
    width = header.number("embedding_length", 0) // max(heads, 1)
    sides = header.number("attention.key_length", width) + header.number("attention.value_length", width)
    # Two bytes a number. Per-layer head counts (a list) are not read: then `heads` is taken, an upper bound.
    return max(1, header.number("block_count", 1) * header.number("attention.head_count_kv", heads) * sides * 2)
