"""Ranking metrics: hit@k, recall@k, NDCG@k, mean reciprocal rank. Relevance is binary.

`ranking_metrics` creates them for any kind of task; the classes below evaluate document search.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.ml.evaluation.metrics.protocol import (
    Array,
    Fraction,
    MeanOfRows,
    Needs,
    Observations,
    mean_statistics,
)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One row.

    Attributes:
        order: the items in order, each once; at least the first ten and up to the first right one.
        relevant: the right items.
    """

    order: Sequence[Hashable]
    relevant: frozenset[Hashable]


Ranking = Callable[[Observations], Sequence[Ranked]]


def hit_at(ranked: Ranked, k: int) -> float:
    """1 if a right item is among the first k."""
    return float(any(item in ranked.relevant for item in ranked.order[:k]))


def recall_at(ranked: Ranked, k: int) -> float:
    """The share of the right items that are among the first k; 0 without right items."""
    found = sum(item in ranked.relevant for item in ranked.order[:k])
    return found / len(ranked.relevant) if ranked.relevant else 0.0


def ndcg_at(ranked: Ranked, k: int) -> float:
    """Discounted gain of the first k divided by that of the best order; 0 to 1.

    Source: Jarvelin and Kekalainen, "Cumulated Gain-Based Evaluation of IR Techniques", 2002, section 2, with the
    discount log2(rank + 1) for every rank (Burges et al., "Learning to Rank using Gradient Descent", 2005).
    """
    gain = sum(1.0 / math.log2(rank + 1) for rank, item in enumerate(ranked.order[:k], 1) if item in ranked.relevant)
    # The best order has all right items first, at most k of them.
    best = sum(1.0 / math.log2(rank + 1) for rank in range(1, min(k, len(ranked.relevant)) + 1))
    return gain / best if best else 0.0


def reciprocal_rank(ranked: Ranked) -> float:
    """1 / rank of the first right item; 0 if there is none.

    Source: Voorhees, "The TREC-8 Question Answering Track Report", 1999, section 3.
    """
    return next((1.0 / rank for rank, item in enumerate(ranked.order, 1) if item in ranked.relevant), 0.0)


def ranking_metrics(ranking: Ranking, cut_offs: Sequence[int], needs: Needs) -> list[Fraction]:
    """NDCG at the largest cut-off first, then all others, hits, and the mean reciprocal rank."""

    def mean_of(value: Callable[[Ranked], float]) -> Callable[[Observations], Array]:
        return lambda observed: mean_statistics([value(row) for row in ranking(observed)])

    cut_offs = sorted(set(cut_offs), reverse=True)
    ndcg = [Fraction(f"ndcg_at_{k}", f"NDCG@{k}", mean_of(_at(ndcg_at, k)), needs, unit="0 to 1") for k in cut_offs]
    hits = [Fraction(f"hit_at_{k}", f"hit@{k}", mean_of(_at(hit_at, k)), needs) for k in cut_offs]
    return [*ndcg, *hits, Fraction("mrr", "mean reciprocal rank", mean_of(reciprocal_rank), needs, unit="0 to 1")]


def _at(value: Callable[[Ranked, int], float], k: int) -> Callable[[Ranked], float]:
    # A separate function binds k; a lambda in the loop would see the last one.
    return lambda ranked: value(ranked, k)


class _OfRankings(MeanOfRows):
    """The mean of a figure over queries."""

    unit: ClassVar[str] = "0 to 1"
    needs: ClassVar[Needs] = "ranking"

    @abstractmethod
    def value(self, ranked: Ranked) -> float:
        """The figure of one query, from 0 to 1."""

    def statistics(self, observed: Observations) -> Array:
        """[num_queries, 2]: the figure of each query, one."""
        return mean_statistics([self.value(ranked) for ranked in observed.rankings])


class NdcgAt10(_OfRankings):
    """Discounted gain of the first ten documents divided by that of the best order."""

    name, title = "ndcg_at_10", "NDCG@10"

    def value(self, ranked: Ranked) -> float:
        """`ndcg_at` 10."""
        return ndcg_at(ranked, 10)


class RecallAt1(_OfRankings):
    """Share of the right documents that come first."""

    name, title, unit = "recall_at_1", "recall@1", "fraction"

    def value(self, ranked: Ranked) -> float:
        """`recall_at` 1."""
        return recall_at(ranked, 1)


class RecallAt5(_OfRankings):
    """Share of the right documents that are among the first five."""

    name, title, unit = "recall_at_5", "recall@5", "fraction"

    def value(self, ranked: Ranked) -> float:
        """`recall_at` 5."""
        return recall_at(ranked, 5)


class RecallAt10(_OfRankings):
    """Share of the right documents that are among the first ten."""

    name, title, unit = "recall_at_10", "recall@10", "fraction"

    def value(self, ranked: Ranked) -> float:
        """`recall_at` 10."""
        return recall_at(ranked, 10)


class MeanReciprocalRank(_OfRankings):
    """Mean of 1 over the rank of the first right document."""

    name, title = "mrr", "mean reciprocal rank"

    def value(self, ranked: Ranked) -> float:
        """`reciprocal_rank`."""
        return reciprocal_rank(ranked)
