"""Every baseline that fits the rows: fitted on training rows, asked the held-out ones, and as an evaluated system."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import SystemKind
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.ml.baselines.copying import copied_answers, rows_for_rules
from luthier.ml.baselines.labels import (
    Classified,
    commonest_answer,
    linear_classifier,
    popular_among_offered,
    rows_for_classifier,
)
from luthier.ml.baselines.nearest import (
    TokenEmbeddings,
    nearest_by_embeddings,
    nearest_by_words,
    rows_to_embed,
    rows_to_index,
)
from luthier.ml.baselines.numbers import ridge_regression, rows_for_regression
from luthier.ml.baselines.rows import MAX_ROWS, NotApplicable, TaskRow, prompt_text, task_rows
from luthier.ml.baselines.unchanged import unchanged_texts
from luthier.ml.evaluation.systems import SystemUnderTest


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one baseline answers.

    Attributes:
        name: as reports call it, unique among baselines.
        kind: what it is.
        outputs: one answer for each held-out row, in their order.
        seconds: wall time of fitting and answering.
        num_rows: training rows that it was fitted on.
        classified: the classes with their probabilities, of a classifier.
    """

    name: str
    kind: SystemKind
    outputs: tuple[str, ...]
    seconds: float
    num_rows: int
    classified: Classified | None = None


