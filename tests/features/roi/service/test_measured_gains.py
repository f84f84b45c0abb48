"""Gains of an evaluation that holds baselines without a language model, and what is done today."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.evaluation import (
    Comparison,
    Evaluation,
    LabelConfidence,
    Metric,
    Sample,
    SystemKind,
    SystemResult,
    Verdict,
    VerdictWord,
)
from luthier.core.records.bounds import UNIT
from luthier.features.models.store import TunedModel
from luthier.features.roi.service import RoiOutcome, compute_roi
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.statistics import bootstrap_interval, paired_bootstrap
from luthier.platform.db.database import Database
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, add_run, make_evaluation, make_plan, make_record

METRIC = "label_accuracy"
HOSTED = "hosted: {input_price_per_million_tokens: 2, output_price_per_million_tokens: 10}"
CASE = f"""
name: Reviews
currency: USD
calls: {{per_month: 10_000, input_tokens: 1_000, output_tokens: 100, value_of_one_more_correct: 0.5}}
today:
  {HOSTED}
tuned: {{saved_prompt_tokens: 0}}
people: {{rate_per_hour: 50, preparation_hours: 10, annotation_hours: 20, review_hours: 10}}
training: {{cost: 300}}
alternatives: {{few_shot: {{extra_prompt_tokens: 400}}}}
"""
NO_TOKENS = (
    CASE.replace(HOSTED, "cost_per_call: 0")
    .replace("tuned: {saved_prompt_tokens: 0}", f"tuned: {{{HOSTED}}}")
    .replace("alternatives: {few_shot: {extra_prompt_tokens: 400}}", "alternatives: {}")
)
# The study of issue 22: 80 judged reviews.
SYSTEMS: dict[str, tuple[SystemKind, float]] = {
    "base": ("model", 0.0),
    "base + 4 examples": ("model", 0.325),
    "commonest answer": ("majority", 0.675),
    "nearest training row (BM25)": ("nearest", 0.6),
    "linear classifier": ("linear", 0.775),
    "tuned": ("model", 0.75),
}


def figure(value: float) -> Metric:
    ends = {"low": max(0.0, value - 0.09), "high": min(1.0, value + 0.09)}
    return Metric(value=value, **ends, unit="fraction", higher_is_better=True)


def system(name: str, kind: SystemKind, value: float) -> SystemResult:
    return SystemResult(
        name=name,
        model="tiny" if kind == "model" else "",
        adapter="/adapter" if name == "tuned" else None,
        num_few_shot=4 if "examples" in name else 0,
        num_samples=80,
        metrics={METRIC: figure(value)},
        seconds=0.7,
        kind=kind,
    )


def compared(name: str, value: float, tuned: float) -> Comparison:
    difference = tuned - value
    word: VerdictWord = "better" if difference > 0.1 else "worse" if difference < -0.1 else "not distinguishable"
    return Comparison(
        baseline=name,
        candidate="tuned",
        metric=METRIC,
        difference=difference,
        low=max(-1.0, difference - 0.1),
        high=min(1.0, difference + 0.1),
        p_value=0.01,
        verdict=word,
    )


def evaluation(systems: dict[str, tuple[SystemKind, float]] = SYSTEMS) -> Evaluation:
    tuned = systems["tuned"][1]
    found = {
        "run_id": RUN_ID,
        "num_rows": 80,
        "systems": tuple(system(name, kind, value) for name, (kind, value) in systems.items()),
        "comparisons": tuple(compared(name, value, tuned) for name, (_, value) in systems.items() if name != "tuned"),
        "verdict": Verdict(word="not distinguishable", metric=METRIC, headline="Not better than a linear classifier."),
    }
    return make_evaluation().model_copy(update=found)


@pytest.fixture
def answer(context: Context, tmp_path: Path) -> Any:
    """The answer to a case, gains measured by an evaluation."""

    def answered(case: str = CASE, judged: Evaluation | None = None) -> RoiOutcome:
        context.runs.create(make_record(), make_plan())
        context.evaluations.save(judged or evaluation())
        path = tmp_path / "case.yaml"
        path.write_text(case, encoding="utf-8")
        return compute_roi(context, path, verdict=RUN_ID)

    return answered


def test_every_baseline_is_an_alternative_with_its_paired_gain(answer: Any) -> None:
    found = answer().result
    ways = {way.name: way for way in found.alternatives}
    assert list(ways) == ["few_shot", "commonest answer", "nearest training row (BM25)", "linear classifier"]
    for name in ("few_shot", "commonest answer", "nearest training row (BM25)", "linear classifier"):
        value = SYSTEMS["base + 4 examples" if name == "few_shot" else name][1]
        assert ways[name].gain.typical == pytest.approx(value)
        assert 0 <= ways[name].gain.low <= ways[name].gain.high <= 1
    assert ways["linear classifier"].phrase == "a linear classifier"
    assert ways["nearest training row (BM25)"].tuned_is == "better"
    assert ways["few_shot"].is_baseline is False


def test_a_base_that_is_never_right_no_longer_makes_a_model_pay(answer: Any) -> None:
    found = answer().result
    assert found.tuned.probability_pays > 0.99
    assert found.answer == "no"
    assert found.use_instead == found.best_alternative == "linear classifier"
    assert found.headline.endswith("Use a linear classifier instead.")
    assert {one.against for one in nonempty(found.break_evens)} == {"a linear classifier"}
    assert found.today_accuracy is not None
    assert found.today_accuracy.value == 0
    assert any("where that is not what you do today, set verdict.today" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear classifier", "linear"), ("commonest answer", "majority"), ("nearest training row (BM25)", "nearest")],
)
def test_a_baseline_may_be_todays_way(answer: Any, name: str, kind: str) -> None:
    found = answer(f"{NO_TOKENS}verdict: {{today: {name}}}\n").result
    value = SYSTEMS[name][1]
    assert found.measured is not None
    assert (found.measured.today_kind, found.measured.today_name) == (kind, name)
    assert found.tuned.gain.typical == pytest.approx(0.75 - value)
    assert (found.tuned.gain.low, found.tuned.gain.high) == pytest.approx((0.65 - value, 0.85 - value), abs=2e-3)
    assert found.today_per_month.typical == 0
    assert found.tuned.serving_per_month.typical == pytest.approx(30)
    # What is done today is no alternative to itself; few-shot has no price where today's way reads no tokens.
    simple = [one for one, (its_kind, _) in SYSTEMS.items() if its_kind != "model" and one != name]
    assert [way.name for way in found.alternatives] == simple
    assert "few_shot" in {way.name for way in found.not_priced}


def test_the_reference_run_is_todays_way_where_the_case_names_none(answer: Any) -> None:
    today = "run-20260101-120000-abcdef"
    systems = dict(list(SYSTEMS.items())[:-1]) | {today: ("model", 0.7), "tuned": SYSTEMS["tuned"]}
    found = answer(judged=evaluation(systems)).result
    assert found.measured is not None
    assert (found.measured.today_name, found.measured.today_kind) == (today, "model")
    assert found.tuned.gain.typical == pytest.approx(0.05)


def test_a_case_may_still_count_from_the_base(answer: Any) -> None:
    today = "run-20260101-120000-abcdef"
    systems = dict(list(SYSTEMS.items())[:-1]) | {today: ("model", 0.7), "tuned": SYSTEMS["tuned"]}
    found = answer(f"{CASE}verdict: {{today: base}}\n", evaluation(systems)).result
    assert found.measured is not None
    assert found.measured.today_name == "base"
    assert found.tuned.gain.typical == pytest.approx(0.75)


def test_few_shot_beside_a_way_without_tokens_has_prices_of_its_own(answer: Any) -> None:
    own = f"alternatives: {{few_shot: {{extra_prompt_tokens: 400, {HOSTED}}}}}"
    case = NO_TOKENS.replace("alternatives: {}", own) + "verdict: {today: linear classifier}\n"
    found = answer(case).result
    few_shot = next(way for way in found.alternatives if way.name == "few_shot")
    assert few_shot.gain.typical == pytest.approx(0.325 - 0.775)
    assert few_shot.serving_per_month.typical == pytest.approx(10_000 * (1_400 * 2 + 100 * 10) / 1e6)


def test_a_system_with_examples_by_its_name_is_few_shot(answer: Any) -> None:
    case = CASE.replace("alternatives: {few_shot: {extra_prompt_tokens: 400}}", "alternatives: {}")
    found = answer(f"{case}verdict: {{today: base + 4 examples}}\n").result
    assert found.case.verdict.today == "few_shot"
    assert found.measured is not None
    assert found.measured.today_name == "base + 4 examples"
    assert found.tuned.gain.typical == pytest.approx(0.425)
    assert "few_shot" not in {way.name for way in (*found.alternatives, *found.not_priced)}


def test_today_may_be_given_by_a_count(answer: Any) -> None:
    case = CASE.replace("today:\n", "today:\n  counted: {num_correct: 50, num_answers: 80}\n")
    found = answer(f"{case}verdict: {{today: given}}\n").result
    assert found.tuned.gain.typical == pytest.approx(0.75 - 0.625)
    assert found.today_accuracy is not None
    assert found.today_accuracy.low < 0.625 < found.today_accuracy.high
    assert found.measured is not None
    assert found.measured.today == "what the case says it is (50 of 80 answers correct)"
    # Newcombe's interval by hand: the ends of Wilson's (0.515, 0.723) and of the tuned model's (0.66, 0.84)
    low, high = 0.125 - (0.09**2 + 0.0982**2) ** 0.5, 0.125 + (0.09**2 + 0.1096**2) ** 0.5
    assert (found.measured.tuned.low, found.measured.tuned.high) == pytest.approx((low, high), abs=1e-3)
    assert next(w for w in found.alternatives if w.name == "linear classifier").gain.typical == pytest.approx(0.15)


def test_an_evaluation_of_what_a_training_client_had_saved_before_measures_nothing_of_the_run(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_run(context, "a")
    result = context.runs.get(run_id).result
    assert result is not None
    saved = TunedModel(
        model_id="ft:tiny:default:state:1", project_id="default", job_id="", run_id=run_id, base_model="tiny", step=4,
        adapter_path=str(result.adapter_path),
    )  # fmt: skip
    monkeypatch.setattr(Database, "clock", lambda *_: datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp())
    context.tuned_models.add(saved)
    path = tmp_path / "case.yaml"
    path.write_text(CASE, encoding="utf-8")

    def judge(evaluation_id: str, created_at: str) -> None:
        made = {"evaluation_id": evaluation_id, "run_id": run_id, "created_at": created_at}
        context.evaluations.save(evaluation().model_copy(update=made))

    judge("eval-20261125-110000-aaaaaa", "2026-11-25T11:00:00+00:00")
    with pytest.raises(RequestError, match=f"the weights that run {run_id} has now were never evaluated"):
        compute_roi(context, path, verdict=run_id)
    judge("eval-20261125-130000-bbbbbb", "2026-11-25T13:00:00+00:00")
    measured = compute_roi(context, path, verdict=run_id).result.measured
    assert measured is not None
    assert measured.evaluation_id == "eval-20261125-130000-bbbbbb"


def test_an_evaluation_without_baselines_works_and_says_what_is_missing(answer: Any) -> None:
    old = {name: found for name, found in SYSTEMS.items() if found[0] == "model"}
    found = answer(judged=evaluation(old)).result
    assert found.answer == "yes"
    assert [way.name for way in found.alternatives] == ["few_shot"]
    assert any("has no baseline without a language model: only the base" in note for note in found.notes)
    assert "without_model" in {way.name for way in found.not_priced}


def test_an_evaluation_without_a_base_answers_where_today_is_something_else(answer: Any) -> None:
    alone = {name: SYSTEMS[name] for name in ("linear classifier", "tuned")}
    found = answer(f"{NO_TOKENS}verdict: {{today: linear classifier}}\n", evaluation(alone)).result
    assert found.tuned.gain.typical == pytest.approx(-0.025)
    assert found.alternatives == ()


def test_a_baseline_that_was_not_judged_by_the_metric_is_left_out_and_named(answer: Any) -> None:
    found = answer(judged=unjudged("linear classifier")).result
    assert "linear classifier" not in {way.name for way in found.alternatives}
    assert f"Not priced, since {METRIC} was not measured for them: linear classifier." in found.notes


def unjudged(name: str) -> Evaluation:
    judged = evaluation()
    other = {"chrf": figure(0.5)}
    return judged.model_copy(
        update={
            "systems": tuple(
                one.model_copy(update={"metrics": other}) if one.name == name else one for one in judged.systems
            ),
            "comparisons": tuple(one for one in judged.comparisons if one.baseline != name),
        }
    )


@pytest.mark.parametrize(
    ("case", "judged", "words"),
    [
        (f"{CASE}verdict: {{today: linear clasifier}}\n", evaluation(), "has no system of that name"),
        (f"{CASE}verdict: {{today: linear clasifier}}\n", evaluation(), "nearest: linear classifier"),
        (f"{CASE}verdict: {{today: tuned}}\n", evaluation(), "of that name but the tuned model itself"),
        (f"{CASE}verdict: {{today: given}}\n", evaluation(), "today has neither accuracy nor counted"),
        (f"{CASE}verdict: {{today: ''}}\n", evaluation(), "verdict.today: has ''"),
        (f"{CASE}verdict: {{today: 3}}\n", evaluation(), "expected base, few_shot, given, or the name of a system"),
        (
            f"{NO_TOKENS}verdict: {{today: linear classifier}}\n",
            unjudged("linear classifier"),
            "did not measure by label_accuracy",
        ),
        (
            f"{NO_TOKENS}verdict: {{today: linear classifier}}\n",
            evaluation().model_copy(update={"comparisons": ()}),
            "does not compare tuned with linear classifier",
        ),
        (
            f"{CASE}verdict: {{today: linear classifier}}\n",
            evaluation(),
            "today's way is a linear classifier, which reads no tokens, and today has hosted prices",
        ),
        (
            CASE.replace("today:\n", "today:\n  counted: {num_correct: 9, num_answers: 8}\n"),
            evaluation(),
            "today.counted: has .*expected num_correct at most num_answers",
        ),
        (
            CASE.replace("today:\n", "today:\n  counted: {num_correct: 6, num_answers: 8}\n"),
            evaluation(),
            "today.counted assumed, and evaluation",
        ),
        (
            CASE.replace("alternatives: {", "alternatives: {baselines: {cost_per_call: 0.001}, "),
            evaluation({name: found for name, found in SYSTEMS.items() if found[0] == "model"}),
            "no baseline without a language model was measured",
        ),
    ],
)
def test_what_a_case_says_of_today_is_checked_against_the_evaluation(
    answer: Any, case: str, judged: Evaluation, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        answer(case, judged)
    assert "what to do" in str(caught.value)


def test_a_given_accuracy_is_not_held_against_points_of_another_metric(answer: Any) -> None:
    judged = evaluation()
    rouge = judged.model_copy(
        update={
            "systems": tuple(
                one.model_copy(update={"metrics": {"rouge_l": one.metrics[METRIC]}}) for one in judged.systems
            ),
            "comparisons": tuple(one.model_copy(update={"metric": "rouge_l"}) for one in judged.comparisons),
        }
    )
    case = CASE.replace("today:\n", "today:\n  accuracy: 0.6\n")
    with pytest.raises(RequestError, match="which today's accuracy cannot be compared with"):
        answer(f"{case}verdict: {{today: given, metric: rouge_l, correct_per_point: 0.5}}\n", rouge)


def test_how_far_numbers_are_off_is_no_share_of_correct_answers(answer: Any) -> None:
    """A head that gives numbers is judged by its distance; few of its numbers are equal to the digit."""
    judged = evaluation()
    distance = figure(0.1).model_copy(update={"higher_is_better": False})
    numbers = judged.model_copy(
        update={
            "systems": tuple(
                one.model_copy(update={"metrics": {"nmae": distance, "exact_match": figure(0.02)}})
                for one in judged.systems
            ),
            "verdict": Verdict(word="better", metric="nmae", headline="Nearer."),
        }
    )
    with pytest.raises(RequestError, match="how far numbers are off") as caught:
        answer(CASE, numbers)
    assert "tuned.gain" in caught.value.do
    assert "exact_match" not in str(caught.value)


def with_rows(num: int = 200) -> Evaluation:
    """Base, linear classifier and tuned model with their rows: both are right on nearly the same ones."""
    random = np.random.default_rng(0)
    difficulty = random.random(num)
    right = {
        "base": difficulty < 0.3,
        "linear classifier": difficulty + random.normal(0, 0.05, num) < 0.72,
        "tuned": difficulty + random.normal(0, 0.05, num) < 0.75,
    }
    kinds: dict[str, SystemKind] = {"base": "model", "linear classifier": "linear", "tuned": "model"}
    stats = {name: mean_statistics(values.astype(float)) for name, values in right.items()}
    systems, comparisons = [], []
    for name, values in right.items():
        rows = tuple(
            Sample(
                row_id=f"row-{number}", prompt="", reference="a", output="a", num_new_tokens=1, finish_reason="stop",
                scores={METRIC: float(value)},
            )
            for number, value in enumerate(values)
        )  # fmt: skip
        found = bootstrap_interval(stats[name], mean_of_sums, bounds=UNIT, seed=0, num_resamples=1_000)
        one = system(name, kinds[name], found.value)
        interval = one.metrics[METRIC].model_copy(update={"low": found.low, "high": found.high})
        systems.append(one.model_copy(update={"metrics": {METRIC: interval}, "samples": rows, "num_samples": num}))
        if name != "tuned":
            paired = paired_bootstrap(stats["tuned"], stats[name], mean_of_sums, bounds=UNIT, seed=0)
            ends = {"difference": paired.difference, "low": paired.low, "high": paired.high}
            comparisons.append(compared(name, 0.0, 0.0).model_copy(update=ends))
    found_all = {"systems": tuple(systems), "comparisons": tuple(comparisons), "num_rows": num}
    return evaluation().model_copy(update=found_all)


def test_the_interval_of_an_alternative_is_that_of_its_own_paired_gain(answer: Any) -> None:
    judged = with_rows()
    case = CASE.replace("alternatives: {few_shot: {extra_prompt_tokens: 400}}", "alternatives: {}")
    (linear,) = answer(case, judged).result.alternatives
    base, own, _ = (mean_statistics([sample.scores[METRIC] for sample in one.samples]) for one in judged.systems)
    truth = paired_bootstrap(own, base, mean_of_sums, bounds=UNIT, seed=0)
    assert linear.gain.typical == pytest.approx(truth.difference)
    assert linear.gain.high - linear.gain.low == pytest.approx(truth.high - truth.low, rel=0.1)


def sure(system: str, num: int = 200) -> LabelConfidence:
    """Right wherever it is surer than 0.7, and in half of the other rows."""
    confidence = np.linspace(0.5, 1, num)
    is_right = (confidence > 0.7) | (np.arange(num) % 2 == 0)
    figure = Metric(value=0.1, low=0.0, high=0.2, unit="0 to 1", higher_is_better=False)
    return LabelConfidence(
        system=system, num_labels=2, calibration_error=figure, brier=figure, bins=(),
        confidence=tuple(confidence.tolist()), is_right=tuple(bool(one) for one in is_right),
    )  # fmt: skip


PEOPLE = NO_TOKENS.replace("cost_per_call: 0", "cost_per_call: 2\n  accuracy: 0.95")


def test_what_is_answered_alone_saves_what_people_cost(answer: Any) -> None:
    judged = with_rows().model_copy(update={"label_confidence": (sure("tuned"), sure("linear classifier"))})
    found = answer(f"{PEOPLE}verdict: {{today: given, alone_at: 0.95}}\n", judged).result
    alone = found.measured.alone
    assert alone is not None
    assert 0.5 < alone.share.low < alone.share.value < alone.share.high < 0.8
    assert 0.9 < alone.accuracy.value < 1
    # 10,000 calls at 2 USD; the rest costs as much as today, and tokens are paid for all calls.
    assert found.tuned.serving_per_month.typical == pytest.approx(20_000 * (1 - alone.share.value) + 30)
    assert found.tuned.gain.typical == pytest.approx(alone.share.value * (alone.accuracy.value - 0.95))
    assert "of cases alone" in found.reasons[0]
    assert any("from a confidence of" in note for note in found.notes)
    linear = next(way for way in found.alternatives if way.name == "linear classifier")
    assert linear.gain.typical == pytest.approx(found.tuned.gain.typical)
    assert linear.serving_per_month.typical == pytest.approx(20_000 * (1 - alone.share.value))


def test_a_model_that_is_not_sure_answers_nothing_alone(answer: Any) -> None:
    case = f"{PEOPLE}verdict: {{today: given, alone_at: 0.95}}\n"
    with pytest.raises(RequestError, match="does not say how sure tuned is of its answers: its answers are not labels"):
        answer(case, with_rows())


def test_a_model_that_reaches_the_accuracy_at_no_threshold_answers_nothing_and_does_not_pay(answer: Any) -> None:
    never = sure("tuned").model_copy(update={"is_right": (False, True) * 100})
    judged = with_rows().model_copy(update={"label_confidence": (never,)})
    found = answer(f"{PEOPLE}verdict: {{today: given, alone_at: 0.95}}\n", judged).result
    assert found.answer == "no"
    assert found.measured is not None
    alone = found.measured.alone
    assert alone is not None
    assert (alone.threshold, alone.share.value, alone.accuracy) == (None, 0.0, None)
    assert found.reasons[0].startswith("It answers no case alone")
    assert any("At no threshold of confidence are 95% of its answers right" in note for note in found.notes)
    # All calls are answered as today, and the model's tokens are paid beside them: nothing is gained.
    assert found.tuned.gain.low == found.tuned.gain.high == 0
    assert found.tuned.serving_per_month.typical == pytest.approx(20_000 + 30)
    assert found.tuned.probability_pays == 0


def ask_three(context: Context, judged: Evaluation) -> RoiOutcome:
    """The answer to the three questions about an evaluation: people are right in 95%."""
    from luthier.ml.planning.roi.questions import Questions

    context.runs.create(make_record(), make_plan())
    context.evaluations.save(judged)
    return compute_roi(context, Questions(answers_per_week=400, minutes_each=6, cost_of_an_error=1), verdict=RUN_ID)


def test_to_answer_all_cases_less_accurately_is_no_alternative_to_answering_some_as_well_as_people(
    context: Context,
) -> None:
    """An answer that is wrong in a third of all cases saves all work of people, and would be worth the most."""
    known = (sure("tuned"), sure("linear classifier"))
    found = ask_three(context, evaluation().model_copy(update={"label_confidence": known})).result
    assert [way.name for way in found.alternatives] == ["linear classifier"]
    assert found.use_instead in (None, "linear classifier")
    (note,) = [one for one in found.notes if one.startswith("Not priced")]
    assert note.endswith("with the required accuracy of 0.95: commonest answer; nearest training row (BM25).")


def test_a_baseline_that_reaches_the_accuracy_on_all_cases_answers_all_of_them(answer: Any) -> None:
    judged = evaluation().model_copy(update={"label_confidence": (sure("tuned"),)})
    found = answer(f"{PEOPLE}verdict: {{today: given, alone_at: 0.65}}\n", judged).result
    ways = {way.name: way for way in found.alternatives}
    assert list(ways) == ["commonest answer", "linear classifier"], "the nearest row is right in 60%"
    assert ways["commonest answer"].gain.typical == pytest.approx(0.675 - 0.95)
    assert ways["commonest answer"].serving_per_month.typical == 0, "no case is left to people"


def test_a_baseline_that_no_threshold_makes_accurate_enough_is_left_out(answer: Any) -> None:
    never = sure("linear classifier").model_copy(update={"is_right": (False, True) * 100})
    judged = with_rows().model_copy(update={"label_confidence": (sure("tuned"), never)})
    found = answer(f"{PEOPLE}verdict: {{today: given, alone_at: 0.95}}\n", judged).result
    assert found.alternatives == ()
    assert any(note.endswith("required accuracy of 0.95: linear classifier.") for note in found.notes)


def test_three_questions_are_not_answered_by_keys_of_a_case_file(context: Context) -> None:
    with pytest.raises(RequestError) as caught:
        ask_three(context, with_rows())
    assert "alone_at" not in caught.value.do
    assert "is assumed then" in caught.value.do


def test_three_questions_about_a_model_that_answers_nothing_alone_are_answered_by_no(context: Context) -> None:
    never = sure("tuned").model_copy(update={"is_right": (False, True) * 100})
    found = ask_three(context, with_rows().model_copy(update={"label_confidence": (never,)})).result
    assert (found.answer, found.reasons[0].partition(":")[0]) == ("no", "It answers no case alone")
    assert any("suggestions that a person checks" in note for note in found.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"num_leaked": 3},
        {"caveats": ("3 held-out rows are also in the training rows: its figures are too good.",)},
    ],
)
def test_gains_on_rows_of_the_training_are_refused(answer: Any, change: dict[str, Any]) -> None:
    judged = evaluation()
    assert judged.verdict is not None
    leaked = judged.model_copy(update={"verdict": judged.verdict.model_copy(update=change)})
    with pytest.raises(RequestError, match="are among the rows that its model was trained on") as refused:
        answer(judged=leaked)
    assert "too large" in str(refused.value)
