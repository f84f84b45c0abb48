"""The language of texts, by `language_model`.

Only the beginning of a text is looked at, and only where it is mostly letters and has enough of them: a language cannot
be known from "OK" or from a table of figures.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from luthier.core.ports import Progress, SilentProgress
from luthier.ml.data.files.row_frames import Texts, map_texts
from luthier.ml.data.text.language_model import load_language_model

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
