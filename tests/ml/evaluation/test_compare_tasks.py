"""What tasks add to judging: options, items, sources that rows share, exact tests, several seeds."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison
from luthier.core.ports import SilentProgress
from luthier.ml.evaluation.compare import judge_in_full
from luthier.ml.evaluation.metrics.likelihood import ChoiceAccuracy
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.evaluation.one_system import as_one_system

REFERENCES = [f"answer {number}" for number in range(40)]


def answers(num_right: int) -> list[str]:
    return [reference if number < num_right else "no" for number, reference in enumerate(REFERENCES)]


def judged(systems: list[Any], metrics: list[Any], **more: Any) -> Any:
    return judge_in_full(systems, metrics=metrics, seed=0, progress=SilentProgress(), **more)


class Seen:
    """A metric that notes what it is shown."""

    name, title, unit, higher_is_better, needs, has_sample_values = "seen", "seen", "fraction", True, "text", True
    lower, upper = 0.0, 1.0

    def __init__(self) -> None:
        self.observed: list[Any] = []

    def statistics(self, observed: Any) -> Any:
        self.observed.append(observed)
        return mean_statistics([1.0] * len(observed.outputs))

    def aggregate(self, sums: Any) -> Any:
        return mean_of_sums(sums)


def test_metrics_see_items_prompts_and_what_the_first_system_wrote(system_of: Any) -> None:
    metric = Seen()
    items = [{"number": number} for number in range(40)]
    base, tuned = system_of("base", answers(10), REFERENCES), system_of("tuned", answers(30), REFERENCES)
    found = judged([base, tuned], [metric, "exact_match"], items=items)
    assert [one.name for one in found.systems] == ["base", "tuned"]
    later = metric.observed[1]
    assert (later.items, later.first_outputs, later.outputs) == (items, answers(10), answers(30))
    assert later.prompts[3] == "question 3"
    assert found.observed["tuned"] is later


def test_accuracies_are_tested_exactly(system_of: Any) -> None:
    systems = [system_of("base", answers(20), REFERENCES), system_of("tuned", answers(26), REFERENCES)]
    by_metric = {one.metric: one for one in judged(systems, ["exact_match", "bleu"]).comparisons}
    # 6 rows differ, all one way: 2 * 0.5 ** 6
    assert by_metric["exact_match"].test == "mcnemar"
    assert by_metric["exact_match"].p_value == pytest.approx(2 * 0.5**6)
    assert by_metric["exact_match"].verdict == "better"
    assert by_metric["bleu"].test == "bootstrap"


def test_rows_that_share_a_source_count_together(system_of: Any) -> None:
    """Forty copies of two documents tell no more than two documents."""
    systems = [system_of("base", ["no"] * 40, REFERENCES), system_of("tuned", answers(20), REFERENCES)]
    alone = judged(systems, ["exact_match"])
    shared = judged(systems, ["exact_match"], clusters=[number // 20 for number in range(40)])
    assert alone.comparisons[0].verdict == "better"
    assert shared.comparisons[0].verdict == "not distinguishable"
    assert shared.comparisons[0].test == "bootstrap"
    wide, narrow = shared.systems[1].metrics["exact_match"], alone.systems[1].metrics["exact_match"]
    assert wide.high - wide.low > narrow.high - narrow.low
    # Whole documents of 20 rows would settle it, and more of them than there are.
    needed = shared.comparisons[0].rows_needed
    assert needed is not None
    assert needed > 40
    assert needed % 20 == 0
    with pytest.raises(RequestError, match="39 clusters for 40 rows"):
        judged(systems, ["exact_match"], clusters=list(range(39)))


def test_options_are_scored_and_the_likeliest_is_shown(system_of: Any) -> None:
    texts = (("right", "wrong, and long"),) * 40

    def nats(example: TokenisedExample) -> float:
        return 0.5 if example.id.endswith(":0") else 1.0

    tokens = tuple(
        tuple(TokenisedExample(f"{row}:{place}", array("i", [1, 2, 3]), bytes([0, 0, 1])) for place in range(2))
        for row in range(40)
    )
    system = replace(system_of("base", answers(0), REFERENCES, nats=nats), options=tokens, option_texts=texts)
    found = judged([system], [ChoiceAccuracy([0] * 30 + [1] * 10)])
    assert found.systems[0].metrics["choice_accuracy"].value == 0.75
    assert found.systems[0].samples[0].output == "right"
    assert found.systems[0].samples[39].scores == {"choice_accuracy": 0.0}
    for wrong, words in (
        ({"options": ()}, "0, 40"),
        ({"option_texts": (("right",),) * 40}, "1 answers to choose from"),
        ({"options": (), "option_texts": ()}, "without answers to choose from"),
    ):
        with pytest.raises(RequestError, match=words):
            judged([replace(system, **wrong)], [ChoiceAccuracy([0] * 40)])


def test_empty_outputs_are_counted_and_empty_references_need_no_learned_text(system_of: Any) -> None:
    system = replace(system_of("base", [""] * 3 + ["x"], [""] * 4), num_bytes=(0,) * 4)
    found = judged([system], [Seen()])
    assert found.systems[0].num_empty == 3
    with pytest.raises(RequestError, match="0 bytes"):
        judged([system], ["bits_per_byte"])


def test_trainings_with_several_seeds_are_one_system(system_of: Any) -> None:
    systems = [system_of("base", answers(10), REFERENCES)]
    systems += [
        system_of(name, answers(num), REFERENCES) for name, num in (("run-1", 30), ("run-2", 26), ("run-3", 34))
    ]
    metrics = load_metrics(["exact_match"])
    found = as_one_system(judged(systems, metrics), ["run-1", "run-2", "run-3"], metrics, seed=0)
    assert [one.name for one in found.systems] == ["base", "run-1"]
    assert found.systems[1].metrics["exact_match"].value == pytest.approx(30 / 40)
    single = judged(systems[:2], ["exact_match"]).systems[1].metrics["exact_match"]
    joined = found.systems[1].metrics["exact_match"]
    assert joined.high - joined.low > single.high - single.low
    assert {(one.baseline, one.candidate, one.test) for one in found.comparisons} == {
        ("base", "run-1", "seeds"),
    }
    assert found.comparisons[0].difference == pytest.approx(0.5)


def test_comparisons_stored_before_there_were_corrections_still_load() -> None:
    old = {
        "baseline": "a", "candidate": "b", "metric": "m", "difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.1,
        "verdict": "better",
    }  # fmt: skip
    assert Comparison.model_validate(old).adjusted_p_value is None
    assert np.isfinite(Comparison.model_validate(old).p_value)
