"""Rows of one group count together, where there are groups enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.evaluation import Verdict
from luthier.core.records.bounds import UNIT
from luthier.ml.data.tokenise.packing import piece_of
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.row_groups import MIN_GROUPS, row_groups, with_groups
from luthier.ml.evaluation.statistics import is_settled, paired_bootstrap

WORDS = Verdict(word="better", metric="exact_match", headline="It is better.", caveats=("one",))


def row(number: int, group: str | None = None) -> Example:
    turns = (Message(role="user", content=f"{number}?"), Message(role="assistant", content=f"{number}!"))
    return Example(id=f"rows.jsonl:{number}", conversation=Conversation(messages=turns), group=group)


def pieces(number: int, of: int) -> list[Example]:
    return [Example(id=f"texts.jsonl:{number} part {n} of {of}", text="words") for n in range(1, of + 1)]


@pytest.mark.parametrize("groups", [[None, None, None], ["a", "b", "c"], [None, "a", "b"]])
def test_rows_that_share_no_group_count_by_themselves(groups: list[str | None]) -> None:
    assert row_groups([row(number, group) for number, group in enumerate(groups)], piece_of) is None


def test_rows_of_one_group_have_one_place() -> None:
    rows = [row(number, f"customer {number % 6}") for number in range(18)]
    found = row_groups([*rows, row(18)], piece_of)
    assert found is not None
    assert (found.num_groups, found.are_few) == (7, False), "a row without a group is one of its own"
    clusters = found.clusters([one.id for one in rows])
    assert clusters is not None
    assert len(set(clusters)) == 6
    assert [clusters.index(one) for one in clusters] == [number % 6 for number in range(18)]
    assert found.sentence == (
        "These 19 held-out rows are of 7 groups: rows of one group count together in intervals and tests."
    )
    assert with_groups(WORDS, found) is WORDS


def test_too_few_groups_are_said_and_rows_count() -> None:
    found = row_groups([row(number, f"contract {number % 3}") for number in range(12)], piece_of)
    assert found is not None
    assert found.clusters([f"rows.jsonl:{number}" for number in range(12)]) is None
    assert found.counted is None
    assert found.sentence == (
        "These 12 held-out rows are of only 3 groups: intervals and tests hold for other rows of these, and say "
        "nothing of other groups. That takes 6 groups at least."
    )
    words = with_groups(WORDS, found)
    assert words is not None
    assert words.caveats == ("one", found.sentence)
    assert with_groups(None, found) is None
    alone = row_groups([row(number, "one contract") for number in range(12)], piece_of)
    assert alone is not None
    assert alone.sentence.startswith("These 12 held-out rows are all of one group: intervals and tests hold for other")


def test_pieces_of_one_text_count_together() -> None:
    found = row_groups([piece for number in range(6) for piece in pieces(number, 2)], piece_of)
    assert found is not None
    assert found.sentence == (
        "These 12 held-out rows are of 6 texts: rows of one text count together in intervals and tests."
    )
    assert found.clusters(["texts.jsonl:3 part 1 of 2"]) == found.clusters(["texts.jsonl:3 part 2 of 2"])


def test_groups_that_rows_do_not_carry_are_given_by_row() -> None:
    named = {f"rows.jsonl:{number}": f"file {number % 2}" for number in range(4)}
    found = row_groups([row(number) for number in range(5)], piece_of, named)
    assert found is not None
    assert found.num_groups == 3
    # A group with the name of a row is another one.
    assert row_groups([row(0, "rows.jsonl:1"), row(1)], piece_of) is None


@pytest.mark.parametrize(("num_groups", "is_shown"), [(MIN_GROUPS - 1, False), (MIN_GROUPS, True)])
def test_fewer_groups_could_not_show_any_difference(num_groups: int, is_shown: bool) -> None:
    a, b = mean_statistics([1.0] * 60), mean_statistics([0.0] * 60)
    clusters = [number % num_groups for number in range(60)]
    found = paired_bootstrap(a, b, mean_of_sums, bounds=UNIT, seed=0, num_resamples=500, clusters=clusters)
    assert is_settled(found) == is_shown


def test_intervals_of_clusters_hold_where_those_of_rows_do_not() -> None:
    """Equal systems on 20 documents of 8 questions, where a document is a win for one of them as a whole."""
    random, claimed = np.random.default_rng(0), {"rows": 0, "groups": 0}
    documents = [number // 8 for number in range(160)]
    for _ in range(200):
        ahead = np.repeat(random.normal(0, 1, 20), 8) + random.normal(0, 1, 160)
        a, b = (mean_statistics(np.clip(0.5 + sign * 0.1 * ahead, 0, 1).tolist()) for sign in (1, -1))
        asked: dict[str, Any] = {"bounds": UNIT, "seed": 0, "num_resamples": 300}
        for name, clusters in (("rows", None), ("groups", documents)):
            claimed[name] += is_settled(paired_bootstrap(a, b, mean_of_sums, clusters=clusters, **asked))
    assert claimed["groups"] <= 18, "at most 5% in truth: 18 is three standard errors above 10"
    assert claimed["rows"] > 60


def test_groups_that_were_trained_on_are_counted() -> None:
    rows = [row(number, f"customer {number % 6}") for number in range(12)]
    train = [row(20, "customer 1"), row(21, "customer 1"), row(22, "customer 4"), row(23, "another"), row(24)]
    found = row_groups(rows, piece_of, train=train)
    assert found is not None
    assert found.num_trained == 2
    assert found.sentence.endswith(
        "rows of one group count together in intervals and tests. 2 of these groups have training rows, too: new "
        "groups may be harder."
    )
    apart = row_groups(rows, piece_of, train=train[3:])
    assert apart is not None
    assert apart.num_trained == 0
    assert apart.sentence.endswith("in intervals and tests.")
