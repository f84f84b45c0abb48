"""How a published embedding model makes its vectors: which states, and what is put around each text.

Such a model is a folder with the files of sentence-transformers beside its weights (`core.records.published_head`).
Its tokenizer may end every text with a token, whose state is then the vector. Read in another way, the model is far
worse than it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.records.published_head import OwnEmbedding, own_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["OwnEmbedding", "own_embedding", "own_ending"]


def own_ending(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that a tokenizer puts behind every text by itself; empty for most."""
    backend = tokenizer.backend_tokenizer
    bare, whole = (backend.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    for before in (list[int](), whole[:1]):
        if whole[:-1] == [*before, *bare]:
            return str(tokenizer.convert_ids_to_tokens(whole[-1]))
    return ""
