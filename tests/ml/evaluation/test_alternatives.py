"""What one could use instead of the judged model, in the verdict."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.evaluation import Comparison, Evaluation, Metric, Sample, SystemKind, SystemResult, Verdict
from luthier.core.evaluation_plan import Bar, Prompting
from luthier.core.records.bounds import UNIT
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.recommendation import recommend, with_agreeing_headline
from luthier.ml.evaluation.statistics import paired_bootstrap, verdict_word
from luthier.ml.evaluation.verdict import against_all, bar_of_agreement, best_of, held_against, verdict
from luthier.testing.records import make_evaluation

METRIC = "label_accuracy"


def system(name: str, right: Sequence[bool], kind: SystemKind = "model", num_few_shot: int = 0) -> SystemResult:
    share = float(np.mean(right))
    found = Metric(value=share, low=max(0, share - 0.1), high=min(1, share + 0.1), unit="share", higher_is_better=True)
    adapter = "adapter" if name == "tuned" else None
    return SystemResult(
        name=name, model="small" if kind == "model" else "", adapter=adapter, num_few_shot=num_few_shot, kind=kind,
        num_samples=len(right), metrics={METRIC: found}, seconds=0.7,
    )  # fmt: skip


def compared(tuned: Sequence[bool], name: str, right: Sequence[bool]) -> Comparison:
    a, b = (mean_statistics(np.array(one, dtype=float)) for one in (tuned, right))
    found = paired_bootstrap(a, b, mean_of_sums, bounds=UNIT, seed=0, num_resamples=500)
    word = verdict_word(found, higher_is_better=True)
    return Comparison(
        baseline=name, candidate="tuned", metric=METRIC, difference=found.difference, low=found.low, high=found.high,
        p_value=found.p_value, verdict=word,
    )  # fmt: skip


def judged(
    tuned: Sequence[bool], others: dict[str, tuple[SystemKind, Sequence[bool]]], bar: Bar | None = None
) -> Verdict:
    shots = {name: 4 if "examples" in name else 0 for name in others}
    results = [system(name, right, kind, shots[name]) for name, (kind, right) in others.items()]
    comparisons = [compared(tuned, name, right) for name, (_, right) in others.items()]
    return verdict([*results, system("tuned", tuned)], comparisons, primary=METRIC, bar=bar)


def share(num: int, of: int = 80) -> list[bool]:
    return [number < num for number in range(of)]


def test_a_model_no_better_than_a_classifier_is_not_called_better() -> None:
    """Food reviews of issue 22: 0 of 80 by the base, 60 of 80 tuned, 62 by a linear classifier, 54 by one answer."""
    found = judged(
        share(60),
        {
            "base": ("model", share(0)),
            "base + 4 examples": ("model", share(26)),
            "commonest answer": ("majority", share(54)),
            "linear classifier": ("linear", share(62)),
        },
    )
    assert found.word == "not distinguishable"
    assert found.best_alternative == "linear classifier"
    assert found.better_than_best_alternative == "not_distinguishable"
    assert (
        "But it is not shown to be better than a linear classifier, which takes 0.7 s: use that instead."
        in found.headline
    )
    kinds = {one.kind: one.value for one in found.alternatives}
    assert kinds == {"few_shot": 26 / 80, "majority": 54 / 80, "linear": 62 / 80}
    assert (
        "Other baselines without a language model: commonest answer 0.675"
        in found.details[found.num_primary_details - 1]
    )
    document = json.loads(found.model_dump_json())
    assert set(document["alternatives"][0]) == {
        *("name", "kind", "metric", "value", "low", "high", "seconds"),
        "extra_prompt_tokens",
    }
    assert (document["good_enough"], document["bar"]) == ("not_asked", None)


@pytest.mark.parametrize(("num_right", "relation"), [(54, "not shown to be better than"), (20, "worse than")])
def test_the_commonest_answer_is_nothing_to_use_instead(num_right: int, relation: str) -> None:
    found = judged(share(num_right), {"base": ("model", share(0)), "commonest answer": ("majority", share(54))})
    assert f"it is {relation} the commonest answer, which takes 0.7 s and no understanding of a row." in found.headline
    assert "instead" not in found.headline


@pytest.mark.parametrize("num_right", range(20, 81, 5))
def test_a_classifier_within_the_interval_is_named_whatever_the_base_can_do(num_right: int) -> None:
    is_better = compared(share(num_right), "linear classifier", share(62)).verdict == "better"
    for base in (0, 40):
        found = judged(share(num_right), {"base": ("model", share(base)), "linear classifier": ("linear", share(62))})
        names_it = "a linear classifier, which takes 0.7 s: use that instead." in found.headline
        assert (names_it, found.better_than_best_alternative == "better") == (not is_better, is_better)
        assert is_better or found.word != "better"


def test_better_than_all_is_better() -> None:
    found = judged(
        share(76),
        {"base": ("model", share(10)), "linear classifier": ("linear", share(50)), "n": ("nearest", share(40))},
    )
    assert (found.word, found.better_than_best_alternative) == ("better", "better")
    assert found.headline.endswith(
        "It is also better than the best of 2 baselines without a language model: a linear classifier."
    )


def test_a_baseline_that_is_not_beaten_is_named_where_a_better_one_is_beaten() -> None:
    """48 of 80 right, but in other rows than the model: that difference is less certain than the one to 50 of 80."""
    others = [20 <= number < 48 or number >= 60 for number in range(80)]
    found = judged(
        share(60),
        {"base": ("model", share(10)), "linear classifier": ("linear", share(50)), "nearest": ("nearest", others)},
    )
    words = [compared(share(60), "x", one).verdict for one in (share(50), others)]
    assert (sum(others), words) == (48, ["better", "not distinguishable"])
    assert found.better_than_best_alternative == "not_distinguishable"
    assert (
        "it is not shown to be better than the answer of the nearest training row, which takes 0.7 s: use that instead."
        in found.headline
    )
    of_simple = " ".join(found.details[1 : found.num_primary_details])
    assert "Better than a linear classifier" in of_simple
    assert "Not distinguishable from the answer of the nearest training row" in of_simple


def test_where_all_rows_have_one_class_nothing_is_better_than_the_commonest_answer() -> None:
    found = judged(share(80), {"base": ("model", share(10)), "commonest answer": ("majority", share(80))})
    assert (found.word, found.better_than_best_alternative) == ("not distinguishable", "not_distinguishable")
    assert found.best_alternative == "commonest answer"


def test_worse_than_the_best_is_worse() -> None:
    found = judged(share(30), {"base": ("model", share(10)), "linear classifier": ("linear", share(70))})
    assert (found.word, found.better_than_best_alternative) == ("worse", "worse")
    assert "is worse than a linear classifier" in found.headline


def test_without_models_to_compare_the_baselines_decide_alone() -> None:
    found = judged(share(76), {"linear classifier": ("linear", share(20))})
    assert found.word == "better"
    assert found.headline == "It is better than the one baseline without a language model: a linear classifier."


def test_without_alternatives_nothing_is_said_of_them() -> None:
    found = judged(share(76), {"base": ("model", share(10))})
    assert (found.alternatives, found.best_alternative, found.better_than_best_alternative) == ((), None, None)


@pytest.mark.parametrize(
    ("value", "word", "sentence"),
    [(0.8, "yes", "reaches the 0.8"), (0.9, "no", "not shown to reach the 0.9"), (0.999, "no", "misses the 0.999")],
)
def test_good_enough_needs_the_whole_interval(value: float, word: str, sentence: str) -> None:
    tuned = system("tuned", share(72)).model_copy(
        update={"metrics": {METRIC: Metric(value=0.9, low=0.81, high=0.95, unit="share", higher_is_better=True)}}
    )
    assert held_against(Bar(metric=METRIC, value=value), tuned)[0] == word
    assert sentence in held_against(Bar(metric=METRIC, value=value), tuned)[1]


def test_a_bar_for_a_figure_that_should_be_low() -> None:
    low = Metric(value=3.0, low=2.5, high=3.4, unit="", higher_is_better=False)
    tuned = system("tuned", share(8)).model_copy(update={"metrics": {"perplexity": low}})
    assert [held_against(Bar(metric="perplexity", value=v), tuned)[0] for v in (4.0, 3.0, 2.0)] == ["yes", "no", "no"]
    assert held_against(Bar(metric="bleu", value=2.0), tuned)[0] == "no"


def test_the_best_is_the_lowest_where_low_is_good() -> None:
    found = judged(share(60), {"a": ("linear", share(10)), "b": ("nearest", share(40))}).alternatives
    assert (best_of(found, True), best_of(found, False), best_of([], True)) == ("b", "a", None)


@functools.cache
def of_counts(only_tuned: int, only_other: int) -> Comparison:
    """A comparison of shares rests on the rows that one of the two alone has right, and on nothing else."""
    tuned = [number < only_tuned for number in range(NUM_ROWS)]
    other = [only_tuned <= number < only_tuned + only_other for number in range(NUM_ROWS)]
    return compared(tuned, "other", other)


NUM_ROWS, NUM_STUDIES = 60, 1_000


def test_a_comparison_of_shares_rests_on_the_rows_that_set_the_two_apart() -> None:
    generator = np.random.default_rng(1)
    for tuned, other in nonempty(list(generator.random((20, 2, NUM_ROWS)) < 0.6)):
        whole = compared(tuned, "other", other)
        found = of_counts(int((tuned & ~other).sum()), int((other & ~tuned).sum()))
        assert whole.model_copy(update={"difference": 0.0}) == found.model_copy(update={"difference": 0.0})
        assert whole.difference == pytest.approx(found.difference)


@pytest.mark.parametrize("common", [0.0, 0.7])
@pytest.mark.parametrize("num_alternatives", range(1, 9))
def test_equal_systems_are_called_better_than_the_best_alternative_in_at_most_one_study_of_twenty(
    num_alternatives: int, common: float
) -> None:
    """1,000 studies of a model and its alternatives, all of them right in 60% of 60 rows.

    common: the share of rows in which all of them do the same, as they do where rows are easy or hard.
    """
    generator = np.random.default_rng(num_alternatives)
    shape = (NUM_STUDIES, num_alternatives + 1, NUM_ROWS)
    alike = np.broadcast_to(generator.random((NUM_STUDIES, 1, NUM_ROWS)) < 0.6, shape)
    is_common = generator.random((NUM_STUDIES, 1, NUM_ROWS)) < common
    right = np.where(is_common, alike, generator.random(shape) < 0.6)
    tuned, others = right[:, :1], right[:, 1:]
    # [studies, alternatives]
    wins, losses = (tuned & ~others).sum(axis=2).tolist(), (others & ~tuned).sum(axis=2).tolist()
    called = {"better": 0, "worse": 0, "not_distinguishable": 0}
    for won, lost in zip(wins, losses, strict=True):
        called[against_all([of_counts(*counts) for counts in zip(won, lost, strict=True)], True)] += 1
    assert called["better"] <= 50
    assert called["worse"] <= 70  # three standard errors above one in twenty
    assert sum(called.values()) == NUM_STUDIES


def test_the_likeliest_label_of_the_base_is_an_alternative_as_its_prompts_are() -> None:
    choice = system("base, likeliest label", share(70)).model_copy(
        update={"prompting": Prompting(kind="label_likelihood", extra_prompt_tokens=40.0)}
    )
    base, tuned = system("base", share(10)), system("tuned", share(72))
    comparisons = [compared(share(72), "base", share(10)), compared(share(72), choice.name, share(70))]
    found = verdict([base, choice, tuned], comparisons, primary=METRIC)
    assert found.word == "not distinguishable"
    (one,) = found.alternatives
    assert (one.kind, one.extra_prompt_tokens) == ("label_likelihood", 40.0)
    assert (found.best_alternative, found.better_than_best_alternative) == (choice.name, "not_distinguishable")
    assert "but not clearly different from that model's likeliest label" in found.headline


def test_another_run_is_an_alternative() -> None:
    name = "run-20260101-120000-abcdef"
    base, today, tuned = system("base", share(10)), system(name, share(60)), system("tuned", share(78))
    comparisons = [compared(share(78), "base", share(10)), compared(share(78), name, share(60))]
    found = verdict([base, today, tuned], comparisons, primary=METRIC)
    assert [(one.name, one.kind) for one in found.alternatives] == [(name, "run")]
    assert (found.word, found.better_than_best_alternative) == ("better", "better")
    worse = verdict([base, today, tuned], [comparisons[0], compared(share(40), name, share(60))], primary=METRIC)
    assert (worse.word, worse.better_than_best_alternative) == ("worse", "worse")


def with_answers(right: Sequence[bool]) -> SystemResult:
    samples = tuple(
        Sample(
            row_id=f"test.jsonl:{number}", prompt="?", reference="a", output="a" if one else "b", num_new_tokens=1,
            finish_reason="stop", scores={METRIC: float(one)},
        )
        for number, one in enumerate(right)
    )  # fmt: skip
    return system("tuned", right).model_copy(update={"samples": samples})


@pytest.mark.parametrize(
    ("right", "people", "word", "sentence"),
    [
        (share(98, 100), share(85, 100), "yes", "It reaches the agreement of two people: people agree on 85% ["),
        (share(86, 100), share(85, 100), "no", "of 100 rows, and it is right in 86% of them (+0.01 [-0."),
        (share(50, 100), share(85, 100), "no", "It misses the agreement of two people"),
        (share(88, 100)[::-1], share(85, 100), "no", "It is not shown to reach the agreement of two people"),
    ],
)  # fmt: skip
def test_a_bar_of_agreement_is_held_against_pair_by_pair(
    right: Sequence[bool], people: Sequence[bool], word: str, sentence: str
) -> None:
    agreed = {f"test.jsonl:{number}": one for number, one in enumerate(people)}
    bar = bar_of_agreement(METRIC, "second_label", agreed)
    assert (bar.value, bar.num_rows) == (0.85, 100)
    found = held_against(bar, with_answers(right), agreed)
    assert found[0] == word
    assert sentence in found[1]


def test_only_rows_that_two_people_answered_count() -> None:
    agreed = {f"test.jsonl:{number}": number % 5 > 0 for number in range(50)}
    bar = bar_of_agreement(METRIC, "second_label", agreed)
    # Right in the 50 rows that two people answered, and in none of the others.
    assert held_against(bar, with_answers(share(50, 100)), agreed)[0] == "yes"
    other = {f"other.jsonl:{number}": True for number in range(50)}
    assert held_against(bar, with_answers(share(50, 100)), other)[1].startswith("No evaluated row has a second answer")


@pytest.mark.parametrize(("num_rows", "word"), [(5, "no"), (6, "yes")])
def test_few_rows_do_not_reach_the_agreement_of_two_people_by_chance(num_rows: int, word: str) -> None:
    # Right where people disagree, in every row: of five such rows a fair coin shows as many in 1 of 16 studies.
    agreed = {f"test.jsonl:{number}": False for number in range(num_rows)}
    bar = bar_of_agreement(METRIC, "second_label", agreed)
    found = held_against(bar, with_answers([True] * num_rows), agreed)
    assert found[0] == word
    assert ("It reaches" in found[1]) == (word == "yes")


def test_rows_of_one_group_count_together_beside_two_people() -> None:
    agreed = {f"test.jsonl:{number}": number % 4 > 0 for number in range(40)}
    bar = bar_of_agreement(METRIC, "second_label", agreed)
    model = with_answers([True] * 40)
    assert held_against(bar, model, agreed)[0] == "yes", "ten rows differ, all to one side"
    groups = {row: f"customer {place % 4}" for place, row in enumerate(agreed)}
    assert held_against(bar, model, agreed, groups)[0] == "no", "they are of one of four customers"


_FIGURES = (0, 26, 54, 62, 76)


def _agreeing(found: Verdict, systems: Sequence[SystemResult], comparisons: Sequence[Comparison]) -> Evaluation:
    """An evaluation of these systems as it is stored: its action is the same with and without the agreement."""
    one = make_evaluation().model_copy(
        update={"systems": tuple(systems), "comparisons": tuple(comparisons), "verdict": found}
    )
    agreeing = with_agreeing_headline(one)
    assert recommend(agreeing) == recommend(one)
    return agreeing


@pytest.mark.parametrize("num_right", [0, 10, 30, 54, 60, 66, 79])
def test_the_headline_names_what_to_use_instead_only_where_that_is_the_action(num_right: int) -> None:
    """All verdicts, with and without a figure that is required, learned rows, and prompts or classifiers as rivals."""
    actions, num_changed, tuned = Counter[str](), 0, share(num_right)
    for prompted, classifier in itertools.product(_FIGURES, _FIGURES):
        rights: dict[str, tuple[SystemKind, Sequence[bool]]] = {
            "base": ("model", share(0)),
            "base + 4 examples": ("model", share(prompted)),
            "commonest answer": ("majority", share(40)),
            "linear classifier": ("linear", share(classifier)),
        }
        found = judged(tuned, rights)
        systems = [system(name, own, kind, 4 * ("examples" in name)) for name, (kind, own) in rights.items()]
        comparisons = [compared(tuned, name, own) for name, (_, own) in rights.items()]
        for good_enough, num_leaked in itertools.product(("yes", "no", "not_asked"), (0, 2)):
            bar = None if good_enough == "not_asked" else Bar(metric=METRIC, value=0.9)
            words = found.model_copy(update={"good_enough": good_enough, "bar": bar, "num_leaked": num_leaked})
            agreeing = _agreeing(words, [*systems, system("tuned", tuned)], comparisons)
            action, said = recommend(agreeing), agreeing.verdict
            assert action is not None
            assert said is not None
            actions[action.action] += 1
            num_changed += said.headline != found.headline
            if "use that instead" in said.headline:
                assert (action.action, action.system) == ("use_simple_method", "linear classifier"), said.headline
            if action.action == "use_model":
                assert said.word == "better", said.headline
            assert said.headline.endswith("."), said.headline
    assert len(actions) > 1
    assert num_changed > 0 or num_right == 79
