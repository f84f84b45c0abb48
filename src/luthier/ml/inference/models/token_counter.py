"""Token counts without a model: fast counts of many texts, and a lower bound without tokenisation.

Counting loads only the tokenizer of a model, without torch. The lower bound is the text's bytes divided by those of the
longest token. It holds if every byte of a text ends up in some token: byte-level BPE, and BPE or Unigram with byte
fallback, after a pre-tokenizer that only splits. Other tokenizers (WordPiece, word lists, an unknown token for any
length) have no bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tokenizers import Encoding, Tokenizer

from luthier.core.errors import ModelSourceError, NotFoundError, library_reason
from luthier.core.ids import sha256_document, sha256_file
from luthier.ml.inference.models.architecture import TOKENIZER_FILES

_NUM_BYTES: Final = 256
_NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "Nmt", "ByteLevel"})
_SPLITTERS: Final = frozenset({"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "UnicodeScripts"})
_BLANKS: Final = re.compile(r"\s+")
_BATCH_CHARACTERS: Final = 2 << 20


class TokenBytes:
    """The bound of one tokenizer.

    Attributes:
        longest: maximum bytes of text per token; None if the tokenizer has no bound.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._normalizer = backend.normalizer
        added = backend.get_added_tokens_decoder().values()
        # Such a token absorbs all adjacent blanks, however many.
        self._swallows_blanks = any(token.lstrip or token.rstrip for token in added)
        self._lost = _lost_bytes(backend) if _is_byte_level(backend) else b""
        self.longest = _longest_token_bytes(backend)

    def least_tokens(self, text: str) -> int:
        """A lower bound on the tokens of the text; 0 if there is none."""
        if self.longest is None:
            return 0
        written = text if self._normalizer is None else str(self._normalizer.normalize_str(text))
        if self._swallows_blanks:
            written = _BLANKS.sub(" ", written)
        num_bytes = len(written.encode(errors="surrogatepass").translate(None, self._lost))
        return -(-num_bytes // self.longest)


def _longest_token_bytes(backend: Tokenizer) -> int | None:
    normalizers, splitters = _types(backend.normalizer), list(_parts(backend.pre_tokenizer))
    names = {str(one.get("type")) for one in splitters}
    if not normalizers <= _NORMALIZERS or not names <= _SPLITTERS:
        return None
    # A splitter that removes its separators: these bytes have no token.
    if any(one.get("behavior") == "Removed" for one in splitters):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    is_byte_level = _is_byte_level(backend)
    if not is_byte_level and not _falls_back(backend.model, vocabulary):
        return None
    # In a byte-level vocabulary a character represents a byte; added tokens are written as they are.
    # A token that absorbs adjacent blanks represents one more on that side: a run of them counts as one.
    added = {
        token.content: len(token.content.encode()) + token.lstrip + token.rstrip
        for token in backend.get_added_tokens_decoder().values()
    }
    own = (len(token) if is_byte_level else len(token.encode()) for token in vocabulary if token not in added)
    return max(max(own, default=0), max(added.values(), default=0), 1)


def _is_byte_level(backend: Tokenizer) -> bool:
    return "ByteLevel" in _types(backend.normalizer) | _types(backend.pre_tokenizer)


def _lost_bytes(backend: Tokenizer) -> bytes:
    """Bytes without a token in a byte-level vocabulary, such as control characters: they disappear."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return bytes(byte for byte, letter in _byte_letters().items() if letter not in vocabulary)


def _byte_letters() -> dict[int, str]:
    """How a byte-level vocabulary writes a byte (GPT-2, Radford et al. 2019, `bytes_to_unicode`)."""
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(_NUM_BYTES) if byte not in own]
    letters = {byte: chr(byte) for byte in own}
    return letters | {byte: chr(_NUM_BYTES + place) for place, byte in enumerate(others)}


def _falls_back(model: Any, vocabulary: dict[str, int]) -> bool:
    falls_back = bool(getattr(model, "byte_fallback", False))
    return falls_back and all(f"<0x{byte:02X}>" in vocabulary for byte in range(_NUM_BYTES))


def _types(part: Any) -> set[str]:
    return {str(one.get("type")) for one in _parts(part)}


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """The components of a normalizer or pre-tokenizer, with sequences flattened."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        one = waiting.pop()
        within = one.get("normalizers") or one.get("pretokenizers")
        if within is None:
            yield one
        else:
            waiting += within


CountTokens = Callable[[Sequence[str]], list[int]]


def token_counter(folder: Path) -> CountTokens:
    """A function that returns the number of tokens of each text, without added special tokens.

    Texts are encoded on all cores (RAYON_NUM_THREADS, or TOKENIZERS_PARALLELISM=false for one).

    Args:
        folder: a transformers folder. Its tokenizer.json is read directly; without one, transformers rebuilds the fast
            tokenizer.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: no tokenizer that can be read.
    """
    tokenizer = load_backend(folder)
    # A saved tokenizer may truncate or pad, which would change the counts.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    # Not a local function, which could not be sent to another process.
    return partial(_num_tokens, tokenizer)


def _num_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [len(encoding) for encoding in encodings(tokenizer, texts)]


def encodings(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[Encoding]:
    """What a tokenizer makes of each text, without added special tokens, on all cores.

    An encoding takes some hundred bytes a token, so that those of two million characters at a time are in memory.

    Args:
        tokenizer: encodes.
        texts: any number of them.
    """
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _BATCH_CHARACTERS:
            yield from tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            batch, num_characters = [], 0
    if batch:
        yield from tokenizer.encode_batch_fast(batch, add_special_tokens=False)


def load_backend(folder: Path) -> Tokenizer:
    """The fast tokenizer of a transformers folder, without torch if the folder has a tokenizer.json.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: no tokenizer that can be read.
    """
    file = folder / "tokenizer.json"
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}", expected="a model's folder", do="pull the model again")
    if not file.is_file():
        from luthier.ml.inference.models.loading import (
            load_tokenizer,  # imports torch; only for folders in an older format
        )

        rebuilt: Tokenizer = load_tokenizer(folder).backend_tokenizer
        return rebuilt
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ModelSourceError(
            f"{file} cannot be read: {library_reason(error)}",
            expected="the tokenizer of a transformers folder",
            do="pull the model again, or write it again with `tokenizer.save_pretrained`",
        ) from error


def tokenizer_digest(folder: Path) -> str:
    """The SHA-256 of a folder's tokenizer.json; without one, a digest of the files that its tokenizer is built from."""
    if (file := folder / "tokenizer.json").is_file():
        return sha256_file(file)
    files = [folder / name for name in TOKENIZER_FILES]
    return sha256_document({file.name: sha256_file(file) for file in files if file.is_file()})
