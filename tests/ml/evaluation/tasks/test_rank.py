"""Orders, written or by likelihood; figures against the definitions, worked out from ranks."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.core.results.suite import RankTask
from luthier.ml.evaluation.metrics.ranking import Ranked, hit_at, ndcg_at, reciprocal_rank
from luthier.ml.evaluation.tasks.choices import Rank, written_items


def task(**settings):
    return RankTask(kind="rank", name="next_item", data="rows.jsonl", **settings)


def test_a_written_list(bench):
    rows = [bench.row(1, relevant=["Tea", "Cup"]), bench.row(2, relevant="Pan"), bench.row(3, relevant=["Pot"])]
    outputs = ["1. Lamp\n2. tea\n- Rug\n4) CUP", "Pan", ""]
    found = bench.figures(Rank(), task(k=(1, 5)), rows, outputs)
    gain = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    expected = {
        "ndcg_at_5": (gain + 1) / 3,
        "ndcg_at_1": 1 / 3,
        "hit_at_5": 2 / 3,
        "hit_at_1": 1 / 3,
        "mrr": (1 / 2 + 1) / 3,
        "no_items": 1 / 3,
    }
    assert found == pytest.approx(expected, abs=1e-9)
    assert next(iter(found)) == "ndcg_at_5"


def test_candidates_by_likelihood_and_ties_help_nobody(bench):
    rows = [
        bench.row(1, candidates=["a", "b", "c"], relevant=["b"]),
        bench.row(2, candidates=["a", "b", "c"], relevant=["a"]),
    ]
    kind, likelihood = Rank(), task(by="likelihood", k=(1, 2))
    assert kind.options(likelihood, rows[0]) == ("a", "b", "c")
    assert kind.options(task(), rows[0]) == ()
    found = bench.figures(kind, likelihood, rows, option_nats=[(3.0, 1.0, 2.0), (1.0, 1.0, 1.0)])
    assert found["hit_at_1"] == 0.5
    assert found["hit_at_2"] == 0.5
    assert found["mrr"] == pytest.approx((1 + 1 / 3) / 2)


ITEMS = st.lists(st.integers(0, 12), max_size=10, unique=True)


@settings(deadline=None)
@given(ITEMS, st.frozensets(st.integers(0, 12), min_size=1), st.integers(1, 12))
def test_figures_keep_their_bounds_and_their_meaning(order, relevant, k):
    ranked = Ranked(order, relevant)
    assert 0 <= ndcg_at(ranked, k) <= 1 + 1e-12
    assert (hit_at(ranked, k) == 1) == bool(set(order[:k]) & relevant) == (ndcg_at(ranked, k) > 0)
    best = Ranked(sorted(relevant) + [item for item in order if item not in relevant], relevant)
    assert ndcg_at(best, k) == pytest.approx(1.0)
    assert reciprocal_rank(ranked) <= reciprocal_rank(best) == 1.0


def test_an_item_counts_once_and_keeps_what_only_looks_like_a_number():
    assert written_items("* Tea\n\ntea\n 12) Tea cup\n7 Samurai\n3. 7 Samurai") == ["tea", "tea cup", "7 samurai"]
    assert written_items("1.苹果\n2、香蕉\n（3）梨\n・桃\n4：李子") == ["苹果", "香蕉", "梨", "桃", "李子"]
    assert written_items("7.Zip\n2.5 l\n1. Zip") == ["7.zip", "2.5 l", "zip"]


def test_rows_without_lists_are_all_named(bench):
    rows = [bench.row(1), bench.row(2, relevant=[]), bench.row(3, relevant=["a"]), bench.row(4, relevant=[3])]
    with pytest.raises(DataError) as caught:
        Rank().check(task(), rows)
    assert [(p.line, p.field) for p in caught.value.problems] == [(1, "relevant"), (2, "relevant"), (4, "relevant")]
    rows = [
        bench.row(1, relevant=["a"], candidates=["a", "b"]),
        bench.row(2, relevant=["a"]),
        bench.row(3, relevant=["z"], candidates=["a", "b"]),
        bench.row(4, relevant=["a"], candidates=["a", "A "]),
    ]
    with pytest.raises(DataError) as caught:
        Rank().check(task(by="likelihood"), rows)
    assert [(p.line, p.field) for p in caught.value.problems] == [(2, "candidates"), (3, "relevant"), (4, "candidates")]
