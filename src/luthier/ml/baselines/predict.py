"""Every baseline that fits the rows, fitted on the training rows and asked the held-out ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.dataset import Example
from luthier.core.evaluation import SystemKind
from luthier.core.ports import Progress
from luthier.ml.baselines.copying import copied_answers
from luthier.ml.baselines.labels import Classified, commonest_answer, linear_classifier, popular_among_offered
from luthier.ml.baselines.nearest import TokenEmbeddings, nearest_by_embeddings, nearest_by_words
from luthier.ml.baselines.numbers import ridge_regression
from luthier.ml.baselines.rows import MAX_ROWS, NotApplicable, TaskRow, prompt_text, task_rows


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one baseline answers.

    Attributes:
        name: as reports call it, unique among baselines.
        kind: what it is.
        outputs: one answer for each held-out row, in their order.
        seconds: wall time of fitting and answering.
        classified: the classes with their probabilities, of a classifier.
    """

    name: str
    kind: SystemKind
    outputs: tuple[str, ...]
    seconds: float
    classified: Classified | None = None


@dataclass(frozen=True, slots=True)
class BaselineSet:
    """The baselines of a set of rows.

    Attributes:
        predictions: those that fit the rows.
        left_out: for each other one a sentence that says why.
        num_rows: training rows that they were fitted on.
        is_sample: whether there are more training rows than that.
    """

    predictions: tuple[Predictions, ...] = ()
    left_out: tuple[str, ...] = ()
    num_rows: int = 0
    is_sample: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the rows that they were fitted on."""
        if not self.is_sample:
            return ()
        return (f"Baselines without a language model were fitted on a sample of {self.num_rows:,} training rows.",)


MAJORITY: Final = "commonest answer"
NEAREST: Final = "nearest training row (BM25)"
EMBEDDED: Final = "nearest training row (embeddings)"
LINEAR: Final = "linear classifier"
RIDGE: Final = "ridge regression"
COPY: Final = "copy rules"
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
    _load_libraries()
    ways = list(_ways(rows, prompts, embeddings))
    with progress.task("Fitting baselines", len(ways), "baselines") as task:
        for name, kind, answer in ways:
            task.note(name)
            task.advance()
            start = time.perf_counter()
            try:
                answers = answer()
            except NotApplicable as reason:
                left_out.append(f"{name}: {reason}")
            else:
                classified = answers if isinstance(answers, Classified) else None
                outputs = answers.outputs if isinstance(answers, Classified) else answers
                if kind == "popularity" and found and tuple(outputs) == found[0].outputs:
                    left_out.append(f"{name}: it is always the commonest answer")
                    continue
                found.append(Predictions(name, kind, tuple(outputs), time.perf_counter() - start, classified))
    return BaselineSet(tuple(found), tuple(left_out), len(rows), len(rows) == MAX_ROWS < len(train))


def _load_libraries() -> None:
    """Import scikit-learn, so that the seconds of the first baseline that needs it are its own."""
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.pipeline
    import sklearn.preprocessing
    import sklearn.svm  # noqa: F401


def _ways(
    rows: Sequence[TaskRow], prompts: Sequence[str], embeddings: TokenEmbeddings | None
) -> Iterator[tuple[str, SystemKind, Callable[[], list[str] | Classified]]]:
    yield MAJORITY, "majority", lambda: commonest_answer(rows, len(prompts))
    yield POPULARITY, "popularity", lambda: popular_among_offered(rows, prompts)
    yield NEAREST, "nearest", lambda: nearest_by_words(rows, prompts)
    if embeddings is not None:
        yield EMBEDDED, "nearest", lambda: nearest_by_embeddings(rows, prompts, embeddings)
    yield LINEAR, "linear", lambda: linear_classifier(rows, prompts)
    yield RIDGE, "ridge", lambda: ridge_regression(rows, prompts)
    yield COPY, "copy", lambda: copied_answers(rows, prompts)
