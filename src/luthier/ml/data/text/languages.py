"""The language of texts, by py3langid's model (naive Bayes over byte n-grams), on many texts together.

The model's automaton over bytes is run here as array operations, several times as fast as one text after another. Only
the beginning of a text is looked at, and only where it is mostly letters and has enough of them: a language cannot be
known from "OK" or from a table of figures.

Source: Lui and Baldwin, 2012, "langid.py: An Off-the-shelf Language Identification Tool", ACL.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from scipy.sparse import csr_array

from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.row_frames import Texts, map_texts


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


UNDETERMINED: Final = "undetermined"
HEAD_CHARACTERS: Final = 250
FEWEST_LETTERS: Final = 20
MIN_LETTER_SHARE: Final = 0.7
MIN_PROBABILITY: Final = 0.5
_BATCH_TEXTS: Final = 2_000
_NO_LANGUAGE: Final = "zxx"
# What represents letters in no language: web addresses, words in snake_case or with digits, escaped line breaks.
_NO_WORDS: Final = r"https?://\S+|\S*[_\d@]\S*|\\n"
# Marks are the vowel signs of Indic scripts.
_LETTERS: Final = r"[\p{L}\p{M}]"


def languages(texts: Texts, progress: Progress | None = None) -> pl.DataFrame:
    """Find the language of each text: columns language (ISO 639 code) and probability (0 to 1).

    Looks at the first 250 characters, cut at the end of a word. "undetermined" with probability 0 where the text is
    null or has fewer than 20 letters, or where letters make up less than 70% of what is no white space (code, figures);
    "undetermined" with the probability of the likeliest language where that is below 0.5. Deterministic.
    """
    found = [pl.DataFrame(schema={"language": pl.String, "probability": pl.Float64})]
    with (progress or SilentProgress()).task("detect languages", len(texts), "text") as task:
        found += (made for _, made in map_texts(texts, _languages_in, advance=task.advance))
    return pl.concat(found)


def _languages_in(texts: pl.Series) -> pl.DataFrame:
    model = load_language_model()
    made = []
    for start in range(0, len(texts), _BATCH_TEXTS):
        words = _words(texts.slice(start, _BATCH_TEXTS))
        clear = words.is_not_null().to_numpy()
        found = model.classify(words.drop_nulls().to_list())
        named = np.full(len(words), UNDETERMINED, dtype=object)
        named[clear] = [
            name if probability >= MIN_PROBABILITY and name != _NO_LANGUAGE else UNDETERMINED
            for name, probability in found
        ]
        sure = np.zeros(len(words))
        sure[clear] = [probability for _, probability in found]
        # Separate series: an array of ten million Python texts would take more memory than the rest.
        columns = {"language": pl.Series(named, dtype=pl.String), "probability": pl.Series(sure, dtype=pl.Float64)}
        made.append(pl.DataFrame(columns))
    return pl.concat(made)


def _words(texts: pl.Series) -> pl.Series:
    """The beginnings, without non-words and without a last word that was cut; null where too little is left."""
    text = pl.col("text").fill_null("")
    head = text.str.head(HEAD_CHARACTERS)
    # One character more than the head: counting the whole text would cost as much as reading it.
    is_cut = text.str.head(HEAD_CHARACTERS + 1).str.len_chars() > HEAD_CHARACTERS
    head = pl.when(is_cut).then(head.str.replace(r"\s\S{1,40}$", "")).otherwise(head)
    words = head.str.replace_all(_NO_WORDS, " ")
    num_letters = words.str.count_matches(_LETTERS)
    num_filled = head.str.replace_all(r"\s+", "").str.len_chars()
    is_clear = (num_letters >= FEWEST_LETTERS) & (num_letters >= MIN_LETTER_SHARE * num_filled)
    return texts.alias("text").to_frame().select(pl.when(is_clear).then(words)).to_series()
