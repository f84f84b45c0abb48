"""py3langid's model (naive Bayes over byte n-grams), run on many texts together.

The model's automaton over bytes is run here as array operations, several times as fast as one text after another.

Source: Lui and Baldwin, 2012, "langid.py: An Off-the-shelf Language Identification Tool", ACL.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from scipy.sparse import csr_array


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A finite automaton that finds byte n-grams, and a naive Bayes over them.

    Attributes:
        moves: int32 [rows * 256], state row * 256 + byte -> next state.
        offsets: int32 [states], state -> its row * 256.
        features: int32 [states], the feature found in a state, or -1.
        weights: float32 [features, classes], log-probabilities.
        priors: float32 [classes], log-probabilities.
        names: language of each class; one may have several.
    """

    moves: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    features: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    priors: npt.NDArray[np.float32]
    names: tuple[str, ...]

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """For each text the likeliest language and its probability, as `LanguageIdentifier.classify` gives them."""
        data = [_bytes_of(text) for text in texts]
        lengths = np.fromiter(map(len, data), dtype=np.int64, count=len(data))
        counts = self._counts(data, lengths)
        scores = counts @ self.weights + self.priors
        # Naive Bayes is too sure of long texts, since n-grams depend on each other; py3langid damps it so.
        scores /= np.sqrt(np.maximum(lengths, 1))[:, None]
        scores[np.diff(counts.indptr) == 0] = 0.0  # nothing found: all languages equal
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        best = self._merged(scores)
        return [(self.names[place], float(scores[row, place])) for row, place in enumerate(best)]

    def _counts(self, data: list[bytes], lengths: npt.NDArray[np.int64]) -> csr_array:
        """log(1 + how often), sparse [texts, features]. All texts take one byte at a time, side by side."""
        # Longest first, so that the texts that still have bytes are always a prefix of the arrays.
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        padded = b"".join(data[row].ljust(longest, b"\0") for row in order)
        # [longest, texts]: one row holds the n-th byte of every text.
        letters = np.frombuffer(padded, dtype=np.uint8).reshape(len(data), longest).T.astype(np.int32)
        # How many texts are longer than each position: the others have left the loop by then.
        num_active = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
        states = np.zeros(len(data), dtype=np.int32)
        found_rows, found_features = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for step in range(longest):
            num = num_active[step]
            states = self.moves[self.offsets[states[:num]] + letters[step, :num]]
            features = self.features[states]
            hits = np.flatnonzero(features >= 0)
            found_rows.append(order[hits])
            found_features.append(features[hits].astype(np.int64))
        num_features = len(self.weights)
        # (text, feature) in one number, so that one sort counts all occurrences.
        keys = np.concatenate(found_rows) * num_features + np.concatenate(found_features)
        unique, counts = np.unique(keys, return_counts=True)
        starts = np.searchsorted(unique, np.arange(len(data) + 1) * num_features)
        values = np.log1p(counts.astype(np.float32))
        return csr_array((values, unique % num_features, starts), shape=(len(data), num_features))

    def _merged(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
        """Add up the classes of one language in its first, in place; the place of the best."""
        first: dict[str, int] = {}
        for place, name in enumerate(self.names):
            if (kept := first.setdefault(name, place)) != place:
                scores[:, kept] += scores[:, place]
                scores[:, place] = 0.0
        best: npt.NDArray[np.intp] = scores.argmax(axis=1)
        return best


@functools.lru_cache(maxsize=1)
def load_language_model() -> LanguageModel:
    """The model in the package py3langid (142 classes; takes about half a second and 100 MB).

    Loaded once in a process: an audit and each look of the monitor need it several times. Its arrays are only read.
    """
    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    return LanguageModel(
        moves=np.asarray(found.tk_nextmove, dtype=np.int32),
        offsets=np.asarray(found.tk_row, dtype=np.int32) << 8,
        features=np.asarray(found.tk_output, dtype=np.int32),
        weights=np.asarray(found.nb_ptc, dtype=np.float32),
        priors=np.asarray(found.nb_pc, dtype=np.float32),
        names=tuple(found.nb_classes),
    )


def _bytes_of(text: str) -> bytes:
    # As py3langid does: a text in capitals has hardly any n-grams that it knows.
    if text.isupper():
        text = text.lower()
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
