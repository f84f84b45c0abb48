"""The recommended action: a case for each rule; the tuned model is never recommended where it is not the best."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ml.evaluation.judged_cases import FOUR_EXAMPLES, LINEAR, METRIC, curve, judged, system

from luthier.core.evaluation import AlternativeWord, Coverage, Evaluation, Metric, SystemKind, SystemResult, VerdictWord
from luthier.core.evaluation_plan import Bar, Prompting
from luthier.core.results.recommendation import Action
from luthier.ml.evaluation.recommendation import RULES, recommend, recommendation_document

BASE = system("base", 0.0)
PROMPTED = system("base + 4 examples", 0.7, prompting=FOUR_EXAMPLES, num_few_shot=4)
CLASSIFIER = system(LINEAR, 0.78, kind="linear")
COMMONEST = system("commonest answer", 0.6, kind="majority")
BAR = Bar(metric=METRIC, value=0.9)
OPEN: VerdictWord = "not distinguishable"
BETTER = {"word": "better", "beats_all": "better"}
SEEN = ("2 held-out rows are also in the training rows: ...",)


def coverage(low: float) -> Coverage:
    return Coverage(
        asked=0.9, threshold=0.8, num_rows=100, num_answered=62, share=0.62, share_low=0.5, share_high=0.7,
        accuracy=0.97, low=low, high=0.99,
    )  # fmt: skip


def of_better(**changes: Any) -> Evaluation:
    """The tuned model is better than its base and a classifier."""
    return judged(0.95, [BASE, CLASSIFIER], ["better", "better"], **(BETTER | changes))


def of_rival(rival: Any, word: VerdictWord = OPEN, tuned: float = 0.75, **changes: Any) -> Evaluation:
    """The tuned model is better than its base, but not than the rival."""
    own = {"word": word, "beats_all": word.replace(" ", "_")} | changes
    return judged(tuned, [BASE, rival], ["better", word], **own)


def chance(classifier: float, **changes: Any) -> Evaluation:
    """No system is shown to be better than the commonest answer, which is right in 0.6 of the rows."""
    others = [system(LINEAR, classifier, kind="linear"), COMMONEST]
    return judged(0.6, others, [OPEN, OPEN], word=OPEN, **changes)


CASES: dict[str, tuple[int, Evaluation, Action, str | None, int | None]] = {
    "leaked rows": (1, of_better(num_leaked=2), "evaluate_more", None, None),
    "leaked rows of an old evaluation": (1, of_better(caveats=SEEN), "evaluate_more", None, None),
    "better": (2, of_better(), "use_model", "tuned", None),
    "better, and good enough": (2, of_better(good_enough="yes", bar=BAR), "use_model", "tuned", None),
    "better, good enough for a part": (
        3, of_better(good_enough="no", bar=BAR, coverage=coverage(0.91)), "use_model", "tuned", None
    ),
    "better, not good enough, rows help": (
        4, of_better(good_enough="no", bar=BAR, learning_curve=curve(), coverage=coverage(0.8)), "add_rows", None, 400
    ),
    # The figure is 0.05 over the bar, its interval begins 0.1 below the figure: four times the rows halve that.
    "better, the interval begins below the bar": (
        5, of_better(good_enough="no", bar=BAR, learning_curve=curve("unclear", None)), "evaluate_more", None, 400
    ),
    "better, far below the bar": (
        6, of_better(good_enough="no", bar=BAR.model_copy(update={"value": 0.99})), "larger_base", None, None
    ),
    "nothing compared": (7, judged(0.5, [], [], word=OPEN), "evaluate_more", None, None),
    "no better than the commonest answer, rows help": (
        8, of_rival(COMMONEST, learning_curve=curve()), "add_rows", None, 400
    ),
    "not settled against its base, rows help": (
        8, judged(0.5, [system("base", 0.6)], [OPEN], word=OPEN, learning_curve=curve()), "add_rows", None, 400
    ),
    "no one reaches the bar, rows help": (
        8, of_rival(CLASSIFIER, good_enough="no", bar=BAR, learning_curve=curve(more_rows=None)), "add_rows", None, None
    ),
    "ahead, but not settled": (9, of_rival(CLASSIFIER, tuned=0.82, rows_needed=1340), "evaluate_more", None, 1400),
    # 0.05 ahead, of half widths of 0.1 each: (0.1^2 + 0.1^2) / 0.05^2 = 8 times the rows.
    "no one is shown to be better than the commonest answer": (
        9, chance(0.65), "evaluate_more", None, 800
    ),
    "no one is ahead of the commonest answer": (10, chance(0.61), "larger_base", None, None),
    "no one is shown to be better than the commonest answer, rows help": (
        8, chance(0.65, learning_curve=curve()), "add_rows", None, 400
    ),
    "no better than the commonest answer": (10, of_rival(COMMONEST, tuned=0.55), "larger_base", None, None),
    "no one is ever right": (10, judged(0.0, [BASE], [OPEN], word=OPEN), "larger_base", None, None),
    "no one reaches the bar": (10, of_rival(CLASSIFIER, good_enough="no", bar=BAR), "larger_base", None, None),
    "a prompt is as good": (11, of_rival(PROMPTED, tuned=0.65), "use_prompt", "base + 4 examples", None),
    "a prompt is better": (11, of_rival(PROMPTED, "worse", tuned=0.4, learning_curve=curve()), "use_prompt",
                           "base + 4 examples", None),
    "a classifier is as good": (12, of_rival(CLASSIFIER, rows_needed=1200), "use_simple_method", LINEAR, None),
    "a classifier is better": (
        12, of_rival(CLASSIFIER, "worse", learning_curve=curve()), "use_simple_method", LINEAR, None
    ),
    "ahead by less than rows can settle": (
        12, of_rival(CLASSIFIER, tuned=0.79, rows_needed=2001), "use_simple_method", LINEAR, None
    ),
    "the base is better": (
        13, judged(0.5, [system("base", 0.9)], ["worse"], word="worse"), "use_other_model", "base", None
    ),
    "its likeliest label is better": (
        13,
        of_rival(system("base, likeliest label", 0.9, prompting=Prompting(kind="label_likelihood")), "worse"),
        "use_other_model",
        "base, likeliest label",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_rule_gives_its_action(name: str) -> None:
    rule, evaluation, action, of_system, num_rows = CASES[name]
    found = recommend(evaluation)
    assert found is not None
    assert (found.rule, found.action, found.system, found.num_rows) == (rule, action, of_system, num_rows)
    assert found.title.endswith(".")
    assert found.reason.endswith(".")


def test_every_rule_and_every_action_has_a_case() -> None:
    assert {case[0] for case in CASES.values()} == set(range(1, len(RULES) + 1))
    assert {case[2] for case in CASES.values()} == set(get_args(Action))


def test_the_reason_has_the_difference_and_its_interval_in_points() -> None:
    found = recommend(of_rival(CLASSIFIER))
    assert found is not None
    assert found.title == "Use a linear classifier instead."
    assert found.reason == (
        "The tuned model is 3 percentage points behind a linear classifier (95% interval -11 to 5), which needs "
        "no language model."
    )


def test_the_distance_to_draws_of_examples_is_that_to_the_strongest_of_them() -> None:
    evaluation = of_rival(PROMPTED, tuned=0.65)
    comparisons = tuple(
        one.model_copy(update={"test": "strongest_draw"}) if one.baseline == PROMPTED.name else one
        for one in evaluation.comparisons
    )
    found = recommend(evaluation.model_copy(update={"comparisons": comparisons}))
    assert found is not None
    assert "percentage points behind the strongest draw of " in found.reason


def test_one_point_is_singular_and_no_difference_is_level() -> None:
    one, none = (recommend(of_rival(CLASSIFIER, tuned=tuned)) for tuned in (0.77, 0.78))
    assert one is not None
    assert none is not None
    assert "is 1 percentage point behind a linear classifier" in one.reason
    assert "is level with a linear classifier (95% interval -8 to 8 percentage points)" in none.reason


def test_the_reason_for_the_tuned_model_names_the_nearest_of_all() -> None:
    found = recommend(of_better())
    assert found is not None
    assert found.title == "Use the tuned model."
    assert found.reason == (
        "The tuned model is 17 percentage points ahead of a linear classifier (95% interval 9 to 25). The other one is "
        "further behind."
    )


def test_where_lower_is_better_ahead_means_lower() -> None:
    base = system("base", 8.0, metric="perplexity", higher_is_better=False, unit="per token")
    own = judged(6.0, [base], ["better"], word="better", metric="perplexity", higher_is_better=False, unit="per token")
    found = recommend(own)
    assert found is not None
    assert found.action == "use_model"
    assert "2.00 ahead of the untuned model (95% interval 1.92 to 2.08, by perplexity)" in found.reason


def test_where_it_is_sure_of_all_cases_none_is_left_to_people() -> None:
    of_all = coverage(0.91).model_copy(update={"num_answered": 100, "share": 1.0, "share_high": 1.0})
    found = recommend(of_better(good_enough="no", bar=BAR, coverage=of_all))
    assert found is not None
    assert (found.action, found.system) == ("use_model", "tuned")
    assert found.title == "Use the tuned model with its likeliest label."
    assert "is shown to reach the required 0.9 by label accuracy in all cases" in found.reason
    assert "people" not in found.title + found.reason


@pytest.mark.parametrize(
    ("num_answered", "percent"), [(1, "1%"), (624, "62%"), (998, "99%"), (1000, "100%"), (0, "0%")]
)
def test_only_all_cases_are_a_hundred_percent(num_answered: int, percent: str) -> None:
    one = coverage(0.91).model_copy(
        update={"num_rows": 1000, "num_answered": num_answered, "share": num_answered / 1000}
    )
    assert one.percent == percent


def test_only_where_no_system_is_right_is_that_said() -> None:
    never, sometimes = (recommend(judged(tuned, [BASE], [OPEN], word=OPEN)) for tuned in (0.0, 0.05))
    assert never is not None
    assert sometimes is not None
    assert (never.action, sometimes.action) == ("larger_base", "larger_base")
    assert never.reason.endswith(" No system gives a right answer.")
    assert sometimes.reason.endswith(" The untuned model gives no right answer.")
    assert "5 percentage points ahead" in sometimes.reason


@pytest.mark.parametrize("is_beaten", [True, False])
def test_the_reason_says_that_the_commonest_answer_is_not_beaten_either(is_beaten: bool) -> None:
    words: list[VerdictWord] = ["better", "better" if is_beaten else OPEN, OPEN]
    found = recommend(judged(0.75, [BASE, COMMONEST, CLASSIFIER], words, word=OPEN))
    assert found is not None
    assert found.title == "Use a linear classifier instead."
    said = " The tuned model is not shown to be better than the commonest answer either."
    assert found.reason.endswith(said) is not is_beaten


def by_luck(name: str, num_right: int, num_rows: int, kind: SystemKind) -> SystemResult:
    share = num_right / num_rows
    half = 1.96 * math.sqrt(share * (1 - share) / num_rows)
    figure = Metric(value=share, low=share - half, high=share + half, unit="fraction", higher_is_better=True)
    return system(name, share, kind=kind).model_copy(update={"metrics": {METRIC: figure}, "num_samples": num_rows})


def test_a_classifier_that_is_lucky_with_labels_of_noise_is_not_recommended() -> None:
    """60 rows, two labels, each system right by a coin: the luckiest one is ahead, and has learned nothing."""
    draw, actions, num_lucky = random.Random(7), Counter[str](), 0
    for _ in range(2_000):
        tuned, classifier, commonest = (sum(draw.random() < 0.5 for _ in range(60)) for _ in range(3))
        others = [by_luck(LINEAR, classifier, 60, "linear"), by_luck("commonest answer", commonest, 60, "majority")]
        found = recommend(judged(tuned / 60, others, [OPEN, OPEN], word=OPEN))
        assert found is not None
        actions[found.action] += 1
        num_lucky += classifier > commonest
    assert num_lucky > 800
    # One-sided, at 2.5%.
    assert 0 < actions["use_simple_method"] < 2_000 * 0.04
    assert actions["evaluate_more"] > 0


def test_a_teacher_is_no_rival() -> None:
    teacher = system("teacher big", 0.99)
    found = recommend(judged(0.8, [BASE, teacher], ["better", "worse"], word="better"))
    assert found is not None
    assert found.action == "use_model"
    assert "teacher" not in found.reason


def test_without_a_verdict_nothing_is_recommended() -> None:
    alone = of_better().model_copy(update={"verdict": None})
    assert recommend(alone) is None
    assert recommendation_document(alone) is None
    assert recommendation_document(None) is None


VALUES = st.floats(0.0, 1.0)
WORDS = st.sampled_from(get_args(VerdictWord))


@given(
    tuned=VALUES,
    figures=st.lists(st.tuples(VALUES, WORDS), min_size=4, max_size=4),
    word=WORDS,
    beats_all=st.sampled_from([None, *get_args(AlternativeWord)]),
    good_enough=st.sampled_from(["yes", "no", "not_asked"]),
    more=st.sampled_from(["more_rows", "enough_rows", "unclear"]),
    num_leaked=st.integers(0, 1),
    covered=st.booleans(),
    rows_needed=st.one_of(st.none(), st.integers(1, 10_000)),
)
def test_the_tuned_model_is_recommended_only_where_it_is_better_than_all(
    tuned: float,
    figures: list[tuple[float, VerdictWord]],
    word: VerdictWord,
    beats_all: AlternativeWord | None,
    good_enough: str,
    more: str,
    num_leaked: int,
    covered: bool,
    rows_needed: int | None,
) -> None:
    others = [
        one.model_copy(update={"metrics": {METRIC: one.metrics[METRIC].model_copy(update={"value": value})}})
        for one, (value, _) in zip((BASE, PROMPTED, CLASSIFIER, COMMONEST), figures, strict=True)
    ]
    evaluation = judged(
        tuned, others, [own for _, own in figures], word=word, beats_all=beats_all, rows_needed=rows_needed,
        good_enough=good_enough, bar=None if good_enough == "not_asked" else BAR, learning_curve=curve(more),
        num_leaked=num_leaked, coverage=coverage(0.91) if covered else None,
    )  # fmt: skip
    found = recommend(evaluation)
    assert found is not None
    assert found.reason
    if found.action == "use_model":
        assert (word, beats_all in (None, "better"), num_leaked) == ("better", True, 0)
        assert found.system == "tuned"
    else:
        assert found.system != "tuned"
    assert recommend(evaluation) == found


OPEN_CASE, NEAR_BAR = "ahead, but not settled", "better, the interval begins below the bar"


@pytest.mark.parametrize(
    ("case", "num_in_file", "ending"),
    [
        (OPEN_CASE, 184, "84 held-out rows have not been evaluated yet. After that, about 1,300 more rows are needed."),
        (OPEN_CASE, 1399, "1,299 held-out rows have not been evaluated yet. After that, about 1 more row is needed."),
        (OPEN_CASE, 1400, "With these, the rows are expected to be enough."),
        (NEAR_BAR, 101, "1 held-out row has not been evaluated yet. After that, about 300 more rows are needed."),
        ("nothing compared", 184, "84 held-out rows have not been evaluated yet."),
    ],
)
def test_rows_that_are_there_are_evaluated_before_others_are_collected(
    case: str, num_in_file: int, ending: str
) -> None:
    evaluation = CASES[case][1]
    assert evaluation.num_rows == 100
    found = recommend(evaluation.model_copy(update={"num_rows_in_file": num_in_file}))
    assert found is not None
    assert found.title == f"Evaluate all {num_in_file:,} held-out rows before you decide."
    assert found.reason.endswith(ending), found.reason
    assert (found.action, found.num_rows_left) == ("evaluate_more", num_in_file - 100)
    assert found.num_rows == CASES[case][4]


def test_where_all_rows_were_evaluated_others_are_collected() -> None:
    evaluation = CASES[OPEN_CASE][1]
    before = recommend(evaluation)
    assert before == recommend(evaluation.model_copy(update={"num_rows_in_file": 100}))
    assert before is not None
    assert (before.title, before.num_rows_left) == (
        "Evaluate on about 1,400 held-out rows before you decide.",
        None,
    )
