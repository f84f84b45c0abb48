"""The token embeddings of a base model, read from disk without building the model.

Only the rows of tokens that occur are read, so a table of 150,000 tokens costs little memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.ml.inference.models.token_counter import encodings, load_backend
from luthier.ml.inference.models.weights import weight_files

_TABLE: Final = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in|embeddings)\.weight$")
"""Names of input embeddings in transformers; position and type embeddings have other names."""


class TokenTable:
    """Token ids of texts, and the vectors of tokens.

    Raises:
        ModelSourceError: there is no tokenizer, or no embedding table in safetensors.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_backend(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._file, self._name, self._num_rows = _find(folder, self._tokenizer.get_vocab_size())

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens and without ids beyond the table."""
        # A lone surrogate is not a character that a tokenizer accepts.
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        return [[one for one in encoding.ids if one < self._num_rows] for encoding in encodings(self._tokenizer, clean)]

    def vectors(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The embeddings of these tokens in float32: [ids, width]."""
        import torch
        from safetensors import safe_open

        with safe_open(self._file, framework="pt") as file:
            rows = file.get_slice(self._name)
            found: np.ndarray[Any, np.dtype[np.float32]] = (
                torch.cat([rows[one : one + 1] for one in ids]).float().numpy()
            )
        return found


def token_table(folder: Path) -> TokenTable | None:
    """The embedding table of a base model; None if it cannot be read directly (packed weights, another name)."""
    try:
        return TokenTable(folder)
    except (ModelSourceError, NotFoundError):
        return None


def _find(folder: Path, num_tokens: int) -> tuple[Path, str, int]:
    """The file, the name and the number of rows of the embedding table."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                shape = file.get_slice(name).get_shape() if _TABLE.search(name) else []
                # A segment or position table has far fewer rows than there are tokens.
                if len(shape) == 2 and shape[0] >= 0.9 * num_tokens:
                    return path, name, int(shape[0])
    raise ModelSourceError(
        f"{folder} has no table of token vectors",
        expected="weights in safetensors with an input embedding of two dimensions",
        do="leave out what needs token vectors",
    )
