"""The answer over several tasks: corrected for how many were asked, and in two sentences."""

from __future__ import annotations

import pytest

from luthier.core.evaluation import Comparison, Metric, SystemResult, VerdictWord
from luthier.core.results.suite import TaskResult
from luthier.ml.evaluation.tasks_verdict import adjusted, tasks_verdict


def comparison(difference: float, p_value: float, *, baseline: str = "base", metric: str = "m") -> Comparison:
    word: VerdictWord = "not distinguishable"
    if p_value < 0.05:
        word = "better" if difference > 0 else "worse"
    return Comparison(
        baseline=baseline,
        candidate="tuned",
        metric=metric,
        difference=difference,
        low=difference - 0.01,
        high=difference + 0.01,
        p_value=p_value,
        verdict=word,
    )


def task(
    name: str, *comparisons: Comparison, is_general: bool = False, num_leaked: int = 0, num_empty: int = 0
) -> TaskResult:
    figure = Metric(value=0.5, low=0.4, high=0.6, unit="fraction", higher_is_better=True)
    names = dict.fromkeys([*(one.baseline for one in comparisons), "tuned"])
    systems = tuple(
        SystemResult(
            name=one,
            model=one,
            num_samples=50,
            metrics={"m": figure, "other": figure},
            seconds=1.0,
            num_empty=num_empty,
        )
        for one in names
    )
    return TaskResult(
        name=name, kind="generate", data_file="f", data_sha256="0", num_rows=50, primary="m", systems=systems,
        comparisons=comparisons, is_general=is_general, num_leaked=num_leaked,
    )  # fmt: skip


def verdict(*tasks: TaskResult, base: str | None = None):  # type: ignore[no-untyped-def]
    return tasks_verdict(adjusted(tasks, "tuned"), "tuned", base=base)


def test_p_values_are_adjusted_and_words_follow() -> None:
    asked = {"a": (0.2, 0.03), "b": (0.2, 0.04), "c": (0.3, 0.001)}
    tasks = adjusted([task(name, comparison(*one)) for name, one in asked.items()], "tuned")
    found = [one.comparisons[0] for one in tasks]
    assert [one.adjusted_p_value for one in found] == pytest.approx([0.06, 0.06, 0.003])
    assert [one.verdict for one in found] == ["not distinguishable", "not distinguishable", "better"]


def test_the_verdict_rests_on_primary_metrics_and_others_are_corrected_among_all() -> None:
    primary, other = comparison(0.2, 0.01), comparison(0.2, 0.02, metric="other")
    (one,) = adjusted([task("a", primary, other)], "tuned")
    assert one.comparisons[0].adjusted_p_value == pytest.approx(0.01)
    assert one.comparisons[1].adjusted_p_value == pytest.approx(0.02)
    (three,) = adjusted([task("a", primary, other, comparison(0.2, 0.03, metric="third"))], "tuned")
    assert three.comparisons[1].adjusted_p_value == pytest.approx(0.04)


def test_what_was_asked_of_others_stays() -> None:
    apart = comparison(0.2, 0.04).model_copy(update={"candidate": "base + 4 examples"})
    (one,) = adjusted([task("a", apart)], "tuned")
    assert one.comparisons[0] == apart


@pytest.mark.parametrize(
    ("tasks", "word", "headline"),
    [
        (
            [task("a", comparison(0.2, 0.001)), task("b", comparison(0.1, 0.5))],
            "better",
            "tuned is better than base on 1 of 2 tasks (a), and worse on none.",
        ),
        (
            [task("a", comparison(-0.2, 0.001))],
            "worse",
            "tuned is worse than base on the task, and better on none.",
        ),
        (
            [task("a", comparison(0.2, 0.001)), task("b", comparison(-0.2, 0.001))],
            "not distinguishable",
            "It depends on the task: tuned is better than base on 1 of 2 tasks (a), but worse on 1 of 2 tasks (b).",
        ),
        (
            [task("a", comparison(0.2, 0.4))],
            "not distinguishable",
            "It is not known whether tuned differs from base on the task.",
        ),
        (
            [task("a", comparison(0.2, 0.001), comparison(0.1, 0.4, baseline="shown"))],
            "not distinguishable",
            "It is not known whether tuned differs from shown on the task, though it is better than base.",
        ),
    ],
)
def test_the_word_and_the_sentence(tasks: list[TaskResult], word: str, headline: str) -> None:
    found = verdict(*tasks)
    assert (found.word, found.headline) == (word, headline)
    assert len(found.details) == sum(len(one.comparisons) for one in tasks)


def test_what_tuning_cost_is_a_second_sentence_and_no_part_of_the_word() -> None:
    own = task("a", comparison(0.2, 0.001))
    found = verdict(own, task("general", comparison(-0.1, 0.001), is_general=True), base="base")
    assert found.word == "better"
    assert (
        "Tuning cost general ability: m on 50 rows of general went from 0.500 to 0.500 (-0.100, 95%" in found.headline
    )
    assert found.headline.count(". ") == 1
    unsure = verdict(own, task("general", comparison(-0.1, 0.4), is_general=True), base="base")
    assert "No loss of general ability was found" in unsure.headline


def test_caveats_name_leaks_empty_outputs_and_how_many_were_asked() -> None:
    found = verdict(task("a", comparison(0.2, 0.001), num_leaked=3), task("b", comparison(0.2, 0.001), num_empty=50))
    text = " ".join(found.caveats)
    assert "3 evaluated rows of a were trained on" in text
    assert "b: of 50 outputs of tuned, 50 empty." in text
    assert "2 comparisons were made" in text


def test_a_candidate_that_was_held_against_nothing_has_no_verdict() -> None:
    assert verdict(task("a")) is None
