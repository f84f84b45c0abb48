"""Searching documents: which ones each query is held against, which ones are right, and the order that scores give.

Embeddings are judged by retrieval: each query of the held-out rows among all documents of these rows, with documents of
the training rows as distractors. Rerankers order the documents that the rows give for a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from luthier.core.dataset import Example
from luthier.core.errors import DivergedError, RequestError
from luthier.core.task_head import TaskHeadKind
from luthier.ml.evaluation.metrics.protocol import Array
from luthier.ml.evaluation.metrics.ranking import Ranked

MAX_DISTRACTORS: Final = 1_000
"""Documents of training rows among which held-out ones are searched; of more a sample by a hash of their text."""
_MIN_ORDER: Final = 10


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A query with documents.

    Attributes:
        query: what is searched for.
        positive: the document that is right.
        negative: one that is not; None where the row names none.
    """

    query: str
    positive: str
    negative: str | None = None


def search_row(example: Example) -> SearchRow | None:
    """A row as query and documents: prompt and answer, of a preference pair both answers.

    None for a row of another form than one user turn and one assistant turn, each with text.
    """
    chosen = example.conversation
    if chosen is None or [m.role for m in chosen.messages] != ["user", "assistant"]:
        return None
    query, positive = (message.content or "" for message in chosen.messages)
    negative = None
    if example.rejected is not None:
        if [m.role for m in example.rejected.messages] != ["user", "assistant"]:
            return None
        negative = example.rejected.messages[-1].content or ""
    texts = (query, positive, *(() if negative is None else (negative,)))
    return SearchRow(query, positive, negative) if all(text.strip() for text in texts) else None


@dataclass(frozen=True, slots=True)
class SearchTask:
    """Queries with the documents that are searched for each.

    Attributes:
        row_ids: of each query the first row that has it.
        queries: each once.
        documents: each once, in an order that has nothing to do with that of the rows: of documents with equal scores
            the first one comes first.
        right: of each query the places of the right documents.
        candidates: of each query the places of the documents that are ordered; None for all documents.
        notes: what a reader should know of it.
    """

    row_ids: tuple[str, ...]
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    right: tuple[frozenset[int], ...]
    candidates: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = ()

    def of(self, query: int) -> Sequence[int]:
        """The places of the documents that are ordered for a query."""
        return range(len(self.documents)) if self.candidates is None else self.candidates[query]


def search_task(kind: TaskHeadKind, held_out: Sequence[Example], train: Sequence[Example]) -> SearchTask:
    """What a model with a head of that kind, embed or rank, is judged on.

    Raises:
        RequestError: rows of another form, or no two documents to put into an order.
    """
    return retrieval_task(held_out, train) if kind == "embed" else reranking_task(held_out)


def retrieval_task(held_out: Sequence[Example], train: Sequence[Example]) -> SearchTask:
    """Each query of the held-out rows against all of their documents and up to `MAX_DISTRACTORS` of training rows.

    Documents that a training row calls right for a held-out query are left out: they may be right, and nothing says so.
    Rejected documents are searched as well.

    Raises:
        RequestError: rows of another form, or no second document.
    """
    rows = _rows(held_out)
    own = {text for row in rows for text in _documents(row)}
    seen = [row for example in train if (row := search_row(example)) is not None]
    queries = {row.query for row in rows}
    not_right = {text for row in seen if row.query in queries for text in _documents(row)}
    others = sorted({text for row in seen for text in _documents(row)} - own - not_right, key=_hash)
    distractors = others[:MAX_DISTRACTORS]
    task = _task(held_out, rows, sorted(own.union(distractors), key=_hash))
    sampled = "" if len(others) == len(distractors) else f", a sample of {len(others):,}"
    among = f" and {len(distractors):,} of the training rows{sampled}" if distractors else ""
    note = (
        f"Each of {len(task.queries):,} queries is searched among {len(own):,} documents of the held-out rows{among}."
    )
    return _checked(SearchTask(task.row_ids, task.queries, task.documents, task.right, None, (note,)))


def reranking_task(held_out: Sequence[Example]) -> SearchTask:
    """Each query of the held-out rows with the documents that its own rows name, right and wrong.

    Raises:
        RequestError: rows of another form, or without a wrong document.
    """
    rows = _rows(held_out)
    if any(row.negative is None for row in rows):
        first = next(example for example, row in zip(held_out, rows, strict=True) if row.negative is None)
        raise RequestError(
            f"{first.id} has no rejected document, so there is nothing to order",
            expected="held-out rows with chosen and rejected",
            do="give preference rows to a reranker, or choose objective: {name: embed} for pairs",
        )
    task = _task(held_out, rows, sorted({text for row in rows for text in _documents(row)}, key=_hash))
    place = {text: number for number, text in enumerate(task.documents)}
    named: dict[str, set[int]] = {}
    for row in rows:
        named.setdefault(row.query, set()).update(place[text] for text in _documents(row))
    candidates = tuple(tuple(sorted(named[query])) for query in task.queries)
    mean = sum(map(len, candidates)) / len(candidates)
    note = f"Of each of {len(task.queries):,} queries the documents of its own rows are ordered, {mean:.3g} on average."
    return _checked(SearchTask(task.row_ids, task.queries, task.documents, task.right, candidates, (note,)))


def _rows(examples: Sequence[Example]) -> list[SearchRow]:
    rows = []
    for example in examples:
        row = search_row(example)
        if row is None:
            raise RequestError(
                f"{example.id} is no query with a document",
                expected="one user turn and one assistant turn, each with text",
                do="take the row out, or map its columns: data.columns",
            )
        rows.append(row)
    return rows


def _documents(row: SearchRow) -> Iterable[str]:
    return (row.positive,) if row.negative is None else (row.positive, row.negative)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _task(examples: Sequence[Example], rows: Sequence[SearchRow], documents: Sequence[str]) -> SearchTask:
    place = {text: number for number, text in enumerate(documents)}
    ids: dict[str, str] = {}
    right: dict[str, set[int]] = {}
    for example, row in zip(examples, rows, strict=True):
        ids.setdefault(row.query, example.id)
        right.setdefault(row.query, set()).add(place[row.positive])
    return SearchTask(tuple(ids.values()), tuple(ids), tuple(documents), tuple(map(frozenset, right.values())))


def _checked(task: SearchTask) -> SearchTask:
    if len(task.documents) < 2:
        raise RequestError(
            f"{len(task.documents)} document in the held-out rows",
            expected="at least two, to be put into an order",
            do="hold out more rows",
        )
    return task


def ranked(task: SearchTask, scores: Sequence[Array], *, name: str) -> list[Ranked]:
    """The documents of each query by falling scores.

    Args:
        task: queries and documents.
        scores: of each query one number for each of its documents (`task.of`); the higher the better.
        name: of what gave the scores, for errors.

    Raises:
        DivergedError: a score is not a number.
    """
    found = []
    for query, own in enumerate(scores):
        if not np.isfinite(own).all():
            raise DivergedError(
                f"{name} scores documents with {own[~np.isfinite(own)][0]}",
                expected="finite scores",
                do="the weights hold NaN or infinity: look at the run's loss curve, or train with a lower rate",
            )
        places = np.asarray(task.of(query))
        order = places[np.argsort(-own, kind="stable")]
        first_right = next(rank for rank, place in enumerate(order.tolist()) if place in task.right[query])
        # No figure looks further than the first ten documents and the first right one.
        shown = order[: max(_MIN_ORDER, first_right + 1)].tolist()
        relevant = frozenset(task.documents[place] for place in task.right[query])
        found.append(Ranked([task.documents[place] for place in shown], relevant))
    return found
