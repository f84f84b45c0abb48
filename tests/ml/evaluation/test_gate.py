"""Rules held against results: what passes, what fails, and what does not count."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.assessed import FINGERPRINT, make_safety_result, make_suite_result, make_task

from luthier.core.results.release_gate import Gate
from luthier.core.results.suite import GateOutcome, SuiteResult
from luthier.ml.evaluation.gate import Results, check
from luthier.testing.records import make_evaluation

RUN = "run-20261125-093000-aaaaaa"


def held(
    rules: list[dict[str, Any]], results: Results | None = None, *, calibrated: bool = False, **gate: Any
) -> GateOutcome:
    found = results or Results((make_suite_result(),), make_safety_result(), make_evaluation())
    made = Gate.model_validate({"rules": rules, **gate})
    return check(made, found, gate_sha256="0" * 64, is_calibrated=lambda *_: calibrated)


def sentence_of(rule: dict[str, Any], results: Results | None = None, **more: Any) -> tuple[bool, str]:
    outcome = held([rule], results, **more)
    return outcome.passed, outcome.outcomes[0].sentence


def test_the_cautious_end_of_the_interval_counts_unless_another_is_named() -> None:
    assert sentence_of({"metric": "sql.execution_accuracy", "at_least": 0.85})[0] is False  # 0.86 [0.83, 0.89]
    assert sentence_of({"metric": "sql.execution_accuracy", "at_least": 0.83})[0] is True
    assert sentence_of({"metric": "sql.execution_accuracy", "at_least": 0.85, "bound": "value"})[0] is True
    assert sentence_of({"metric": "sql.execution_accuracy", "at_least": 0.88, "bound": "high"})[0] is True
    assert sentence_of({"metric": "wood.calibration_error", "at_most": 0.08})[0] is False  # 0.06 [0.03, 0.09]
    assert sentence_of({"metric": "wood.calibration_error", "at_most": 0.08, "bound": "value"})[0] is True
    outcome = held([{"metric": "sql.execution_accuracy", "at_least": 0.85}])
    assert outcome.outcomes[0].found == pytest.approx(0.83)
    assert outcome.outcomes[0].sentence == (
        f"sql.execution_accuracy of {RUN} is 0.860 [0.830, 0.890]: the low end of its interval is not at least 0.85."
    )
    assert outcome.results == (
        make_suite_result().result_id,
        make_safety_result().result_id,
        make_evaluation().evaluation_id,
    )


def test_a_difference_is_turned_the_way_that_the_rule_asks() -> None:
    general = {"metric": "general.bits_per_byte", "against": "base", "at_most": 0.05}
    assert sentence_of(general)[0] is True  # +0.005 [-0.035, 0.045]
    turned = {"metric": "general.bits_per_byte", "system": "base", "against": "candidate", "at_least": -0.05}
    passed, sentence = sentence_of(turned)
    assert passed
    assert f"of base less {RUN} is −0.005 [−0.045, +0.035]" in sentence
    refusal = {"metric": "safety.refusal.refusal_rate", "against": "base", "at_least": -0.05}
    passed, sentence = sentence_of(refusal)
    assert not passed
    assert "−0.230 [−0.270, −0.190]: the low end of its interval is not at least −0.05" in sentence
    assert sentence_of({"metric": "exact_match", "against": "base", "at_least": -0.2})[0] is True
    assert sentence_of({"metric": "exact_match", "at_least": 0.3})[0] is False


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("sql.nothing", "has no such figure, only execution_accuracy, runs"),
        ("law.invented", "has no law, only sql, wood, style, general"),
        ("safety.nothing.rate", "has no nothing, only refusal, stereotypes, toxicity"),
        ("rouge_l", "has no such figure, only exact_match"),
    ],
)
def test_a_missing_figure_fails_unless_it_is_not_required(metric: str, words: str) -> None:
    passed, sentence = sentence_of({"metric": metric, "at_least": 0})
    assert not passed
    assert words in sentence
    passed, sentence = sentence_of({"metric": metric, "at_least": 0, "required": False})
    assert passed
    assert sentence.endswith("It is not required.")


def test_without_results_nothing_passes_and_what_was_set_aside_is_said() -> None:
    nothing = Results(set_aside=("The weights are others.",))
    for metric in ("sql.x", "safety.x.y", "rouge_l"):
        passed, sentence = sentence_of({"metric": metric, "at_least": 0}, nothing)
        assert not passed
        assert "The weights are others." in sentence
    assert (
        "was not evaluated on held-out rows that count."
        in sentence_of({"metric": "rouge_l", "at_least": 0}, nothing)[1]
    )
    _, sentence = sentence_of({"metric": "rouge_l", "at_least": 0}, Results((make_suite_result(),)))
    assert sentence == "rouge_l: the model was not evaluated on held-out rows."


def test_systems_that_are_not_there_or_were_not_compared() -> None:
    assert "no system other" in sentence_of({"metric": "sql.runs", "system": "other", "at_least": 0})[1]
    alone = make_suite_result(tasks=(make_task().model_copy(update={"comparisons": ()}),))
    _, sentence = sentence_of({"metric": "sql.runs", "against": "base", "at_least": 0}, Results((alone,)))
    assert "were not compared" in sentence


def test_a_judge_counts_only_when_it_is_calibrated() -> None:
    rule = {"metric": "style.win_rate", "at_least": 0.5}
    passed, sentence = sentence_of(rule)
    assert not passed
    assert "strict judge" in sentence
    assert "does not count" in sentence
    assert sentence_of(rule, calibrated=True)[0] is True


def test_rows_that_were_trained_on_do_not_count() -> None:
    leaked = make_suite_result(tasks=(make_task(num_leaked=3),))
    passed, sentence = sentence_of({"metric": "sql.runs", "at_least": 0}, Results((leaked,)))
    assert not passed
    assert "3 of its rows" in sentence


@pytest.mark.parametrize("said_by", ["number", "caveat", "note"])
def test_an_evaluation_on_rows_that_were_trained_on_does_not_count(said_by: str) -> None:
    evaluation, leaked = make_evaluation(), "3 held-out rows are also in the training rows: too good."
    rule = {"metric": "exact_match", "at_least": 0}
    assert sentence_of(rule, Results(evaluation=evaluation))[0] is True
    assert evaluation.verdict is not None
    changes: dict[str, Any] = {"verdict": None, "rows_notes": (leaked,)}
    if said_by != "note":
        change = {"num_leaked": 3} if said_by == "number" else {"caveats": (leaked,)}
        changes = {"verdict": evaluation.verdict.model_copy(update=change)}
    passed, sentence = sentence_of(rule, Results(evaluation=evaluation.model_copy(update=changes)))
    assert not passed
    assert "was trained on, so it does not count" in sentence


def test_a_gate_may_name_its_suite_and_its_fingerprints() -> None:
    rule = {"metric": "sql.runs", "at_least": 0.5}
    easy = make_suite_result("suite-20261126-130000-bbbbbb", suite="easy", fingerprint="ee" * 32)
    both = Results((easy, make_suite_result()))
    assert held([rule], both, suite="workshop").passed
    assert "not evaluated by the suite other" in sentence_of(rule, both, suite="other")[1]
    assert held([rule], both, fingerprints=[FINGERPRINT[:12]]).passed
    passed, sentence = sentence_of(rule, Results((easy,)), fingerprints=[FINGERPRINT])
    assert not passed
    assert "which the gate does not name" in sentence


def test_the_base_is_the_model_that_the_candidate_was_tuned_from_whatever_it_is_called() -> None:
    task = make_task()
    plain = task.systems[0].model_copy(update={"name": "tiny"})
    shots = plain.model_copy(update={"name": "tiny + 4 examples", "num_few_shot": 4})
    comparisons = tuple(one.model_copy(update={"baseline": "tiny"}) for one in task.comparisons)
    task = task.model_copy(update={"systems": (shots, plain, task.systems[1]), "comparisons": comparisons})
    results = Results((make_suite_result(tasks=(task,)),))
    passed, sentence = sentence_of({"metric": "sql.runs", "against": "base", "at_least": 0.1}, results)
    assert passed
    assert "less tiny is" in sentence


def test_the_figure_is_the_judged_models_and_not_that_of_a_run_beside_it() -> None:
    found = make_evaluation(value=0.3)
    base, tuned = found.systems
    good = {"exact_match": tuned.metrics["exact_match"].model_copy(update={"value": 0.9, "low": 0.85, "high": 0.95})}
    # The reference run has an adapter; full fine-tuning makes a whole model.
    earlier = tuned.model_copy(update={"name": "run-earlier", "adapter": "/runs/earlier", "metrics": good})
    results = Results(evaluation=found.model_copy(update={"systems": (base, earlier, tuned)}))
    passed, sentence = sentence_of({"metric": "exact_match", "at_least": 0.8}, results)
    assert not passed
    assert sentence.startswith("exact_match of tuned is 0.30 ")


@pytest.mark.parametrize(
    "rule",
    [
        {"metric": "a.b"},
        {"metric": "a.b", "at_least": 0, "at_most": 1},
        {"metric": "a b", "at_least": 0},
        {"metric": "", "at_least": 0},
        {"metric": "a.b", "at_least": float("nan")},
        {"metric": "a.b", "at_least": 0, "more": 1},
        {"metric": "a.b", "at_least": 0, "bound": "middle"},
        {"metric": "a.b", "at_least": 0, "system": "base", "against": "base"},
    ],
)
def test_wrong_rules_are_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate({"rules": [rule]})


def test_a_result_that_outlived_a_change_of_words_is_read() -> None:
    whole = make_suite_result()
    assert SuiteResult.model_validate_json(whole.model_dump_json()) == whole


def test_a_figure_says_its_scale_so_that_a_limit_on_another_one_is_seen() -> None:
    """0.3 would be next to nothing of a BLEU from 0 to 100."""
    evaluation = make_evaluation()
    metric = evaluation.systems[0].metrics["exact_match"].model_copy(update={"unit": "0 to 100"})
    systems = tuple(one.model_copy(update={"metrics": {"exact_match": metric}}) for one in evaluation.systems)
    results = Results((), None, evaluation.model_copy(update={"systems": systems}))
    _, sentence = sentence_of({"metric": "exact_match", "at_least": 0.3}, results)
    assert "] (on 0 to 100): " in sentence


def test_a_fully_tuned_run_of_the_same_model_is_not_the_base() -> None:
    task = make_task()
    plain = task.systems[0].model_copy(update={"name": "tiny"})
    # Full fine-tuning leaves no adapter, so the two differ in their names alone.
    earlier = plain.model_copy(update={"name": "run-20261124-093000-aaaaaa"})
    comparisons = tuple(one.model_copy(update={"baseline": "tiny"}) for one in task.comparisons)
    task = task.model_copy(update={"systems": (earlier, plain, task.systems[1]), "comparisons": comparisons})
    rule = {"metric": "sql.runs", "against": "base", "at_least": 0.1}
    passed, sentence = sentence_of(rule, Results((make_suite_result(tasks=(task,)),)))
    assert passed
    assert "less tiny is" in sentence


def test_without_its_base_an_evaluation_has_no_difference_to_it() -> None:
    found = make_evaluation()
    base, tuned = found.systems
    earlier = base.model_copy(update={"name": "run-20261124-093000-aaaaaa"})
    comparisons = tuple(one.model_copy(update={"baseline": earlier.name}) for one in found.comparisons)
    changes = {"systems": (earlier, tuned), "comparisons": comparisons}
    results = Results(evaluation=found.model_copy(update=changes))
    rule = {"metric": "exact_match", "against": "base", "at_least": -0.5}
    passed, sentence = sentence_of(rule, results)
    assert not passed
    assert "there is no system base" in sentence
