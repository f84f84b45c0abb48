"""What is watched, as columns of numbers: one a row of the exchanges, NaN where a row has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from luthier.core.results.signal import SignalGroup
from luthier.ml.drift.drift.ranks import Floats, Ints, hours_of, lots
from luthier.ml.drift.drift.topics import TextWords

Kind = Literal["share", "number", "kind"]
MAX_AN_HOUR: Final = 500
"""Exchanges of an hour that are tested; of more, so many are drawn by lot."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What the signals ask of texts, handed in: a stage imports no other.

    Attributes:
        words: their words as hashes.
        languages: the language of each, None where it cannot be determined.
        is_refusal, is_toxic, has_personal_data: of one answer.
        citations: how many an answer has, and how many of them no document has; None where there is no corpus.
        share_ends: the interval of a share (right, all, tail).
    """

    words: Callable[[Sequence[str]], TextWords]
    languages: Callable[[Sequence[str]], Sequence[str | None]]
    is_refusal: Callable[[str], bool]
    is_toxic: Callable[[str], bool]
    has_personal_data: Callable[[str], bool]
    share_ends: Callable[[float, int, float], tuple[float, float]]
    citations: Callable[[str], tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One watched number of an exchange.

    Attributes:
        kind: a share (0 or 1), a number, or a kind (whole numbers that name something).
        values: [rows], NaN for none.
        do: what to do where it changes.
        lacks: why it has no values, where that is known.
    """

    name: str
    title: str
    group: SignalGroup
    unit: str
    kind: Kind
    values: Floats
    do: str
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """The exchanges of a stretch of time, oldest first.

    Attributes:
        frame: columns as of `Exchange`.
        at: seconds since 1970, [rows].
        hours: [rows].
        is_tested: which enter the tests: of one user's in an hour the first alone (the turns of a conversation are one
            event), and at most 500 an hour.
        is_now: which lie in the window that is reported.
        prompts, answers: the last message of the user, and the answer, of tested rows; None where no words were kept.
    """

    frame: pl.DataFrame
    at: Floats
    hours: Ints
    is_tested: NDArray[np.bool_]
    is_now: NDArray[np.bool_]
    prompts: list[str | None]
    answers: list[str | None]

    @property
    def ids(self) -> list[str]:
        """The ids of the exchanges."""
        return self.frame["exchange_id"].to_list()

    def of_prompts(self) -> Ints:
        """The places of rows that have a prompt."""
        return np.array([place for place, text in enumerate(self.prompts) if text is not None], dtype=np.int64)

    def of_answers(self) -> Ints:
        """The places of rows that have an answer as text."""
        return np.array([place for place, text in enumerate(self.answers) if text is not None], dtype=np.int64)

    def spread(self, places: Ints, values: Sequence[float] | Floats) -> Floats:
        """Values of some rows as a column: [rows], NaN for the others."""
        found = np.full(len(self.at), np.nan)
        found[places] = values
        return found


def read_rows(frame: pl.DataFrame, since: float, tested_from: float = 0.0) -> Rows:
    """The rows of a frame with the columns of `Exchange`.

    A row whose time is no number is left out; one whose clock was wrong counts in the hour that it names.

    Args:
        since: where the reported window begins.
        tested_from: rows before that enter no test.
    """
    # A stable sort: equal times keep their order, so that every look ranks them alike.
    frame = frame.filter(pl.col("at").is_finite()).sort("at", maintain_order=True)
    at = frame["at"].cast(pl.Float64).to_numpy()
    hours = hours_of(at)
    is_tested = _tested(frame, hours) & (at >= tested_from)
    texts = [
        _texts(*row) if tested else (None, None) for tested, row in zip(is_tested, _last_messages(frame), strict=True)
    ]
    return Rows(frame, at, hours, is_tested, at >= since, [one for one, _ in texts], [one for _, one in texts])


def _last_messages(frame: pl.DataFrame) -> Sequence[tuple[str | None, str | None]]:
    return list(zip(frame["messages"].to_list(), frame["answer"].to_list(), strict=True))


def _texts(messages: str | None, answer: str | None) -> tuple[str | None, str | None]:
    return None if messages is None else last_words(messages), answer


def last_words(messages: str) -> str | None:
    """What the user said last, from messages as JSON; None where that is no text."""
    import json

    try:
        parsed = json.loads(messages)
    except ValueError:
        return None
    for message in reversed(parsed if isinstance(parsed, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = [part.get("text") for part in content if isinstance(part, dict)]
                content = "\n".join(part for part in parts if isinstance(part, str))
            return content if isinstance(content, str) else None
    return None


def _tested(frame: pl.DataFrame, hours: Ints) -> NDArray[np.bool_]:
    drawn = lots(frame["exchange_id"].to_list(), "tested")
    marked = pl.DataFrame({"hour": hours, "user": frame["user_digest"], "lot": drawn}).with_row_index("row")
    first = marked.filter((pl.col("user") == "") | pl.struct("hour", "user").is_first_distinct())
    # By lot and not by time: the first 500 of an hour would be those of its first minutes.
    kept = first.filter(pl.col("lot").rank("ordinal").over("hour") <= MAX_AN_HOUR)
    found = np.zeros(len(hours), dtype=bool)
    found[kept["row"].to_numpy()] = True
    return found
