"""Draws of few-shot examples as one system: the interval takes in how much draws differ, and keeps its promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.ml.evaluation.conftest import make_system as system_of

from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.evaluation_plan import Prompting
from luthier.core.ports import SilentProgress
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.compare import Judged, judge_in_full, verdict
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.one_system import _of_draws, as_one_system
from luthier.ml.evaluation.statistics import difference_over_seeds
from luthier.ml.evaluation.verdict import deciding
from luthier.ml.evaluation.verdict_text import caveats, primary_details, system_title

UNIT = Bounds(0.0, 1.0)
REFERENCES = ["spruce", "maple"] * 20


def outputs(num_right: int) -> list[str]:
    return [text if number < num_right else "oak" for number, text in enumerate(REFERENCES)]


def judged(*num_right: int) -> Any:
    """The base, draws of its examples, and the tuned model, which is right on 30 of 40 rows."""
    systems = [system_of("base", outputs(0), REFERENCES)]
    systems += [system_of(f"draw {n}", outputs(right), REFERENCES, shots=4) for n, right in enumerate(num_right)]
    systems.append(system_of("tuned", outputs(30), REFERENCES))
    metrics = as_definitions(["exact_match"])
    found = judge_in_full(systems, metrics=metrics, seed=0, progress=SilentProgress())
    draws = [f"draw {n}" for n in range(len(num_right))]
    return as_one_system(found, draws, metrics, seed=0, test="draws")


def test_the_mean_is_reported_and_neither_the_best_draw_nor_the_first() -> None:
    found = judged(10, 30, 14, 10)
    assert [one.name for one in found.systems] == ["base", "draw 0", "tuned"]
    assert found.systems[1].metrics["exact_match"].value == pytest.approx(16 / 40)
    pairs = {(one.baseline, one.candidate) for one in found.comparisons}
    assert pairs == {("base", "draw 0"), ("base", "tuned"), ("draw 0", "tuned")}


def test_the_examples_of_the_draw_that_answers_best_are_those_to_use() -> None:
    systems = [system_of(f"draw {n}", outputs(right), REFERENCES, shots=4) for n, right in enumerate((10, 30, 14))]
    metrics = as_definitions(["exact_match"])
    found = judge_in_full(systems, metrics=metrics, seed=0, progress=SilentProgress())
    shown = []
    for one in found.systems:
        own = Prompting.model_validate({"kind": "few_shot", "turns": ({"role": "user", "content": one.name},)})
        shown.append(one.model_copy(update={"prompting": own}))
    names = [one.name for one in shown]
    (joined,) = as_one_system(replace(found, systems=tuple(shown)), names, metrics, seed=0, test="draws").systems
    assert joined.name == "draw 0"
    assert joined.prompting is not None
    assert [turn.content for turn in joined.prompting.turns] == ["draw 1"]


def test_draws_that_differ_widen_the_interval_and_those_that_agree_do_not() -> None:
    def against(*num_right: int) -> Comparison:
        comparisons = judged(*num_right).comparisons
        return next(one for one in comparisons if (one.baseline, one.candidate) == ("draw 0", "tuned"))

    apart, alike = against(4, 28, 6, 26), against(16, 16, 16, 16)
    assert apart.difference == pytest.approx(alike.difference)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
    assert (apart.verdict, alike.verdict) == ("not distinguishable", "better")
    assert (apart.test, apart.rows_needed) == ("draws", None)


def test_better_than_draws_is_better_than_the_strongest_of_them() -> None:
    """A mean of four draws that are far apart has a wide interval; that of the best of them has not."""
    found = judged(0, 18, 2, 6)
    against = next(one for one in found.comparisons if (one.baseline, one.candidate) == ("draw 0", "tuned"))
    assert (against.verdict, against.test) == ("better", "strongest_draw")
    assert against.difference == pytest.approx((30 - 18) / 40)
    prompting = Prompting(kind="few_shot", examples="drawn", num_draws=4)
    systems = [one.model_copy(update={"prompting": prompting} if one.num_few_shot else {}) for one in found.systems]
    text = primary_details(systems[-1], [against], systems)[0]
    assert "exact match 0.75 against 0.45 of the strongest of 4 draws (+0.30" in text


def test_one_draw_that_is_as_good_leaves_it_open_whatever_their_mean_is() -> None:
    against = next(
        one for one in judged(10, 10, 10, 27).comparisons if one.candidate == "tuned" and one.baseline != "base"
    )
    assert against.verdict == "not distinguishable"


def test_a_draw_whose_test_is_open_decides_wherever_the_interval_of_another_begins() -> None:
    def against(name: str, low: float, p_value: float, word: str) -> Comparison:
        return Comparison.model_validate(
            {"baseline": name, "candidate": "tuned", "metric": "exact_match", "difference": 0.1, "low": low}
            | {"high": 0.3, "p_value": p_value, "verdict": word}
        )

    each = (against("draw 0", 0.01, 0.04, "better"), against("draw 1", 0.02, 0.06, "not distinguishable"))
    mean = against("draw 0", 0.03, 0.01, "better")
    metric = next(one for one in as_definitions(["exact_match"]) if one.name == "exact_match")
    found = _of_draws(mean, Judged((), each, {}, {}), ["draw 0", "draw 1"], metric)
    assert (found.verdict, found.low, found.p_value) == ("not distinguishable", 0.02, 0.06)


def test_a_draw_that_is_better_does_not_make_the_model_worse_than_all() -> None:
    found = judged(2, 40, 4, 3)
    against = next(one for one in found.comparisons if (one.baseline, one.candidate) == ("draw 0", "tuned"))
    assert against.verdict == "not distinguishable"


def test_a_model_as_good_as_the_strongest_draw_is_seldom_called_better() -> None:
    """60 studies: draws right on 30, 40 and 50% of 60 rows, and a model that is right on 50%."""
    random, better, metrics = np.random.default_rng(1), 0, as_definitions(["exact_match"])
    references = ["spruce", "maple"] * 30
    for _ in range(60):
        systems = [
            system_of(name, [text if random.random() < share else "oak" for text in references], references, shots=4)
            for name, share in (("draw 0", 0.3), ("draw 1", 0.4), ("draw 2", 0.5), ("tuned", 0.5))
        ]
        found = judge_in_full(systems, metrics=metrics, seed=0, progress=SilentProgress())
        joined = as_one_system(found, ["draw 0", "draw 1", "draw 2"], metrics, seed=0, test="draws")
        better += joined.comparisons[0].verdict == "better"
    # 2.5% of 60 are 1.5; 6 are reached by chance less than once in a hundred such tests.
    assert better <= 5


def test_equal_systems_are_seldom_told_apart_and_the_interval_covers_the_mean_of_all_draws() -> None:
    """200 studies of 60 rows: four draws that are right on 30 to 70% of rows, and a model that is right on 50%."""
    random, num_studies, wrong = np.random.default_rng(0), 200, 0
    for _ in range(num_studies):
        shares = np.clip(random.normal(0.5, 0.1, size=4), 0.05, 0.95)
        draws = [mean_statistics((random.random(60) < share).astype(float)) for share in shares]
        tuned = mean_statistics((random.random(60) < 0.5).astype(float))
        found = difference_over_seeds([tuned], draws, mean_of_sums, bounds=UNIT, seed=0, num_resamples=200)
        wrong += not found.low <= 0 <= found.high
    # 5% of 200 are 10; 18 are reached by chance once in a hundred such tests.
    assert wrong <= 18


def test_one_draw_alone_misses_its_own_luck() -> None:
    """The same studies with one draw: what the four are for."""
    random, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        share = np.clip(random.normal(0.5, 0.15), 0.05, 0.95)
        one, tuned = (mean_statistics((random.random(60) < p).astype(float)) for p in (share, 0.5))
        found = difference_over_seeds([tuned], [one, one], mean_of_sums, bounds=UNIT, seed=0, num_resamples=200)
        wrong += not found.low <= 0 <= found.high
    assert wrong > 18


def prompted(name: str, value: float, **prompting: Any) -> SystemResult:
    own = Prompting(**({"kind": "few_shot"} | prompting)) if prompting else None
    shots = 4 if own is not None and own.examples != "none" else 0
    found = system_of(name, outputs(round(40 * value)), REFERENCES, shots=shots)
    judged = judge_in_full([found], metrics=as_definitions(["exact_match"]), seed=0, progress=SilentProgress())
    return judged.systems[0].model_copy(update={"prompting": own})


def held(name: str, difference: float, p_value: float, word: str) -> Comparison:
    return Comparison(
        baseline=name, candidate="tuned", metric="exact_match", difference=difference, low=difference - 0.1,
        high=difference + 0.1, p_value=p_value, verdict=word,
    )  # fmt: skip


SYSTEMS = [
    prompted("base", 0.0),
    prompted("base + 4 examples", 0.4, examples="drawn", num_draws=4, extra_prompt_tokens=200.0),
    prompted("base + 4 nearest examples", 0.6, examples="nearest", extra_prompt_tokens=210.0),
    prompted("base + instruction", 0.3, kind="instruction", instruction="Say it.", extra_prompt_tokens=12.0),
    prompted("base + optimised prompt", 0.7, kind="optimised_prompt", examples="nearest", extra_prompt_tokens=190.0),
    prompted("tuned", 0.75),
]


def test_ways_to_prompt_are_called_by_what_they_hold() -> None:
    assert [system_title(one, SYSTEMS) for one in SYSTEMS[1:5]] == [
        "the base model with 4 examples in its prompt",
        "the base model with the 4 nearest training rows in its prompt",
        "the base model with an instruction in its prompt",
        "the base model with an optimised prompt",
    ]


def test_the_verdict_names_the_prompt_that_decides_and_counts_all_as_one_question() -> None:
    comparisons = [
        held("base", 0.75, 1e-9, "better"),
        held("base + 4 examples", 0.35, 1e-4, "better"),
        held("base + 4 nearest examples", 0.15, 0.01, "better"),
        held("base + instruction", 0.45, 1e-5, "better"),
        held("base + optimised prompt", 0.05, 0.4, "not distinguishable"),
    ]
    found = verdict(SYSTEMS, comparisons, primary="exact_match")
    assert found.word == "not distinguishable"
    assert found.headline == (
        "The tuned model is better than the base model, but not clearly different from it with an optimised prompt, by "
        "exact match."
    )
    assert found.best_alternative == "base + optimised prompt"
    assert [(one.kind, one.extra_prompt_tokens) for one in found.alternatives] == [
        ("few_shot", 200.0), ("few_shot", 210.0), ("instruction", 12.0), ("optimised_prompt", 190.0),
    ]  # fmt: skip
    # Each of them has its figures.
    assert len(found.details[: found.num_primary_details]) == 5


def test_worse_than_one_of_many_prompts_by_luck_is_not_worse() -> None:
    shown = [held(f"base + {n}", less, 0.9, "not distinguishable") for n, less in enumerate((0.1, 0.2, 0.1))]
    unlucky = held("base + 3", -0.12, 0.03, "worse")
    named, own = deciding([*shown, unlucky], [held("base", 0.5, 1e-9, "better"), *shown, unlucky], True)
    assert [one.baseline for one in named] == ["base", "base + 3"]
    assert [one.verdict for one in named] == ["better", "not distinguishable"]
    assert len(own) == 4
    sure = unlucky.model_copy(update={"p_value": 0.001})
    named, _ = deciding([*shown, sure], [*shown, sure], True)
    assert [(one.baseline, one.verdict) for one in named] == [("base + 3", "worse")]


def test_only_one_draw_is_warned_of() -> None:
    def said(num_draws: int) -> str:
        drawn = prompted("base + 4 examples", 0.4, examples="drawn", num_draws=num_draws)
        chosen = prompted("base + optimised prompt", 0.4, kind="optimised_prompt", examples="drawn")
        results = [SYSTEMS[0], drawn, SYSTEMS[2], chosen, SYSTEMS[-1]]
        return " ".join(
            caveats(
                SYSTEMS[-1], results, [held("base", 0.5, 0.01, "better")], "exact_match",
                num_leaked=0, num_same_prompt=0, num_rows_in_file=None,
            )
        )  # fmt: skip

    assert "4 examples in the prompt are one draw" in said(1)
    # Nor of the examples of an optimised prompt, which were chosen.
    assert "one draw" not in said(4)
