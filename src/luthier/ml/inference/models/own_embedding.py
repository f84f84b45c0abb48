"""How a published embedding model makes its vectors: which states, and what is put around each text.

Such a model is a folder with the files of sentence-transformers beside its weights (`core.records.published_head`).
Its tokenizer may end every text with a token, whose state is then the vector. Read in another way, the model is far
worse than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.published_head import OwnEmbedding, own_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["OwnEmbedding", "own_embedding", "own_ending", "shortened"]


def own_ending(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that a tokenizer puts behind every text by itself; empty for most."""
    backend = tokenizer.backend_tokenizer
    bare, whole = (backend.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    for before in (list[int](), whole[:1]):
        if whole[:-1] == [*before, *bare]:
            return str(tokenizer.convert_ids_to_tokens(whole[-1]))
    return ""


def shortened(ids: Sequence[int], max_tokens: int, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The first tokens of a text, with the one that the tokenizer puts behind every text, as it cuts texts itself.

    Args:
        ids: of the text.
        max_tokens: how many of them are read.
        tokenizer: of the model.
    """
    if len(ids) <= max_tokens:
        return list(ids)
    end = own_ending(tokenizer)
    last = list(ids[-1:]) if end and ids[-1] == tokenizer.convert_tokens_to_ids(end) else []
    return [*ids[: max_tokens - len(last)], *last]
