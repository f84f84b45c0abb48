"""Answers that are numbers: ridge regression on the words of the prompt and the numbers in it.

Source: Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970; the penalty is chosen
by leaving one row out, which has a closed form (Golub, Heath and Wahba, "Generalized Cross-Validation", 1979).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from luthier.core.text.written_numbers import (
    NumberMarks,
    marks_in_texts,
    number_format,
    number_marks,
    numbers_in,
    read_number,
    write_number,
)
from luthier.ml.baselines.rows import NotApplicable, TaskRow, evenly

_WORDS: Final = r"(?u)\b[^\W\d]+\b"
_LEAST_SHARE: Final = 0.95
_BEFORE_QUANTITIES: Final = frozenset(
    {
        *("rs", "kr", "fr", "sfr", "lei", "ft", "eur", "euro", "euros", "usd", "chf", "gbp"),
        *("ca", "circa", "approx", "about", "around", "etwa", "rund", "env"),
    }
)
"""Currencies that are written without a sign, and words for estimates, in lower case."""
_LEAST_ROWS: Final = 10
_MOST_NUMBERS: Final = 8
_LARGEST: Final = 1e100
"""Of the numbers in a prompt that count: their squares are added up, and must stay finite."""
_MOST_ROWS: Final = 2_000
"""Of training: the closed form solves a system of as many equations."""


def rows_for_regression(rows: Sequence[TaskRow]) -> Sequence[TaskRow]:
    """The rows that a regression is fitted on: of those whose answers are numbers at most 2,000, equally spaced."""
    marks = number_marks(row.answer for row in rows)
    return evenly([row for row in rows if read_number(row.answer, marks) is not None], _MOST_ROWS)


def ridge_regression(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """Predicted numbers, written as the training answers are: decimals, unit, thousands separators.

    Raises:
        NotApplicable: fewer than ten rows, answers that are not numbers, or all the same number.
    """
    answers = [row.answer for row in rows]
    marks = number_marks(answers)
    written = [read_number(answer, marks) for answer in answers]
    kept = evenly([(row, one) for row, one in zip(rows, written, strict=True) if one is not None], _MOST_ROWS)
    if not are_numbers(answers, marks):
        raise NotApplicable("the answers are not numbers" if len(rows) >= _LEAST_ROWS else "fewer than ten rows")
    values = np.array([one.value for _, one in kept])
    if values.min() == values.max():
        raise NotApplicable("all answers are the same number")
    seen = [row.prompt for row, _ in kept]
    # Prompts are written as their answers are; where these do not show how, prompts show it themselves.
    found = _predict(seen, values, prompts, number_marks(answers, marks_in_texts(seen)))
    form = number_format([one for _, one in kept], marks)
    # Nothing beyond what was seen: a line leaves the range of the answers, where an answer of that kind would not.
    inside = np.clip(found, values.min(), values.max())
    return [write_number(float(value), form) for value in inside]


def are_numbers(answers: Sequence[str], marks: NumberMarks | None = None) -> bool:
    """Whether answers are numbers, perhaps with a unit or a currency: nearly all of at least ten.

    `class 3` is the name of something: with a word before its digits an answer counts where that may be a currency or
    an estimate, or ends with a colon or an equals sign.

    Args:
        answers: of rows.
        marks: of their numbers; None finds them.
    """
    marks = marks or number_marks(answers)
    read = (read_number(one, marks) for one in answers)
    num = sum(one is not None and _is_quantity(one.before) for one in read)
    return len(answers) >= _LEAST_ROWS and num >= _LEAST_SHARE * len(answers)


def _is_quantity(before: str) -> bool:
    """Whether a text before digits leaves them a quantity."""
    word = before.strip()
    if word.endswith((":", "=")) or not any(map(str.isalpha, word)):
        return True
    # ISO 4217 has codes of three capitals; US$ and R$ have their own sign.
    has_sign = any(unicodedata.category(sign) == "Sc" for sign in word)
    is_code = len(word) == 3 and word.isalpha() and word.isupper()
    return has_sign or is_code or word.rstrip(".").casefold() in _BEFORE_QUANTITIES


def _predict(
    texts: Sequence[str], values: np.ndarray[Any, Any], prompts: Sequence[str], marks: NumberMarks
) -> np.ndarray[Any, Any]:
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    words = TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(texts) >= 50 else 1, max_features=20_000, token_pattern=_WORDS
    )
    scale = StandardScaler()
    try:
        seen, asked = words.fit_transform(texts), words.transform(prompts)
    except ValueError:  # prompts of digits alone
        seen, asked = csr_matrix((len(texts), 0)), csr_matrix((len(prompts), 0))
    own, other = scale.fit_transform(_numbers(texts, marks)), scale.transform(_numbers(prompts, marks))
    fitted = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(hstack([seen, csr_matrix(own)]).toarray(), values)
    result: np.ndarray[Any, Any] = fitted.predict(hstack([asked, csr_matrix(other)]).toarray())
    return result


def _numbers(texts: Sequence[str], marks: NumberMarks) -> np.ndarray[Any, Any]:
    """The first numbers of each text, how many there are, and how long it is: [texts, 2 x 8 + 2]."""
    table = np.zeros((len(texts), 2 * _MOST_NUMBERS + 2))
    for row, text in enumerate(texts):
        # Hundreds of digits are a key, and infinite as a float.
        found = [one for one in numbers_in(text, marks) if abs(one) <= _LARGEST]
        first = found[:_MOST_NUMBERS]
        table[row, : len(first)] = first
        # The sign keeps its meaning, and a factor of ten is one step.
        table[row, _MOST_NUMBERS : _MOST_NUMBERS + len(first)] = np.sign(first) * np.log1p(np.abs(first))
        table[row, -2:] = len(found), np.log1p(len(text))
    return table
