"""Token ids of many texts that share parts: each part between control tokens is encoded once.

A tokenizer takes its added tokens out of a text before it normalises, splits and merges what is between them, each
part by itself. So the ids of a text are those of its pieces, one after another, where a piece begins with an added
token that is found wherever its characters are (`cut_tokens`). A prompt and the same prompt with its answer differ in
their last pieces alone, and a system prompt is a piece of all rows.

The tokenizers library may change, and its settings are many. So fixed texts are encoded in pieces and as a whole when
an encoder is made (`probe_texts`); where the ids differ, no text is cut.
"""

from __future__ import annotations

import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from typing import Final

from tokenizers import AddedToken, Tokenizer

from luthier.ml.inference.models.token_counter import encodings

_EDGES: Final = frozenset(string.punctuation) - {"_"}
"""First and last characters of a token at which no neighbour looks for more of a word or for white space."""
_NEIGHBOURS: Final = (
    "", " ", "wood", "\n", " Wood", "12", "  ", "e\u0301", ".", "\n\n", "🎻", "\u00a0", "user\n", "木", "\t", "\u0301",
    "_",
)  # fmt: skip
"""Texts beside a token. Their number is a prime, so that steps of any size reach all of them."""
_PROBED_TOKENS: Final = 256
"""About how many occurrences of tokens are probed: they take a millisecond or two."""


class PieceEncoder:
    """Encodes texts by a tokenizer that neither truncates nor pads.

    Args:
        backend: Of the tokenizers library.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        found = cut_tokens(backend)
        self._cut = re.compile(_pattern(found)) if found else None
        texts = probe_texts(found)
        if self.encode_all(texts) != [encoding.ids for encoding in encodings(backend, texts)]:
            self._cut = None

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
    plain = {token.content for token in added if _is_plain(token)}
    # Those of the normalised text are searched later, between the others.
    early = sorted({token.content for token in added if not token.normalized})
    return tuple(sorted(_alone(plain, early)))


def probe_texts(tokens: Sequence[str]) -> list[str]:
    """Texts in which each token has letters, digits, white space, combining marks and other tokens beside it.

    Args:
        tokens: Of `cut_tokens`. Few of them get all neighbours; of thousands some are probed, with some neighbours.
    """
    if not tokens:
        return []
    tokens = tokens[:: -(-len(tokens) // _PROBED_TOKENS)]
    num_rounds = min(_PROBED_TOKENS // len(tokens), len(_NEIGHBOURS))
    texts = []
    for turn in range(num_rounds):
        # Steps of another size in each round: other pairs before and behind a token.
        beside = (_NEIGHBOURS[(turn + at * (turn + 1)) % len(_NEIGHBOURS)] for at in range(len(tokens) + 1))
        texts.append("".join(part + token for part, token in zip(beside, (*tokens, ""), strict=True)))
    return texts


def _is_plain(token: AddedToken) -> bool:
    if token.normalized or token.lstrip or token.rstrip or token.single_word:
        return False
    return token.content[:1] in _EDGES and token.content[-1:] in _EDGES


def _alone(tokens: Collection[str], others: Sequence[str]) -> Iterator[str]:
    """The tokens that no match of another one, which begins earlier or is longer, can overlap.

    Some models have thousands of added tokens: what others end with is sorted, and nothing is compared pair by pair.

    Args:
        tokens: Not empty strings.
        others: Sorted, each once; the tokens are among them.
    """
    firsts = {token[0] for token in tokens}
    ends = sorted({other[start:] for other in others for start in range(1, len(other)) if other[start] in firsts})
    known = set(ends)
    for token in tokens:
        is_longer_known = _begins(others, bisect_right(others, token), token)
        is_within = _begins(ends, bisect_left(ends, token), token)
        if not is_longer_known and not is_within and known.isdisjoint(token[:num] for num in range(1, len(token))):
            yield token


def _begins(texts: Sequence[str], at: int, beginning: str) -> bool:
    return at < len(texts) and texts[at].startswith(beginning)


def _pattern(tokens: Iterable[str]) -> str:
    """A regular expression that finds any of the tokens, with what they begin with in common written once.

    Thousands of alternatives would be tried one by one at each place.
    """
    branches = []
    for _, group in groupby(sorted(tokens), key=lambda token: token[:1]):
        same = list(group)
        # Sorted: what the first and the last have in common, all have.
        common = "".join(
            one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(same[0], same[-1], strict=False))
        )
        rest = f"(?:{_pattern(token[len(common) :] for token in same)})" if len(same) > 1 else ""
        branches.append(re.escape(common) + rest)
    return "|".join(branches)
