"""Document search: candidates and right documents of each query, and the ranking by scores.

Embeddings are evaluated by retrieval: each held-out query among all documents of the held-out rows, with documents of
the training rows as distractors. Rerankers order the documents given for a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from luthier.core.dataset import Example
from luthier.core.errors import DivergedError, RequestError
from luthier.core.task_head import TaskHeadKind
from luthier.core.text.counted import counted
from luthier.ml.evaluation.metrics.protocol import Array
from luthier.ml.evaluation.metrics.ranking import Ranked

MAX_DISTRACTORS: Final = 1_000
"""Maximum number of distractors from training rows; beyond it a sample by a hash of their text."""
_MIN_ORDER: Final = 10


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A query with documents.

    Attributes:
        query: the query.
        positive: the right document.
        negative: a wrong document; None if the row names none.
    """

    query: str
    positive: str
    negative: str | None = None


def search_row(example: Example) -> SearchRow | None:
    """A row as query and documents: prompt and answer, or both answers of a preference pair.

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
    """Queries with their candidate documents.

    Attributes:
        row_ids: the first row of each query.
        queries: each once.
        documents: each once, in an order independent of that of the rows, since ties go to the first document.
        right: for each query, the indices of the right documents.
        candidates: for each query, the indices of the candidate documents; None for all documents.
        notes: notes for the reader.
        left_out: of all documents, the one that is no candidate of a query, by the index of the query.
    """

    row_ids: tuple[str, ...]
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    right: tuple[frozenset[int], ...]
    candidates: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    left_out: Mapping[int, int] = field(default_factory=dict)

    def of(self, query: int) -> Sequence[int]:
        """The indices of the candidate documents of a query."""
        if self.candidates is not None:
            return self.candidates[query]
        every = range(len(self.documents))
        if (place := self.left_out.get(query)) is None:
            return every
        return [*every[:place], *every[place + 1 :]]


def search_task(kind: TaskHeadKind, held_out: Sequence[Example], train: Sequence[Example]) -> SearchTask:
    """The search task for a model with a head of that kind, embed or rank.

    Raises:
        RequestError: rows have another form, or there are fewer than two documents.
    """
    return retrieval_task(held_out, train) if kind == "embed" else reranking_task(held_out)


def retrieval_task(held_out: Sequence[Example], train: Sequence[Example]) -> SearchTask:
    """Each query of the held-out rows against all of their documents and up to `MAX_DISTRACTORS` of training rows.

    Documents that a training row marks as right for a held-out query are excluded, since they may be right. Rejected
    documents are included. A document that is a query word for word, as in pairs of similar questions, is no candidate
    of that query, as it is none of its negatives in training: every model would put it first.

    Raises:
        RequestError: rows of another form, or no second document.
    """
    rows = _rows(held_out)
    own = {text for row in rows for text in _documents(row)}
    seen = [row for example in train if (row := search_row(example)) is not None]
    queries = {row.query for row in rows}
    # A document that training rows pair with the same query may be right: as a distractor it would count as a mistake.
    not_right = {text for row in seen if row.query in queries for text in _documents(row)}
    # By hash: a sample that is the same in every run, and independent of the order of the rows.
    others = sorted({text for row in seen for text in _documents(row)} - own - not_right, key=_hash)
    distractors = others[:MAX_DISTRACTORS]
    task = _task(held_out, rows, sorted(own.union(distractors), key=_hash))
    notes = [
        f"{counted(len(task.queries), 'query is', 'queries are')} searched among {counted(len(own), 'document')} of "
        "held-out rows."
    ]
    if distractors:
        notes.append(
            f"{counted(len(distractors), 'document')} of training rows, of {len(others):,}, can be found by mistake."
        )
    left_out = _own_texts(task)
    if left_out:
        notes.append(
            f"{counted(len(left_out), 'query is', 'queries are')} also the text of a document, which is then no "
            "candidate."
        )
    return _checked(replace(task, notes=tuple(notes), left_out=left_out))


def _own_texts(task: SearchTask) -> dict[int, int]:
    """The documents that are a query and not its right document, by the index of the query."""
    place = {text: number for number, text in enumerate(task.documents)}
    found = {query: place.get(text) for query, text in enumerate(task.queries)}
    return {query: own for query, own in found.items() if own is not None and own not in task.right[query]}


def reranking_task(held_out: Sequence[Example]) -> SearchTask:
    """Each held-out query with the documents of its rows, right and wrong.

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
    note = f"Of each of {len(task.queries):,} queries the documents of its rows are ordered, {mean:.3g} on average."
    return _checked(SearchTask(task.row_ids, task.queries, task.documents, task.right, candidates, (note,)))


def _rows(examples: Sequence[Example]) -> list[SearchRow]:
    rows = []
    for example in examples:
        row = search_row(example)
        if row is None:
            raise RequestError(
                f"{example.id} is not a query with a document",
                expected="one user turn and one assistant turn, each with text",
                do="take the row out, or map its columns: data.columns",
            )
        rows.append(row)
    return rows


def _documents(row: SearchRow) -> Iterable[str]:
    return (row.positive,) if row.negative is None else (row.positive, row.negative)


def _hash(text: str) -> bytes:
    # Lone surrogates can be in a JSON string, and must not end the evaluation.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _task(examples: Sequence[Example], rows: Sequence[SearchRow], documents: Sequence[str]) -> SearchTask:
    place = {text: number for number, text in enumerate(documents)}
    ids: dict[str, str] = {}
    right: dict[str, set[int]] = {}
    for example, row in zip(examples, rows, strict=True):
        # The same query in several rows is one query with several right documents.
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
    """The documents of each query by descending score.

    Args:
        task: queries and documents.
        scores: for each query, one number per document (`task.of`); higher is better.
        name: of the scoring model, for errors.

    Raises:
        DivergedError: a score is not a number.
    """
    found = []
    for query, own in enumerate(scores):
        if not np.isfinite(own).all():
            raise DivergedError(
                f"{name} scores documents with {own[~np.isfinite(own)][0]}",
                expected="finite scores",
                do="the weights contain NaN or infinity: check the run's loss curve, or train with a lower rate",
            )
        places = np.asarray(task.of(query))
        # Stable: equal scores keep the order of the hash, which knows nothing of the right answer.
        order = places[np.argsort(-own, kind="stable")]
        first_right = next(rank for rank, place in enumerate(order.tolist()) if place in task.right[query])
        # Metrics only use the first ten documents and the first right one.
        shown = order[: max(_MIN_ORDER, first_right + 1)].tolist()
        relevant = frozenset(task.documents[place] for place in task.right[query])
        found.append(Ranked([task.documents[place] for place in shown], relevant))
    return found
