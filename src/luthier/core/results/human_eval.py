"""People rate answers, blind: the panel, what is shown, the ratings, and the table of all ratings.

The answers of an item have a fixed order, in which everything is kept. Which of two is first on the screen differs
by rater and item; a rating says which one did.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from luthier.core.conversation import Message
from luthier.core.errors import DataError, RequestError, RowProblem, library_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.suite import CRITERIA, Criterion
from luthier.core.system.process_setup import large_csv_cells
from luthier.core.text.spreadsheet import text_of_cell

RatingKind = Literal["pairwise", "likert"]
Preference = Literal["a", "b", "tie"]
"""Of a pair: the item's first answer is better, its second is, or neither."""
Score = Annotated[int, Field(ge=1, le=5)]
LOWEST: Final = 1
HIGHEST: Final = 5
MAX_COMMENT_CHARACTERS: Final = 2000


class RatedAnswer(FrozenModel):
    """An answer that is shown, and the name of the system that wrote it, which is not.

    Attributes:
        system: the name of the system that wrote it, which raters do not see.
        text: the answer.
    """

    system: str
    text: str


class AttentionCheck(FrozenModel):
    """What a rater who reads says of an item whose right answer is known; marked in the database alone.

    Attributes:
        how: `garbled`, one answer is words in no order; `instructed`, the text itself says what to choose.
        preference: the right answer of a pair.
        score: the right score.
    """

    how: Literal["garbled", "instructed"]
    preference: Preference | None = None
    score: Score | None = None


class RatingItem(FrozenModel):
    """A prompt with two answers (pairwise) or one (likert).

    Attributes:
        item: its number, from 0 on, in an order without meaning.
        row_id: the row that it was made of.
        prompt: the prompt as text.
        messages: the prompt's turns, where it is more than one turn of a user.
        answers: two (pairwise) or one (likert), in a fixed order.
        check: the right answer of an attention check; None for an item that counts.
    """

    item: Annotated[int, Field(ge=0)]
    row_id: str
    prompt: str
    messages: tuple[Message, ...] = ()
    answers: Annotated[tuple[RatedAnswer, ...], Field(min_length=1, max_length=2)]
    check: AttentionCheck | None = None


class RatingPanel(FrozenModel):
    """People who rate the same answers. Times are seconds since 1970.

    Attributes:
        panel_id: its id.
        name: what people call it.
        kind: pairs or scores.
        systems: the names of the systems whose answers are rated.
        source: the file or the evaluation that the rows come from.
        criteria: what scores are given for.
        seed: decides the order of items and sides for each rater.
        num_items: attention checks (num_checks) among them.
        num_checks: attention checks among the items.
        num_same: pairs that are not shown, because both answers are the same text.
        num_left_out: rows that were too long for a system.
        num_forgotten: rows of the evaluation whose texts were forgotten (`luthier data forget`).
        instructions: in the words of the panel's creator; "" for ours alone.
        created_at: when it was made.
        closed_at: when it was closed; None while it is open.
    """

    panel_id: str
    name: str
    kind: RatingKind
    systems: Annotated[tuple[str, ...], Field(min_length=1)]
    source: str
    criteria: tuple[Criterion, ...] = CRITERIA
    seed: int
    num_items: int
    num_checks: int = 0
    num_same: int = 0
    num_left_out: int = 0
    num_forgotten: int = 0
    instructions: str = ""
    created_at: float = 0.0
    closed_at: float | None = None

    @model_validator(mode="after")
    def _has_what_to_compare(self) -> RatingPanel:
        if len(set(self.systems)) < len(self.systems) or (self.kind == "pairwise" and len(self.systems) < 2):
            raise ValueError(f"systems {self.systems}: different names, and two of them at least to compare")
        return self


class Rater(FrozenModel):
    """Somebody who rates in one panel.

    Attributes:
        rater_id: its id.
        panel_id: the panel.
        name: what the panel calls them.
        has_link: whether there is a link that lets them in.
        created_at: seconds since 1970.
    """

    rater_id: str
    panel_id: str
    name: str
    has_link: bool = True
    created_at: float = 0.0


class Rating(FrozenModel):
    """What one rater says of one item: a preference (pairwise), or a score for each criterion (likert).

    Attributes:
        item: the number of the item.
        rater_id: who rates.
        preference: the better answer, of a pair.
        scores: the score for each criterion, of a single answer.
        comment: in the rater's words.
        shown_first: which of two answers was first (left, or on top).
        seconds: from when it was shown; None where that is not known.
        rated_at: seconds since 1970.
    """

    item: int
    rater_id: str
    preference: Preference | None = None
    scores: dict[Criterion, Score] = Field(default_factory=dict)
    comment: Annotated[str, Field(max_length=MAX_COMMENT_CHARACTERS)] = ""
    shown_first: Literal["a", "b"] = "a"
    seconds: Annotated[float, Field(ge=0)] | None = None
    rated_at: float = 0.0

    @model_validator(mode="after")
    def _says_something(self) -> Rating:
        # Exactly one of the two.
        if (self.preference is None) == (not self.scores):
            raise ValueError("a preference, or scores")
        return self

    def passes(self, check: AttentionCheck) -> bool:
        """Whether a careful rater would have given this rating."""
        if self.preference is not None:
            return self.preference == check.preference
        return set(self.scores.values()) == {check.score}


