"""An evaluation for people: its sentence, its picture and its three samples."""

from __future__ import annotations

from tests.ml.evaluation.judged_cases import FOUR_EXAMPLES, LINEAR, METRIC, judged, sample, system

from luthier.core.evaluation_plan import Bar, Prompting
from luthier.ml.evaluation.verdict_view import MAX_BARS, MAX_CHARACTERS, verdict_view

BASE = system("base", 0.0)
CLASSIFIER = system(LINEAR, 0.78, kind="linear")
PROMPTED = system("base + 4 examples", 0.4125, prompting=FOUR_EXAMPLES, num_few_shot=4)


def test_the_sentence_counts_right_answers_of_the_main_systems() -> None:
    view = verdict_view(judged(0.75, [BASE, CLASSIFIER], ["better", "not distinguishable"], word="not distinguishable"))
    assert view is not None
    assert view.sentence == (
        "The tuned model answers 75 of 100 held-out rows correctly, the untuned model 0 and a linear classifier 78."
    )
    assert view.recommendation is not None
    assert view.recommendation.title == "Use a linear classifier instead."


def test_a_mean_over_draws_is_about_a_count() -> None:
    view = verdict_view(judged(0.35, [BASE, PROMPTED], ["better", "worse"], word="worse"))
    assert view is not None
    assert "the untuned model 0 and the untuned model with 4 examples in its prompt about 41." in view.sentence


def test_other_metrics_have_their_figure_and_direction() -> None:
    base = system("base", 18.4, metric="perplexity", higher_is_better=False, unit="per token")
    view = verdict_view(
        judged(6.21, [base], ["better"], word="better", metric="perplexity", higher_is_better=False, unit="per token")
    )
    assert view is not None
    assert view.sentence == "By perplexity, the tuned model reaches 6.21, the untuned model 18.40 (lower is better)."
    assert view.chart is not None
    assert view.chart.title == "Perplexity, lower is better"


def test_the_picture_has_the_tuned_model_its_base_and_the_alternatives_from_best_to_worst() -> None:
    view = verdict_view(
        judged(
            0.75,
            [BASE, PROMPTED, CLASSIFIER],
            ["better", "better", "not distinguishable"],
            word="not distinguishable",
            bar=Bar(metric=METRIC, value=0.9),
        )
    )
    assert view is not None
    assert view.chart is not None
    rows = [(bar.name, round(bar.value, 2), bar.role) for bar in view.chart.rows]
    assert rows == [
        ("tuned model", 75, "tuned"),
        ("untuned model", 0, "base"),
        ("linear classifier", 78, "other-1"),
        ("4 examples in the prompt", 41.25, "base"),
    ]
    interval = view.chart.rows[0].interval
    assert interval is not None
    assert [round(end, 2) for end in interval] == [65, 85]
    assert view.chart.limit is not None
    assert view.chart.limit.x == 90, "the bar is on the scale of the axis"
    assert view.chart.limit.name == "asked for: 90", "and so is its name"
    assert "tuned model 75 (65 to 85)" in view.chart.description
    assert view.picture.startswith("<svg")
    assert view.picture.count("<polygon") == 4


def test_of_many_systems_the_picture_says_how_many_it_leaves_out() -> None:
    prompts = [
        system(f"base + {n} examples", 0.1, prompting=Prompting(kind="few_shot"), num_few_shot=n) for n in range(2, 13)
    ]
    view = verdict_view(judged(0.9, [BASE, *prompts], ["better"] * 12, word="better"))
    assert view is not None
    assert view.chart is not None
    assert len(view.chart.rows) == MAX_BARS
    assert view.num_not_drawn == 13 - MAX_BARS


def picked(tuned: list[float], classifier: list[float]) -> dict[str, str]:
    own = [sample(n, f"tuned {n}", score) for n, score in enumerate(tuned)]
    other = CLASSIFIER.model_copy(
        update={"samples": tuple(sample(n, f"linear {n}", score) for n, score in enumerate(classifier))}
    )
    evaluation = judged(0.75, [BASE, other], ["better", "worse"], word="worse", tuned_samples=own)
    view = verdict_view(evaluation)
    assert view is not None
    return {pick.kind: pick.row_id for pick in view.picks.picks}


def test_three_samples_are_the_middle_the_best_and_the_worst_gain() -> None:
    # Gains: 0 (both right), 1, -1, 0 (both right), 0 (both wrong): in order rows 2, 4, 0 or 3, 3 or 0, 1.
    found = picked([1, 1, 0, 1, 0], [1, 0, 1, 1, 0])
    assert found.pop("typical") in ("t.jsonl:0", "t.jsonl:3")
    assert found == {"best": "t.jsonl:1", "worst": "t.jsonl:2"}


def test_no_row_is_shown_twice_and_few_rows_give_fewer_samples() -> None:
    assert sorted(picked([1, 1], [1, 1]).values()) == ["t.jsonl:0", "t.jsonl:1"]
    assert picked([1], [0]) == {"typical": "t.jsonl:0"}
    assert picked([], []) == {}


def test_a_sample_has_input_expected_and_both_answers() -> None:
    long = "x" * (MAX_CHARACTERS + 100)
    own = [sample(1, "tuned answer", 0.0, prompt=long)]
    other = CLASSIFIER.model_copy(update={"samples": (sample(1, "right", 1.0, prompt=long),)})
    view = verdict_view(judged(0.5, [BASE, other], ["better", "worse"], word="worse", tuned_samples=own))
    assert view is not None
    [pick] = view.picks.picks
    assert (pick.prompt.text, pick.prompt.num_left_out) == ("x" * MAX_CHARACTERS, 100)
    assert pick.reference.text == "right"
    assert [(one.name, one.answer.text, one.score) for one in pick.answers] == [
        ("The tuned model", "tuned answer", "wrong"),
        ("A linear classifier", "right", "right"),
    ]
    assert view.picks.rule.startswith(
        "Of 1 held-out row, ordered by the gain over a linear classifier by label accuracy"
    )


def test_without_a_verdict_there_is_a_figure_and_no_action() -> None:
    alone = judged(0.5, [], [], word="better").model_copy(update={"verdict": None})
    view = verdict_view(alone)
    assert view is not None
    assert view.recommendation is None
    assert view.sentence == "The tuned model answers 50 of 100 held-out rows correctly."
    assert view.tone == "quiet"
    assert verdict_view(alone.model_copy(update={"systems": ()})) is None


def test_the_name_of_a_model_keeps_its_letters() -> None:
    base, other = system("smollm2-135m", 0.1), system("qwen3-0.6b", 0.6)
    made = judged(0.5, [base], ["worse"], word="worse")
    comparison = made.comparisons[0].model_copy(update={"candidate": "qwen3-0.6b", "verdict": "better"})
    verdict = made.verdict.model_copy(update={"word": "better"}) if made.verdict else None
    view = verdict_view(
        made.model_copy(update={"systems": (base, other), "comparisons": (comparison,), "verdict": verdict})
    )
    assert view is not None
    assert view.sentence.startswith("qwen3-0.6b answers 60 of 100")
    assert view.recommendation is not None
    assert view.recommendation.title == "Use qwen3-0.6b."
    assert view.recommendation.reason.startswith("qwen3-0.6b is ")
