"""Count the tokens of many texts fast: only the tokenizer of a model is loaded, and torch is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.library_errors import library_reason

CountTokens = Callable[[Sequence[str]], list[int]]


def token_counter(folder: Path) -> CountTokens:
    """A function that gives for each text the number of its tokens, special tokens of the model not added.

    Texts are encoded on all cores (RAYON_NUM_THREADS, or TOKENIZERS_PARALLELISM=false for one).

    Args:
        folder: a transformers folder. Its tokenizer.json is read directly; where there is none, transformers rebuilds
            the fast tokenizer.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: no tokenizer that can be read.
    """
    tokenizer = _load(folder)
    # A saved tokenizer may cut or pad what it encodes, which would be counted.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in found]

    return count


def _load(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}", expected="a model's folder", do="pull the model again")
    if not file.is_file():
        from luthier.ml.inference.models.loading import (
            load_tokenizer,  # brings torch; only for folders of an older make
        )

        rebuilt: Tokenizer = load_tokenizer(folder).backend_tokenizer
        return rebuilt
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ModelSourceError(
            f"{file} cannot be read: {library_reason(error)}",
            expected="the tokenizer of a transformers folder",
            do="pull the model again, or write it again with `tokenizer.save_pretrained`",
        ) from error