class RatingRow(FrozenModel):
    """One rating with all that it is about: a line of the exported table. Of a pair answer_b is the second answer.

    Attributes:
        panel_id: the panel.
        kind: pairs or scores.
        item: the number of the item.
        row_id: the row that the item was made of.
        rater: the name of the rater.
        prompt: the prompt as text.
        system_a: the system of the first answer.
        answer_a: the first answer.
        system_b: the system of the second answer; None where there is one answer.
        answer_b: the second answer; None likewise.
        preference: the better answer, of a pair.
        relevance: a score, of a single answer; None where it was not requested.
        coherence: the same.
        accuracy: the same.
        helpfulness: the same.
        comment: in the rater's words.
        shown_first: which of two answers was first on the screen.
        seconds: from showing the item to the rating; None where it is unknown.
        rated_at: seconds since 1970.
        is_check: whether the item is an attention check.
        passed: whether the rater passed that check; None for an item that counts.
    """

    panel_id: str
    kind: RatingKind
    item: int
    row_id: str
    rater: str
    prompt: str
    system_a: str
    answer_a: str
    system_b: str | None = None
    answer_b: str | None = None
    preference: Preference | None = None
    relevance: Score | None = None
    coherence: Score | None = None
    accuracy: Score | None = None
    helpfulness: Score | None = None
    comment: str = ""
    shown_first: Literal["a", "b"] = "a"
    seconds: float | None = None
    rated_at: float = 0.0
    is_check: bool = False
    passed: bool | None = None

    def score(self, criterion: Criterion) -> int | None:
        """The score for one criterion."""
        found: int | None = getattr(self, criterion)
        return found


@dataclass(frozen=True, slots=True)
class RatingsTable:
    """All ratings of a panel, each rater's in the order in which they were given."""

    rows: tuple[RatingRow, ...]

    @property
    def kind(self) -> RatingKind:
        """pairwise or likert; likert where there is no rating yet."""
        return self.rows[0].kind if self.rows else "likert"

    @property
    def raters(self) -> tuple[str, ...]:
        """The names of all who have rated, in order of their first rating."""
        return tuple(dict.fromkeys(row.rater for row in self.rows))

    @property
    def systems(self) -> tuple[str, ...]:
        """The names of all systems whose answers were rated (attention checks aside)."""
        named = (name for row in self.real.rows for name in (row.system_a, row.system_b))
        return tuple(sorted({name for name in named if name is not None}))

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that there are scores for."""
        known: tuple[Criterion, ...] = get_args(Criterion)
        return tuple(one for one in known if any(row.score(one) is not None for row in self.rows))

    @property
    def real(self) -> RatingsTable:
        """Without attention checks: what figures are made of."""
        return self.where(lambda row: not row.is_check)

    def where(self, keep: Callable[[RatingRow], bool]) -> RatingsTable:
        """The ratings that are to be kept."""
        return RatingsTable(tuple(row for row in self.rows if keep(row)))

    def without(self, raters: Iterable[str]) -> RatingsTable:
        """The ratings of all others."""
        left_out = set(raters)
        return self.where(lambda row: row.rater not in left_out)

    def by_item(self) -> dict[int, list[RatingRow]]:
        """The ratings of each item: all of them share prompt, answers and systems."""
        found: dict[int, list[RatingRow]] = {}
        for row in self.rows:
            found.setdefault(row.item, []).append(row)
        return found

    @classmethod
    def read(cls, path: Path) -> RatingsTable:
        """A table as `luthier human-eval export` writes it, .csv or .parquet.

        Raises:
            RequestError: a file that is not there or of another kind.
            DataError: rows that are no ratings.
        """
        if path.suffix not in (".csv", ".parquet") or not path.is_file():
            raise RequestError(
                f"{path} is not a file of ratings" if path.is_file() else f"there is no file {path}",
                expected="a .csv or .parquet file that `luthier human-eval export` has written",
                do="export the panel: luthier human-eval export PANEL -o ratings.csv",
            )
        # Rows of a CSV count from 2, since the first line is its header.
        raw = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
        rows, problems = [], []
        for number, values in enumerate(raw, start=2 if path.suffix == ".csv" else 1):
            try:
                rows.append(RatingRow.model_validate(values))
            except ValidationError as error:
                wrong = error.errors()[0]
                field = ".".join(str(part) for part in wrong["loc"])
                problems.append(RowProblem(str(path), number, field, repr(wrong["input"])[:80], wrong["msg"]))
        if problems or len({row.kind for row in rows}) > 1:
            raise DataError(
                f"{len(problems)} of {len(raw)} rows of {path} are not ratings of one kind",
                expected="the columns that `luthier human-eval export` writes",
                do="export the panel again, or correct the rows",
                problems=problems,
            )
        return cls(tuple(rows))


def columns_of(rows: Sequence[RatingRow]) -> dict[str, list[Any]]:
    """The table by column, in the order in which they are exported."""
    return {name: [getattr(row, name) for row in rows] for name in RatingRow.model_fields}


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """An empty cell is no value; of texts that may be empty, and only of those, it is the empty text."""
    texts = {"prompt", "answer_a", "comment"}
    try:
        # The default of 128 KiB a cell is too small for long answers.
        with path.open(encoding="utf-8", newline="") as file, large_csv_cells():
            lines = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as CSV: {library_reason(error)}",
            expected="UTF-8 text with commas",
            do="export the panel again",
        ) from error
    found = []
    for line in lines:
        # An empty second answer is a text where there is a second system, and no value where there is none.
        empty_pair = {"answer_b"} if line.get("system_b") else set()
        kept = {name: _text(value) for name, value in line.items() if value != "" or name in texts | empty_pair}
        found.append(kept)
    return found


def _text(cell: Any) -> Any:
    """A cell as it was before it was written; a line of another length has none, or a list of them."""
    return text_of_cell(cell) if isinstance(cell, str) else cell


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {library_reason(error)}",
            expected="a Parquet file",
            do="export the panel again",
        ) from error
    return rows
