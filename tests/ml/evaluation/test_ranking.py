import math

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.ml.evaluation.ranking import bradley_terry

STRENGTHS = np.array([0.8, 0.1, -0.9])


def judged(generator, num_items):
    """One judgement of each pair an item."""
    tables = np.zeros((num_items, 3, 3))
    for table in tables:
        for i, j in ((1, 0), (2, 0), (2, 1)):
            wins = generator.random() < 1 / (1 + math.exp(STRENGTHS[j] - STRENGTHS[i]))
            table[(i, j) if wins else (j, i)] += 1
    return tables


def test_two_systems_have_the_log_odds_of_their_wins():
    ranking = bradley_terry([[0, 30], [10, 0]])
    assert ranking.strengths[0].value == pytest.approx(math.log(3) / 2)
    gap = ranking.gap(0, 1)
    assert gap.value == pytest.approx(math.log(3))
    half = 1.959964 * math.sqrt(1 / 30 + 1 / 10)
    assert (gap.low, gap.high) == (pytest.approx(gap.value - half), pytest.approx(gap.value + half))


def test_strengths_solve_the_likelihood_equations():
    """Wins of each system equal those expected: the equations of Bradley and Terry, section 4."""
    wins = np.array([[0, 13, 22, 9], [7, 0, 15, 11], [4, 6, 0, 12], [8, 9.5, 10, 0]])
    strengths = np.array([s.value for s in bradley_terry(wins).strengths])
    chances = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    assert ((wins + wins.T) * chances).sum(axis=1) == pytest.approx(wins.sum(axis=1))
    assert strengths.sum() == pytest.approx(0.0, abs=1e-9)


def test_ties_are_half_a_win_each():
    assert [s.value for s in bradley_terry([[0, 5], [5, 0]]).strengths] == pytest.approx([0.0, 0.0])
    tied = bradley_terry([[0, 4 + 3], [2 + 3, 0]])
    assert tied.gap(0, 1).value == pytest.approx(math.log(7 / 5))


@pytest.mark.parametrize("of_item", [0.0, 1.5])
def test_intervals_by_item_hold_the_truth_even_where_judgements_of_an_item_go_together(of_item):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        # Three judges see the same item and share its taste.
        items = np.repeat(np.arange(40), 3)
        tastes = generator.normal(0, of_item, size=(40, 3))
        tables = np.zeros((40, 3, 3))
        for item in items:
            own = STRENGTHS * (0.0 if of_item else 1.0) + tastes[item]
            i, j = generator.permutation(3)[:2]
            wins = generator.random() < 1 / (1 + math.exp(own[j] - own[i]))
            tables[item][(i, j) if wins else (j, i)] += 1
        gap = bradley_terry(tables).gap(0, 1)
        held += gap.low <= (0.0 if of_item else 0.7) <= gap.high
    assert 0.90 <= held / 150 <= 0.995


def test_a_system_that_never_lost_has_no_upper_end():
    ranking = bradley_terry([[0, 6, 5], [0, 0, 3], [0, 2, 0]])
    best, *others = ranking.strengths
    assert ranking.is_penalised
    assert best.high == math.inf
    assert math.isfinite(best.low)
    assert math.isfinite(best.value)
    assert all(nonempty(other.low == -math.inf for other in others))
    assert ranking.gap(0, 1).high == math.inf
    assert ranking.gap(1, 0).low == -math.inf
    assert best.value == max(s.value for s in ranking.strengths)
    assert not bradley_terry([[0, 6], [1, 0]]).is_penalised


def test_more_items_make_it_surer():
    generator = np.random.default_rng(1)
    few, many = (bradley_terry(judged(generator, n)).gap(0, 2) for n in (20, 200))
    assert many.high - many.low < 0.5 * (few.high - few.low)


AGREED = np.array([[0.0, 2.0, 1.5], [1.0, 0.0, 2.0], [1.5, 1.0, 0.0]])


def test_items_that_all_say_the_same_leave_uncertainty_by_their_number():
    """No spread is seen among them, yet few items have been seen."""
    one, few, many = (bradley_terry(np.repeat(AGREED[None], num, axis=0)) for num in (1, 4, 400))
    for system in range(3):
        a, b, c = (ranking[system] for ranking in (one, few, many))
        assert a.low < b.low < c.low < c.value < c.high < b.high < a.high
        assert b.value == pytest.approx(c.value)
    gap = few.gap(0, 1)
    assert gap.low < 0 < gap.value < gap.high
    # Of two systems Wilson's interval of the share itself: 0 of 4 others.
    two = bradley_terry(np.repeat(np.array([[[0.0, 1.0], [1.0, 0.0]]]), 4, axis=0)).gap(0, 1)
    others = 3.841459 / (4 + 3.841459)
    assert two.high == pytest.approx(math.log((1 + others) / (1 - others)), abs=1e-5)
    assert two.low == pytest.approx(-two.high)


def test_agreement_about_one_system_alone_is_no_certainty_either():
    """All items tie the first pair; the third system alone differs from item to item."""
    tables = np.zeros((6, 3, 3))
    for number, table in enumerate(tables):
        table[0, 1] = table[1, 0] = 0.5
        table[0, 2] = table[1, 2] = float(number % 2)
        table[2, 0] = table[2, 1] = 1.0 - number % 2
    gap = bradley_terry(tables).gap(0, 1)
    assert gap.value == pytest.approx(0.0)
    assert gap.low < -0.5
    assert gap.high > 0.5


def test_what_cannot_be_ranked_is_refused():
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 3
    with pytest.raises(RequestError, match=r"never met: \[\[0, 1\], \[2, 3\]\]"):
        bradley_terry(apart)
    for wrong in ([[0]], [[0, 1]], [[1, 2], [3, 0]], [[0, -1], [3, 0]]):
        with pytest.raises(RequestError):
            bradley_terry(wrong)
