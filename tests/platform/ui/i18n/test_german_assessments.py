"""What suites, safety checks and gates say is German on German pages: every sentence that their code can make."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.assessed import make_safety_result, make_suite_result, make_task
from tests.ml.evaluation.judged_cases import judged, system
from tests.vacuous import nonempty

from luthier.core.evaluation import Comparison, Metric, SystemResult, VerdictWord
from luthier.core.results.release_gate import Gate
from luthier.core.results.suite import TaskResult
from luthier.ml.evaluation.gate import Results, check
from luthier.ml.evaluation.recommendation import recommend
from luthier.ml.evaluation.safety import summary
from luthier.ml.evaluation.safety.summary import summarise, with_what_is_ruled_out
from luthier.ml.evaluation.tasks_verdict import tasks_verdict
from luthier.platform.ui.i18n.environments import words
from luthier.testing.records import make_evaluation

ENGLISH = re.compile(r"\b(?:the|of|and|are|with|that|this|not|by|which|than|where|when|is|for|it|to|rows?|at|from)\b")
TITLES = {
    "stereotypes": "Stereotypes",
    "counterfactual": "Counterfactual fairness",
    "toxicity": "Toxicity",
    "refusal": "Refusal",
    "memorisation": "Memorisation",
    "personal_data": "Personal data",
    "canaries": "Planted canaries",
}


def in_english(sentences: list[str]) -> list[str]:
    """Those that are not German, each with what a page shows."""
    found = []
    for one in nonempty(sentences):
        shown, is_known = words("de").found(one)
        if not is_known or ENGLISH.search(shown):
            found.append(f"{one} -> {shown}")
    return found


def task(
    name: str,
    word: VerdictWord,
    *,
    unit: str = "fraction",
    is_general: bool = False,
    baseline: str = "base",
    **more: Any,
) -> TaskResult:
    figure = Metric(value=0.51, low=0.4, high=0.62, unit=unit, higher_is_better=True)
    systems = tuple(
        SystemResult(name=one, model=one, num_samples=50, metrics={"exact_match": figure}, seconds=1.0, num_empty=2)
        for one in (baseline, "tuned")
    )
    compared = Comparison(
        baseline=baseline, candidate="tuned", metric="exact_match", difference=-0.2, low=-0.3, high=-0.1, p_value=1e-5,
        adjusted_p_value=1e-5, verdict=word, rows_needed=340 if word == "not distinguishable" else None,
    )  # fmt: skip
    return TaskResult(
        name=name, kind="generate", data_file="f", data_sha256="0", num_rows=1234, primary="exact_match",
        systems=systems, comparisons=(compared,), is_general=is_general, **more,
    )  # fmt: skip


BETTER, WORSE, LEVEL = task("sql", "better"), task("qa", "worse", num_leaked=1), task("math", "not distinguishable")


@pytest.mark.parametrize(
    ("tasks", "base"),
    [
        ((BETTER,), None),
        ((BETTER, task("qa", "better")), "base"),
        ((BETTER, LEVEL, task("facts", "worse", is_general=True)), "base"),
        ((WORSE, LEVEL, task("facts", "better", is_general=True)), "base"),
        ((BETTER, WORSE, task("facts", "not distinguishable", is_general=True)), "base"),
        ((LEVEL,), None),
        ((LEVEL, task("grades", "not distinguishable", unit="1 to 10")), None),
        ((LEVEL, task("sql", "better", baseline="base + 4 examples")), None),
        ((BETTER, task("sql", "better", baseline="base + 4 examples")), None),
        ((BETTER, *(task(f"t{n}", "better") for n in range(5)), LEVEL), None),
        ((BETTER, *(task(f"t{n}", "worse", is_general=True) for n in range(2))), "base"),
        ((task("sql", "worse", num_leaked=12),), None),
    ],
)
def test_every_verdict_of_a_suite_is_german(tasks: tuple[TaskResult, ...], base: str | None) -> None:
    found = tasks_verdict(tasks, "tuned", base=base)
    assert found is not None
    assert in_english([found.headline, *found.details, *found.caveats]) == []


def safety_probe(name: str, metric: str, value: float, verdict: VerdictWord, unit: str = "fraction") -> TaskResult:
    figure = Metric(value=value, low=value - 0.05, high=value + 0.05, unit=unit, higher_is_better=False)
    systems = tuple(
        SystemResult(name=one, model="m", num_samples=50, metrics={metric: figure}, seconds=1.0)
        for one in ("base", "tuned")
    )
    compared = Comparison(
        baseline="base", candidate="tuned", metric=metric, difference=0.2, low=0.1, high=0.3, p_value=0.01,
        verdict=verdict,
    )  # fmt: skip
    return TaskResult(
        name=name, kind="safety", data_file="own", data_sha256="0", num_rows=50, primary=metric, systems=systems,
        comparisons=(compared,),
    )  # fmt: skip


def test_every_finding_of_a_safety_check_is_german() -> None:
    sentences: list[str] = []
    for name, rules in nonempty(list(summary._RULES.items())):
        for rule in nonempty(rules):
            unit = "bits" if rule.metric == "canary_exposure" else "fraction"
            values = [one for one in (0.9, 0.2, 3.0) if rule.is_bad(_metric(one, unit))]
            found = summarise([safety_probe(name, rule.metric, values[0], "worse", unit)], TITLES, candidate="tuned",
                              base="base")  # fmt: skip
            assert found.concerns
            sentences += [found.headline, *found.concerns]
    for name, compared in summary._COMPARED.items():
        for metric, _ in compared:
            unit = "bits" if metric == "canary_exposure" else "fraction"
            found = summarise([safety_probe(name, metric, 0.9, "worse", unit)], TITLES, candidate="tuned", base="base")
            sentences += [found.headline, *found.concerns]
    assert in_english(sentences) == []


def _metric(value: float, unit: str) -> Metric:
    return Metric(value=value, low=value - 0.05, high=value + 0.05, unit=unit, higher_is_better=False)


def test_every_headline_of_a_safety_check_is_german() -> None:
    bad = [safety_probe(name, rules[0].metric, 0.9, "worse") for name, rules in summary._RULES.items()]
    bad = [one for one in bad if one.name != "canaries"]
    calm = safety_probe("toxicity", "toxic_answers", 0.0, "not distinguishable")
    headlines = [summarise(bad[:n], TITLES, candidate="tuned", base="base").headline for n in range(1, len(bad) + 1)]
    headlines += [summarise([calm, *bad], TITLES, candidate="tuned", base=base).headline for base in ("base", None)]
    headlines += [summarise([calm] * n, TITLES, candidate="tuned", base="base").headline for n in (1, 2)]
    assert in_english(headlines) == []
    assert in_english(list(with_what_is_ruled_out(_never()).cautions)) == []


def _never() -> TaskResult:
    probe = safety_probe("toxicity", "toxic_answers", 0.0, "not distinguishable")
    zero = Metric(value=0.0, low=0.0, high=0.0, unit="fraction", higher_is_better=False)
    systems = tuple(one.model_copy(update={"metrics": {"toxic_answers": zero}}) for one in probe.systems)
    return probe.model_copy(update={"systems": systems})


RULES: tuple[dict[str, Any], ...] = (
    {"metric": "sql.execution_accuracy", "at_least": 0.85},
    {"metric": "sql.execution_accuracy", "at_least": 0.85, "bound": "value"},
    {"metric": "sql.execution_accuracy", "at_most": 0.88, "bound": "high"},
    {"metric": "wood.calibration_error", "at_most": 0.08},
    {"metric": "style.rubric.polite", "at_least": 4, "bound": "value"},
    {"metric": "general.bits_per_byte", "against": "base", "at_most": 0.05},
    {"metric": "general.bits_per_byte", "system": "base", "against": "candidate", "at_least": -0.05},
    {"metric": "sql.nothing", "at_least": 0},
    {"metric": "law.invented", "at_least": 0, "required": False},
    {"metric": "safety.nothing.rate", "at_least": 0},
    {"metric": "rouge_l", "at_least": 0},
    {"metric": "sql.execution_accuracy", "system": "stranger", "at_least": 0},
    {"metric": "exact_match", "at_least": 0.3},
)


def test_every_outcome_of_a_gate_is_german() -> None:
    leaked = make_task("sql").model_copy(update={"num_leaked": 2})
    whole = Results((make_suite_result(),), make_safety_result(), make_evaluation())
    aside = "The weights on the disk differ from those of the run, so no result counts."
    found: list[str] = []
    for results in (whole, Results(), replace(whole, evaluation=None, set_aside=(aside,))):
        for gate in (
            {"rules": RULES},
            {"rules": RULES, "suite": "other"},
            {"rules": RULES, "fingerprints": ["ab" * 6]},
        ):
            made = Gate.model_validate(gate)
            outcome = check(made, results, gate_sha256="0", is_calibrated=lambda *_: False)
            found += [one.sentence for one in outcome.outcomes] + [one.rule for one in outcome.outcomes]
    suite = make_suite_result().model_copy(update={"tasks": (leaked,)})
    outcome = check(
        Gate.model_validate({"rules": RULES[:1]}), Results((suite,)), gate_sha256="0", is_calibrated=lambda *_: False
    )
    assert "are among the rows that the model was trained on" in outcome.outcomes[0].sentence
    found += [one.sentence for one in outcome.outcomes]
    assert in_english(sorted(set(found))) == []


def test_a_name_has_the_case_and_the_letters_that_its_sentence_needs() -> None:
    """`ein linearer Klassifikator` is no object of a verb, and `Das angepasste Modell` begins a sentence."""
    others = [
        system("base", 0.0),
        system("commonest answer", 0.6, kind="majority"),
        system("linear classifier", 0.78, kind="linear"),
    ]
    open_: VerdictWord = "not distinguishable"
    found = recommend(judged(0.75, others, ["better", open_, open_], word=open_))
    assert found is not None
    assert found.reason.endswith(" The tuned model is not shown to be better than the commonest answer either.")
    assert words("de").found(found.title) == ("Stattdessen empfohlen: ein linearer Klassifikator.", True)
    reason, is_known = words("de").found(found.reason)
    assert is_known
    assert reason.endswith(" Das angepasste Modell ist auch nicht nachweislich besser als die häufigste Antwort.")


def test_rows_that_were_trained_on_are_refused_in_german() -> None:
    from luthier.core.dataset import Example
    from luthier.core.errors import LeakageError
    from luthier.features.evaluations.leakage import refuse_leakage

    rows = [Example(id=f"t.jsonl:{n}", text=f"row {n}") for n in range(1, 3)]
    with pytest.raises(LeakageError) as caught:
        refuse_leakage(rows[:1], rows, allowed=False)
    # Behind the first line are the rows, which are not ours to translate.
    first = caught.value.came.split("\n")[0]
    assert in_english([first, caught.value.expected, caught.value.do]) == []
