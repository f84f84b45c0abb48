"""Token ids of many texts that share parts: each part between control tokens is encoded once.

A tokenizer takes its added tokens out of a text before it normalises, splits and merges what is between them, each
part by itself. So the ids of a text are those of its pieces, one after another, where a piece begins with an added
token that is found wherever its characters are (`cut_tokens`). A prompt and the same prompt with its answer differ in
their last pieces alone, and a system prompt is a piece of all rows.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import Final

from tokenizers import AddedToken, Tokenizer

from luthier.ml.inference.models.token_counter import encodings

_EDGES: Final = frozenset(string.punctuation) - {"_"}
"""First and last characters of a token at which no neighbour looks for more of a word or for white space."""


class PieceEncoder:
    """Encodes texts by a tokenizer that neither truncates nor pads.

    Args:
        backend: Of the tokenizers library.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        found = cut_tokens(backend)
        self._cut = re.compile("|".join(map(re.escape, found))) if found else None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without added special tokens, on all cores.

        Args:
            texts: Any number of them.
        """
        if self._cut is None:
            return [encoding.ids for encoding in encodings(self._backend, texts)]
        divided = [list(self.pieces(text)) for text in texts]
        distinct = dict.fromkeys(piece for pieces in divided for piece in pieces)
        ids = {
            piece: encoding.ids for piece, encoding in zip(distinct, encodings(self._backend, distinct), strict=True)
        }
        # A new list for each text: the lists of shared pieces stay as they are.
        return [[number for piece in pieces for number in ids[piece]] for pieces in divided]

    def pieces(self, text: str) -> Iterator[str]:
        """The parts of a text; all but the first begin with one of `cut_tokens`.

        Args:
            text: Of any length.
        """
        start = 0
        for found in self._cut.finditer(text) if self._cut is not None else ():
            if found.start() > start:
                yield text[start : found.start()]
                start = found.start()
        if start < len(text):
            yield text[start:]


def cut_tokens(backend: Tokenizer) -> tuple[str, ...]:
    """The added tokens at whose beginning any text may be cut without another encoding.

    These are tokens that are searched in the text as it came, that take no white space and ask for no border of a word
    beside them, and that no match of another added token can overlap: the tokenizer finds each of their occurrences.

    Args:
        backend: Of the tokenizers library.
    """
    if backend.encode_special_tokens or getattr(backend.model, "dropout", None):
        return ()  # special tokens are plain text, or merges are drawn by chance
    added = list(backend.get_added_tokens_decoder().values())
    # Those of the normalised text are searched later, between the others.
    early = [token.content for token in added if not token.normalized]
    return tuple(sorted(token.content for token in added if _is_plain(token) and _is_alone(token.content, early)))


def _is_plain(token: AddedToken) -> bool:
    if token.normalized or token.lstrip or token.rstrip or token.single_word:
        return False
    return token.content[:1] in _EDGES and token.content[-1:] in _EDGES


def _is_alone(content: str, others: Sequence[str]) -> bool:
    """Whether no occurrence of a token can be part of a match that begins earlier, or that is longer."""
    for other in others:
        if other != content and other.startswith(content):
            return False
        for start in range(1, len(other)):
            rest = other[start:]
            if rest.startswith(content) or content.startswith(rest):
                return False
    return True
