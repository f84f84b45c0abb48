"""Orders of documents without a language model: by the words of the query (BM25), and by how often rows name them.

Where no training row names any of the documents, popularity is a random order: what any search has to beat.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from luthier.core.dataset import Example
from luthier.core.evaluation import SystemKind
from luthier.core.ports import Progress
from luthier.ml.baselines.nearest import Bm25
from luthier.ml.baselines.rows import NotApplicable
from luthier.ml.evaluation.metrics.protocol import Array
from luthier.ml.evaluation.metrics.ranking import Ranked
from luthier.ml.evaluation.retrieval import SearchTask, ranked, search_row
from luthier.ml.evaluation.systems import SystemUnderTest

WORDS, POPULAR, RANDOM = "BM25", "most popular documents", "random order"


def search_baselines(
    task: SearchTask, train: Sequence[Example], beside: SystemUnderTest
) -> tuple[list[SystemUnderTest], list[str]]:
    """The baselines as systems that are evaluated on a search, and for each one that is left out the reason.

    Args:
        task: the queries and their documents.
        train: the training rows.
        beside: a model that is evaluated on the same queries.
    """
    found: list[SystemUnderTest] = []
    left_out: list[str] = []
    # Before the clock runs: the import is no work of BM25.
    import sklearn.feature_extraction.text  # noqa: F401

    counts = Counter(row.positive for example in train if (row := search_row(example)) is not None)
    # Distractors are from training rows, and so known: popularity says something where right documents are, too.
    is_known = any(counts[task.documents[place]] for right in task.right for place in right)
    ways: tuple[tuple[str, SystemKind, Callable[[], list[Array]]], ...] = (
        (POPULAR if is_known else RANDOM, "popularity", lambda: _by_popularity(task, counts if is_known else {})),
        (WORDS, "nearest", lambda: _by_words(task)),
    )
    for name, kind, scores in ways:
        start = time.perf_counter()
        try:
            orders = ranked(task, scores(), name=name)
        except NotApplicable as reason:
            left_out.append(f"{name}: {reason}")
            continue
        found.append(_as_system(name, kind, orders, time.perf_counter() - start, beside))
    return found, left_out


def _as_system(
    name: str, kind: SystemKind, orders: Sequence[Ranked], seconds: float, beside: SystemUnderTest
) -> SystemUnderTest:
    """A system that has its orders already.

    Args:
        name: of the system.
        kind: what it is.
        orders: of each query.
        seconds: wall time that these took.
        beside: a model that is evaluated on the same queries.
    """

    def rank(progress: Progress) -> Sequence[Ranked]:  # noqa: ARG001
        return orders

    return SystemUnderTest(
        name=name,
        kind=kind,
        seconds_before=seconds,
        model="",
        adapter=None,
        num_few_shot=0,
        engine=beside.engine,
        prompts=beside.prompts,
        references=beside.references,
        row_ids=beside.row_ids,
        prompt_texts=beside.prompt_texts,
        tokenised=(),
        num_bytes=(),
        rank=rank,
    )


def _by_words(task: SearchTask) -> list[Array]:
    def rows() -> Iterator[Array]:
        for block in Bm25(task.documents).scores(task.queries):
            yield from block

    return [own[list(task.of(query))].astype(np.float64) for query, own in enumerate(rows())]


def _by_popularity(task: SearchTask, counts: Mapping[str, int]) -> list[Array]:
    """By how many training rows call a document right; equally popular ones are ordered by a hash of their text."""
    popularity = np.array([counts.get(text, 0) for text in task.documents], dtype=np.float64)
    return [popularity[list(task.of(query))] for query in range(len(task.queries))]
