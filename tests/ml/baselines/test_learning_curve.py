"""Whether more rows would help, from a quarter, half and the whole of the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from tests.ml.baselines.test_predict import example, labelled
from tests.vacuous import nonempty

from luthier.core.dataset import Example
from luthier.core.evaluation import RowsCurve
from luthier.core.ports import SilentProgress
from luthier.core.records.bounds import UNIT
from luthier.ml.baselines import labels
from luthier.ml.baselines import learning_curve as curves
from luthier.ml.baselines.learning_curve import MIN_ROWS, learning_curve
from luthier.ml.baselines.predict import LINEAR, NEAREST, BaselineSet, predict
from luthier.ml.baselines.rows import task_rows
from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import load_metrics

ACCURACY = load_metrics(["label_accuracy"])[0]
NUM_LABELS = 4


def curve(train: Sequence[Example], held_out: Sequence[Example], *, seconds: float = 60.0) -> RowsCurve | None:
    found = predict(train, held_out, progress=SilentProgress())
    return learning_curve(train, held_out, found, ACCURACY, seconds=seconds, progress=SilentProgress())


class Table:
    """A task of `num_words` words, each with a label; a learner that gives each word its commonest training label."""

    def __init__(self, num_words: int, noise: float, seed: int) -> None:
        self.draw, self.num_words, self.noise = np.random.default_rng(seed), num_words, noise
        self.labels = self.draw.integers(NUM_LABELS, size=num_words)

    def rows(self, num: int) -> tuple[Array, Array]:
        words = self.draw.integers(self.num_words, size=num)
        others = self.draw.integers(NUM_LABELS, size=num)
        return words, np.where(self.draw.random(num) < self.noise, others, self.labels[words])

    def right(self, train: tuple[Array, Array], held_out: tuple[Array, Array]) -> Array:
        counts = np.zeros((self.num_words, NUM_LABELS))
        np.add.at(counts, train, 1)
        return np.asarray(counts.argmax(axis=1)[held_out[0]] == held_out[1], dtype=np.float64)

    def study(self, num_rows: int, num_held_out: int) -> RowsCurve:
        train, held_out = self.rows(num_rows), self.rows(num_held_out)
        fits = [curves._Fit(1, 0, mean_statistics(self.right(train, held_out).tolist()))]
        for partition in range(4):
            order = self.draw.permutation(num_rows)
            for parts in (4, 2):
                for first in range(parts):
                    own = order[first::parts]
                    right = self.right((train[0][own], train[1][own]), held_out)
                    fits.append(curves._Fit(parts, partition, mean_statistics(right.tolist())))
        return curves.curve_of(fits, num_rows, ACCURACY, UNIT, "table")

    def gain(self, num_rows: int) -> float:
        """What twice the rows bring in truth: the mean of many trainings, on many rows."""
        held_out = self.rows(4_000)
        sizes = [[self.right(self.rows(num), held_out).mean() for _ in range(40)] for num in (num_rows, 2 * num_rows)]
        return float(np.mean(sizes[1]) - np.mean(sizes[0]))


@pytest.mark.parametrize(
    ("num_words", "noise", "num_held_out", "word"),
    [
        (1_500, 0.0, 200, "more_rows"),
        (300, 0.1, 200, "more_rows"),
        (10, 0.2, 300, "enough_rows"),
        (40, 0.0, 80, "enough_rows"),
    ],
    ids=["begins to rise", "rises to 0.925", "at its ceiling of 0.85", "at its ceiling of 1"],
)
def test_the_advice_is_right_in_nine_of_ten_simulated_studies(
    num_words: int, noise: float, num_held_out: int, word: str
) -> None:
    studies = [Table(num_words, noise, seed).study(400, num_held_out) for seed in range(40)]
    words = Counter(one.word for one in studies)
    assert words[word] >= 36, words
    expected = nonempty([one.expected for one in studies if one.expected is not None])
    assert all(nonempty(0 <= one.value <= one.high <= 1 + 1e-9 for one in expected))
    truth = Table(num_words, noise, 0).gain(400)
    gains = [one.expected_gain for one in studies if one.expected_gain is not None]
    assert len(gains) == 40
    # 0.01: the truth itself is measured, on 4,000 rows.
    assert sum(one.low - 0.01 <= truth <= one.high + 0.01 for one in gains) >= 36, truth


def test_it_is_that_of_the_best_quick_baseline_on_a_quarter_half_and_the_whole() -> None:
    found = curve(labelled(200), labelled(40, start=500))
    assert found is not None
    assert (found.system, found.metric, found.word) == (NEAREST, "label_accuracy", "enough_rows")
    assert [(one.rows, one.num_draws) for one in found.points] == [(50, 16), (100, 8), (200, 1)]
    assert all(one.low <= one.value <= one.high <= 1 for one in nonempty(found.points))
    assert found.more_rows is None
    assert found.expected is not None
    assert found.expected.rows == 400
    assert "More rows would hardly help: label accuracy of the nearest training row (BM25) went from" in found.advice


def test_it_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [example(n, f"Dish {n % 17} of {n}", ("good", "bad", "so so")[n * n % 3]) for n in range(120)]
    one, other = curve(rows, labelled(30)), curve(rows[::-1], labelled(30))
    assert one is not None
    assert other is not None
    assert [point.value for point in one.points][:2] == pytest.approx(
        [point.value for point in other.points][:2], abs=0.1
    )
    keys = [sorted(row.prompt for row in own) for _, _, own in curves._parts(task_rows(rows), 1)]
    assert keys == [sorted(row.prompt for row in own) for _, _, own in curves._parts(task_rows(rows[::-1]), 1)]


def test_the_parts_of_a_partition_share_no_row_and_are_all_rows() -> None:
    rows = task_rows(labelled(30))
    parts = list(curves._parts(rows, 2))
    assert len(parts) == 12
    for partition in (0, 1):
        for num in (4, 2):
            own = [row.prompt for which, of, part in parts if (which, of) == (partition, num) for row in part]
            assert sorted(own) == sorted(row.prompt for row in rows)


@pytest.mark.parametrize("num_rows", [12, MIN_ROWS - 1])
def test_too_few_rows_are_said_to_be_too_few(num_rows: int) -> None:
    found = curve(labelled(num_rows), labelled(40, start=500))
    assert found is not None
    assert (found.word, found.points, found.expected_gain) == ("unclear", (), None)
    assert f"is unclear from so few rows ({num_rows} to train on, 40 to evaluate with" in found.advice


def test_a_quarter_that_fits_nothing_is_said() -> None:
    rows = [example(n, f"Dish {n} of {n % 7}", f"label {n % 24}") for n in range(60)]
    found = predict(rows, rows[:30], progress=SilentProgress())
    linear = BaselineSet(tuple(one for one in found.predictions if one.name == LINEAR), (), 60)
    assert linear.predictions
    without = learning_curve(rows, rows[:30], linear, ACCURACY, seconds=60, progress=SilentProgress())
    assert without is not None
    assert without.points == ()
    assert "a quarter of the 60 rows is too few for a linear classifier" in without.advice


def test_sets_of_labels_are_compared_as_sets() -> None:
    """Held-out rows write the same two labels the other way round: as texts, no answer is right."""
    pair = {True: "hot, sweet", False: "cold, salty"}
    train = [example(n, f"{pair[n % 2 == 0]} dish {n}", pair[n % 2 == 0]) for n in range(80)]
    turned = {True: "sweet, hot", False: "salty, cold"}
    held_out = [example(500 + n, f"{pair[n % 2 == 0]} dish {500 + n}", turned[n % 2 == 0]) for n in range(40)]
    found = predict(train, held_out, progress=SilentProgress())
    linear = BaselineSet(tuple(one for one in found.predictions if one.name == LINEAR), (), 80)
    assert linear.predictions
    values = []
    for canonical in (None, lambda text: ", ".join(sorted(text.split(", ")))):
        drawn = learning_curve(
            train, held_out, linear, ACCURACY, seconds=60, progress=SilentProgress(), canonical=canonical
        )
        assert drawn is not None
        values.append([point.value for point in drawn.points])
    assert values == [[0.0] * 3, [1.0] * 3]


def test_it_takes_no_more_time_than_is_left() -> None:
    found = curve(labelled(100), labelled(40, start=500), seconds=0.0)
    assert found is not None
    assert found.points == ()
    assert "was not measured: it would have taken" in found.advice


def test_without_a_baseline_that_learns_there_is_none() -> None:
    rows = [example(n, f"p {n}", "always this") for n in range(60)]
    found = predict(rows, rows[:30], progress=SilentProgress())
    none = BaselineSet(tuple(one for one in found.predictions if one.kind == "majority"), (), 60)
    assert learning_curve(rows, rows[:30], none, ACCURACY, seconds=60, progress=SilentProgress()) is None


class Misses:
    """The share of wrong answers: lower is better."""

    name, title, unit, lower, upper = "misses", "misses", "fraction", 0.0, 1.0
    higher_is_better, needs, has_sample_values = False, "text", True

    def statistics(self, observed: Observations) -> Array:
        return mean_statistics([a != b for a, b in zip(observed.outputs, observed.references, strict=True)])

    def aggregate(self, sums: Array) -> Array:
        return mean_of_sums(sums)


def test_where_lower_is_better_a_gain_is_a_fall() -> None:
    table, fits = Table(300, 0.1, 1), []
    train, held_out = table.rows(400), table.rows(200)
    for parts in (1, 2, 4):
        for first in range(parts):
            right = table.right((train[0][first::parts], train[1][first::parts]), held_out)
            fits.append(curves._Fit(parts, 0, mean_statistics((1 - right).tolist())))
    found = curves.curve_of(fits, 400, Misses(), UNIT, "table")  # type: ignore[arg-type]
    assert found.points[0].value > found.points[-1].value
    assert found.expected is not None
    assert found.expected.value < found.points[-1].value
    assert found.expected.low <= found.expected.value <= found.expected.high


def test_few_held_out_rows_leave_it_open_rather_than_claim_too_much() -> None:
    studies = [Table(150, 0.3, seed).study(120, 30) for seed in range(40)]
    assert Counter(one.word for one in studies)["enough_rows"] <= 4


@pytest.fixture(scope="module")
def linear() -> BaselineSet:
    """What the linear classifier predicts; fitting all baselines takes most of the time of a test."""
    found = predict(labelled(200), labelled(40, start=500), progress=SilentProgress())
    return BaselineSet(tuple(one for one in found.predictions if one.name == LINEAR), (), 200)


@pytest.mark.parametrize(
    ("word", "told"), [("more_rows", "unclear"), ("unclear", "unclear"), ("enough_rows", "enough_rows")]
)
def test_rows_that_a_baseline_has_left_out_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, linear: BaselineSet, word: str, told: str
) -> None:
    """Of long prompts it is fitted on a part, and the user may have the further rows already."""
    train, held_out = labelled(200), labelled(40, start=500)
    made = RowsCurve.model_validate(
        {"metric": "label_accuracy", "word": word, "advice": "as computed", "more_rows": 150}
    )
    monkeypatch.setattr(curves, "curve_of", lambda *_asked: made)
    whole = learning_curve(train, held_out, linear, ACCURACY, seconds=60, progress=SilentProgress())
    assert whole == made
    num_characters = sum(len(row.prompt) for row in task_rows(train))
    monkeypatch.setattr(labels, "MAX_CHARACTERS", -(-num_characters // 3))
    part = learning_curve(train, held_out, linear, ACCURACY, seconds=60, progress=SilentProgress())
    assert part is not None
    assert part.word == told
    if told == "unclear":
        assert part.more_rows is None
        assert "a linear classifier was fitted on 67 of 200 rows" in part.advice
    else:
        assert part == made