@dataclass(frozen=True, slots=True)
class BaselineSet:
    """The baselines of a set of rows.

    Attributes:
        predictions: those that fit the rows.
        left_out: for each other one a sentence that says why.
        num_rows: training rows that they were given.
        is_sample: whether there are more training rows than that.
    """

    predictions: tuple[Predictions, ...] = ()
    left_out: tuple[str, ...] = ()
    num_rows: int = 0
    is_sample: bool = False

    @property
    def seconds(self) -> float:
        """Wall time of fitting all of them, and of their answers."""
        return sum(one.seconds for one in self.predictions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the rows that they were fitted on."""
        found = []
        if self.is_sample:
            found.append(
                f"Baselines without a language model were fitted on a sample of {self.num_rows:,} training rows."
            )
        if fewer := [one for one in self.predictions if one.num_rows < self.num_rows]:
            which = ", ".join(f"{one.name} on {one.num_rows:,}" for one in fewer)
            found.append(
                f"To take some seconds only, baselines were fitted on fewer of {self.num_rows:,} rows: {which}."
            )
        return tuple(found)


MAJORITY: Final = "commonest answer"
NEAREST: Final = "nearest training row (BM25)"
EMBEDDED: Final = "nearest training row (embeddings)"
LINEAR: Final = "linear classifier"
RIDGE: Final = "ridge regression"
COPY: Final = "copy rules"
UNCHANGED: Final = "unchanged text"
POPULARITY: Final = "most popular of those offered"


def predict(
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    progress: Progress,
    embeddings: TokenEmbeddings | None = None,
) -> BaselineSet:
    """Fit all baselines that fit the rows, and let them answer.

    Which ones fit is decided by the training rows alone.

    Args:
        train: the rows that the tuned model learns from.
        held_out: the rows to answer, each with a prompt.
        progress: shows the baselines.
        embeddings: token vectors for the nearest row by meaning; None leaves that one out.
    """
    rows = task_rows(train)
    prompts = [prompt_text(example) for example in held_out]
    found: list[Predictions] = []
    left_out: list[str] = []
    if not rows or not prompts or any(example.reference is None for example in held_out):
        return BaselineSet(left_out=("no baselines: the rows have no prompts with text answers",))
    # Before the first timing, as importing them takes longer than fitting most baselines.
    _load_libraries()
    ways = list(_ways(len(prompts), embeddings))
    with progress.task("Fitting baselines", len(ways), "baselines") as task:
        for way in ways:
            task.note(way.name)
            task.advance()
            start = time.perf_counter()
            try:
                answers = way.answer(rows, prompts)
            except NotApplicable as reason:
                left_out.append(f"{way.name}: {reason}")
                continue
            classified = answers if isinstance(answers, Classified) else None
            outputs = tuple(answers.outputs if isinstance(answers, Classified) else answers)
            # The majority baseline is first in the list; an equal second one would add nothing to the report.
            if way.kind == "popularity" and found and outputs == found[0].outputs:
                left_out.append(f"{way.name}: it is always the commonest answer")
                continue
            seconds = time.perf_counter() - start
            found.append(Predictions(way.name, way.kind, outputs, seconds, len(way.rows(rows)), classified))
    # task_rows draws a sample of MAX_ROWS; fewer training rows than that are all used.
    return BaselineSet(tuple(found), tuple(left_out), len(rows), len(rows) == MAX_ROWS < len(train))


def _load_libraries() -> None:
    """Import scikit-learn, so that the seconds of the first baseline that needs it are its own."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.pipeline
    import sklearn.preprocessing
    import sklearn.svm  # noqa: F401


_Rows = Sequence[TaskRow]


def _all(rows: _Rows) -> _Rows:
    return rows


class Way(NamedTuple):
    """How a baseline answers.

    Attributes:
        name: as reports call it.
        kind: what it is.
        answer: the answers to prompts, from the training rows; may raise NotApplicable.
        rows: those of the training rows that it is fitted on.
    """

    name: str
    kind: SystemKind
    answer: Callable[[_Rows, Sequence[str]], list[str] | Classified]
    rows: Callable[[_Rows], _Rows] = _all

    def texts(self, rows: _Rows, prompts: Sequence[str]) -> list[str]:
        """The answers as texts alone."""
        answers = self.answer(rows, prompts)
        return answers.outputs if isinstance(answers, Classified) else answers


QUICK: Final[Mapping[str, Way]] = {
    way.name: way
    for way in (
        Way(NEAREST, "nearest", nearest_by_words, rows_to_index),
        Way(LINEAR, "linear", linear_classifier, rows_for_classifier),
        Way(RIDGE, "ridge", ridge_regression, rows_for_regression),
    )
}
"""Those that learn from rows and take seconds, so that they can be fitted several times."""


def _ways(num_prompts: int, embeddings: TokenEmbeddings | None) -> Iterator[Way]:
    yield Way(MAJORITY, "majority", lambda rows, _: commonest_answer(rows, num_prompts))
    yield Way(POPULARITY, "popularity", popular_among_offered)
    yield QUICK[NEAREST]
    if embeddings is not None:
        yield Way(
            EMBEDDED,
            "nearest",
            lambda rows, prompts: nearest_by_embeddings(rows, prompts, embeddings),
            rows_to_embed,
        )
    yield QUICK[LINEAR]
    yield QUICK[RIDGE]
    yield Way(COPY, "copy", copied_answers, rows_for_rules)
    yield Way(UNCHANGED, "copy", unchanged_texts)


def function_of(name: str) -> Callable[[_Rows, Sequence[str]], list[str] | Classified] | None:
    """The function by which a baseline answers prompts from rows alone; None where it takes more, and for others."""
    found = next((way.answer for way in _ways(1, None) if way.name == name), None)
    # A lambda hands on something else, such as the number of prompts.
    return None if found is None or found.__name__ == "<lambda>" else found


def as_system(predictions: Predictions, beside: SystemUnderTest) -> SystemUnderTest:
    """A system that answers with these predictions.

    Args:
        predictions: one answer for each row.
        beside: a model that is evaluated on the same rows.

    Raises:
        RequestError: another number of predictions than of rows.
    """
    if len(predictions.outputs) != len(beside.row_ids):
        raise RequestError(
            f"{predictions.name} has {len(predictions.outputs):,} answers for {len(beside.row_ids):,} rows",
            expected="one answer for each row",
            do="let the baseline answer the rows that are evaluated",
        )
    return SystemUnderTest(
        name=predictions.name,
        kind=predictions.kind,
        seconds_before=predictions.seconds,
        model="",
        adapter=None,
        num_few_shot=0,
        engine=_Answers(predictions),
        prompts=beside.prompts,
        references=beside.references,
        row_ids=beside.row_ids,
        prompt_texts=beside.prompt_texts,
        tokenised=(),
        num_bytes=(),
    )


class _Answers:
    """An engine that has its answers already."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions

    @property
    def name(self) -> str:
        return self._predictions.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The predictions, in the order of the rows that they were made for."""
        return [
            Generation(text=text, num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop")
            for text in self._predictions.outputs
        ]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Nothing: such a baseline has no likelihoods, and no metric requests them (`SystemUnderTest.takes`)."""
        return []

    def close(self) -> None:
        """Nothing to free."""
