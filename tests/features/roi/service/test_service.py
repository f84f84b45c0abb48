"""Cases as the service answers them: files, prices of the table, and gains of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Comparison, Evaluation, Metric, SystemResult, Verdict
from luthier.features.roi import measured_gains as roi_verdict
from luthier.features.roi.service import compute_roi, load_case, with_prices
from luthier.ml.planning.devices import load_prices
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_record

CASE = """
name: A test
currency: USD
calls: {per_month: 10_000, input_tokens: 1_000, output_tokens: 100, value_of_one_more_correct: 0.5}
today:
  hosted: {input_price_per_million_tokens: 2, output_price_per_million_tokens: 10}
tuned: {saved_prompt_tokens: 0}
people: {rate_per_hour: 50, preparation_hours: 10, annotation_hours: 20, review_hours: 10}
training: {device: a100-80g, hours: 2, num_devices: 4}
alternatives: {few_shot: {extra_prompt_tokens: 400}}
"""
ASSUMED = CASE.replace("tuned: {", "tuned: {gain: 0.1, ").replace("few_shot: {", "few_shot: {gain: 0.02, ")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def case(text: str, name: str = "case.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return case


def evaluation(
    *, metric: str = "exact_match", higher: bool = True, names: tuple[str, ...] = ("base", "base + 4 examples", "tuned")
) -> Evaluation:
    """Base 0.5, few-shot 0.55, tuned 0.62, with intervals."""
    values = {"base": 0.5, "base + 4 examples": 0.55, "tuned": 0.62}
    systems = tuple(
        SystemResult(
            name=name,
            model="tiny",
            adapter="/adapter" if name == "tuned" else None,
            num_few_shot=4 if "examples" in name else 0,
            num_samples=100,
            metrics={metric: Metric(value=values[name], low=0, high=1, unit="fraction", higher_is_better=higher)},
            seconds=1.0,
        )
        for name in names
    )
    comparisons = tuple(
        Comparison(
            baseline=baseline,
            candidate="tuned",
            metric=metric,
            difference=0.62 - values[baseline],
            low=0.62 - values[baseline] - 0.05,
            high=0.62 - values[baseline] + 0.06,
            p_value=0.01,
            verdict="better",
        )
        for baseline in names
        if baseline != "tuned"
    )
    verdict = Verdict(word="better", metric=metric, headline="Better.", caveats=("Only 100 rows were evaluated.",))
    return make_evaluation().model_copy(
        update={"run_id": RUN_ID, "systems": systems, "comparisons": comparisons, "verdict": verdict, "num_rows": 100}
    )


def save(context: Context, found: Evaluation) -> None:
    context.runs.create(make_record(), make_plan())
    context.evaluations.save(found)


def test_an_assumed_case_takes_the_price_of_its_device_from_the_table_and_says_so(context: Context, write: Any) -> None:
    found = compute_roi(context, write(ASSUMED)).result
    price = load_prices().usd_per_hour("a100-80g")
    assert {part.name: part.amount.typical for part in found.once_parts}["training"] == pytest.approx(8 * price.value)
    assert any(note.startswith("training.price_per_hour: ") and "a100-80g" in note for note in found.notes)
    assert "training.price_per_hour" in {bar.name for bar in found.tornado}


def test_a_users_prices_and_currency(context: Context, write: Any, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("as_of: 2026-11-01\ndevices: {a100-80g: {on_demand: 1.5}}\n")
    text = ASSUMED.replace("currency: USD", "currency: EUR\ncurrency_per_usd: 0.8")
    found = compute_roi(context, write(text), prices=tmp_path / "prices.yaml").result
    assert {part.name: part.amount.typical for part in found.once_parts}["training"] == pytest.approx(8 * 1.5 * 0.8)
    needless = ASSUMED.replace("training: {device: a100-80g,", "training: {price_per_hour: 2,")
    notes = compute_roi(context, write(needless), prices=tmp_path / "prices.yaml").result.notes
    assert any("No price of" in note for note in notes)


def test_the_command_of_the_page_has_the_prices_that_it_was_made_with(
    context: Context, write: Any, tmp_path: Path
) -> None:
    prices, html = tmp_path / "prices.yaml", tmp_path / "worth.html"
    prices.write_text("as_of: 2026-11-01\ndevices: {a100-80g: {on_demand: 1.5}}\n")
    case = write(ASSUMED)
    compute_roi(context, case, prices=prices, html=html)
    assert f"luthier worth {case} --prices {prices} --html {html}" in html.read_text(encoding="utf-8")
    compute_roi(context, case, html=html)
    assert f"luthier worth {case} --html {html}" in html.read_text(encoding="utf-8")


def test_prices_reach_every_way_that_serves_itself(write: Any) -> None:
    own = "self_served: {device: l4, market: spot, hours_per_month: 730, input_tokens_per_second: 1000, "
    own += "output_tokens_per_second: 100}"
    text = ASSUMED.replace("tuned: {gain: 0.1,", f"tuned: {{gain: 0.1, {own},")
    case, sources = with_prices(load_case(write(text)), load_prices())
    spot = load_prices().usd_per_hour("l4", market="spot")
    assert case.tuned.self_served is not None
    assert case.tuned.self_served.price_per_hour is not None
    assert case.tuned.self_served.price_per_hour.typical == spot.value
    assert isinstance(spot, Estimate)
    assert len(sources) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("currency: USD\n", ""), "currency: is missing, expected three capital letters, such as USD"),
        (("currency: USD", "currency: dollars"), "currency: has 'dollars', expected three capital letters"),
        (("calls: {per_month:", "calls: {per_moth:"), "calls.per_moth: unknown key; nearest known: calls.per_month"),
        (("people: {rate_per_hour: 50,", "people: {"), "people.rate_per_hour: is missing, expected a number, or low"),
        (("gain: 0.1", "gain: 1.2"), "tuned.gain: has 1.2, expected a number at least -1 and at most 1"),
        (
            ("saved_prompt_tokens: 0", "saved_prompt_tokens: -5"),
            "saved_prompt_tokens: has -5, expected a number at least 0",
        ),
        ((" hours: 2,", " hours: {low: 3, typical: 2, high: 4},"), "expected low <= typical <= high"),
        ((" hours: 2,", " hours: many,"), "training.hours: has 'many', expected a number, or low, typical and high"),
        (("name: A test", "name: A test\nbudget: -1"), "budget: has -1, expected a number at least 0"),
        (("name: A test", "name: A test\nname: Another"), "appears twice"),
        (("device: a100-80g", "device: a100-80gb"), "no price for device 'a100-80gb'"),
        (("currency: USD", "currency: EUR"), "comes from a table in USD, and the case is in EUR"),
        (("tuned: {gain: 0.1, ", "tuned: {"), "no gain of the tuned model is given"),
    ],
)
def test_what_is_wrong_in_a_case_is_told_with_its_place(
    context: Context, write: Any, change: tuple[str, str], words: str
) -> None:
    path = write(ASSUMED.replace(*change))
    with pytest.raises(RequestError, match="what to do") as caught:
        compute_roi(context, path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "case.yaml", "is empty"),
        ("- 1\n", "case.yaml", "holds list"),
        ("a: [", "case.yaml", "is not valid YAML"),
        ("{}", "case.txt", "ends in '.txt'"),
        ('{"a": NaN}', "case.json", "NaN is not a JSON number"),
    ],
)
def test_files_that_are_no_case(context: Context, write: Any, text: str, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        compute_roi(context, write(text, name))


def test_files_that_are_not_there(context: Context, write: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no case"):
        compute_roi(context, tmp_path / "nothing.yaml")
    with pytest.raises(NotFoundError, match="no run 'run-20261125-093000-ffffff'"):
        compute_roi(context, write(CASE), verdict="run-20261125-093000-ffffff")
    with pytest.raises(NotFoundError, match="no price file"):
        compute_roi(context, write(ASSUMED), prices=tmp_path / "nothing.yaml")


def test_a_case_may_be_json(context: Context, write: Any) -> None:
    import yaml

    document = yaml.safe_load(ASSUMED.replace("10_000", "10000").replace("1_000", "1000"))
    assert compute_roi(context, write(json.dumps(document), "case.json")).result.answer == "yes"


def test_gains_of_a_run_are_those_of_its_paired_comparisons(context: Context, write: Any) -> None:
    save(context, evaluation())
    found = compute_roi(context, write(CASE), verdict=RUN_ID).result
    assert found.tuned.gain.typical == pytest.approx(0.12)
    assert (found.tuned.gain.low, found.tuned.gain.high) == pytest.approx((0.07, 0.18), abs=2e-3)
    (shown,) = found.alternatives
    assert shown.gain.typical == pytest.approx(0.05)
    assert shown.serving_per_month.typical == pytest.approx(10_000 * (1_400 * 2 + 100 * 10) / 1e6)
    assert "Only 100 rows were evaluated." in found.notes
    assert compute_roi(context, write(CASE), verdict=evaluation().evaluation_id).result.tuned == found.tuned


def test_assumed_gains_beside_a_verdict_are_refused(context: Context, write: Any) -> None:
    save(context, evaluation())
    with pytest.raises(RequestError, match="measured it"):
        compute_roi(context, write(ASSUMED), verdict=RUN_ID)


def test_examples_that_cannot_be_found_again_have_to_be_said(context: Context, write: Any) -> None:
    save(context, evaluation())
    silent = CASE.replace("alternatives: {few_shot: {extra_prompt_tokens: 400}}\n", "")
    with pytest.raises(RequestError, match="does not record which examples were in the prompt") as caught:
        compute_roi(context, write(silent), verdict=RUN_ID)
    assert "alternatives.few_shot.extra_prompt_tokens" in caught.value.do


@pytest.mark.parametrize(
    ("found", "case", "words"),
    [
        (evaluation(metric="rouge_l"), CASE, "ROUGE-L, which is not a share of correct answers"),
        (evaluation(metric="perplexity", higher=False), CASE, "better where it is lower"),
        (evaluation(), CASE + "verdict: {metric: bleu}\n", "metric bleu of evaluation"),
        (evaluation(names=("tuned",)), CASE, "expected: a tuned model and, before it"),
        (evaluation(names=("base", "tuned")), CASE + "verdict: {today: few_shot}\n", "has no few-shot system"),
        (evaluation().model_copy(update={"comparisons": ()}), CASE, "does not compare tuned with base"),
    ],
)
def test_an_evaluation_that_cannot_answer_says_why(
    context: Context, write: Any, found: Evaluation, case: str, words: str
) -> None:
    save(context, found)
    with pytest.raises(RequestError, match=words):
        compute_roi(context, write(case), verdict=RUN_ID)


def test_points_of_another_metric_count_by_what_the_case_says(context: Context, write: Any) -> None:
    save(context, evaluation(metric="rouge_l"))
    found = compute_roi(context, write(CASE + "verdict: {correct_per_point: 0.5}\n"), verdict=RUN_ID).result
    assert found.tuned.gain.typical == pytest.approx(0.06)
    assert any("where it rises by 1, 0.5 more of the answers" in note for note in found.notes)


def test_a_run_that_was_never_judged(context: Context, write: Any) -> None:
    context.runs.create(make_record(), make_plan())
    with pytest.raises(RequestError, match="was never evaluated"):
        compute_roi(context, write(CASE), verdict=RUN_ID)


def test_the_page_never_goes_over_the_case(context: Context, write: Any, tmp_path: Path) -> None:
    path = write(ASSUMED)
    with pytest.raises(RequestError, match="is the file that is read"):
        compute_roi(context, path, html=path)
    found = compute_roi(context, path, html=tmp_path / "new" / "worth.html")
    assert found.report is not None
    assert found.as_json()["report"] == str(found.report)
    assert found.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_tokens_of_the_examples_are_those_that_the_models_own_template_writes(
    context: Context, write: Any, make_recipe: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    from luthier.features.planning.service import prepare_again
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training.service import train
    from luthier.ml.evaluation.few_shot import choose_shots

    recipe = make_recipe()
    done = train(context, load_recipe(recipe), base_dir=recipe.parent)
    text = CASE.replace("alternatives: {few_shot: {extra_prompt_tokens: 400}}\n", "verdict: {metric: exact_match}\n")
    found = compute_roi(context, write(text), verdict=done.record.run_id).result
    assert found.measured is not None
    prepared = prepare_again(context, done.plan)
    assert prepared.held_out is not None
    shots = choose_shots(prepared.train.examples, 2, done.plan.training.seed, held_out=prepared.held_out.examples)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def count(messages: list[dict[str, str | None]]) -> int:
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))

    def turns(example: Any) -> list[dict[str, str | None]]:
        return [{"role": m.role, "content": m.content} for m in example.conversation.messages]

    shown = [turn for shot in shots for turn in turns(shot)]
    added = [count([*shown, *turns(row)]) - count(turns(row)) for row in prepared.held_out.examples]
    (judged,) = context.evaluations.list(run_id=done.record.run_id, limit=1)
    prompts = {system.name: system.prompting for system in judged.systems if system.prompting is not None}
    drawn = prompts["base + 2 examples"]
    assert drawn is not None
    assert drawn.extra_prompt_tokens == pytest.approx(sum(added) / len(added))
    # Neither prompt gets a row right, and the shorter one costs less.
    least = min(one.extra_prompt_tokens for one in prompts.values() if one is not None)
    assert found.measured.shot_tokens == least
    assert any(note.startswith("The prompt that is priced is") for note in found.measured.notes)
    assert found.alternatives[0].name == "few_shot"
    simple = [system.name for system in judged.systems if system.kind != "model"]
    assert "nearest training row (BM25)" in simple
    assert [way.name for way in found.alternatives if way.is_baseline] == simple
    # As evaluations were stored before they said what prompts add: it is counted again, from the files of the run.
    before = tuple(
        system.model_copy(update={"prompting": None})
        for system in judged.systems
        if system.prompting is None or system.name == "base + 2 examples"
    )
    elsewhere = tuple(
        system.model_copy(
            update={"samples": tuple(one.model_copy(update={"row_id": "elsewhere"}) for one in system.samples)}
        )
        for system in before
    )

    def answer(systems: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(roi_verdict, "_evaluation", lambda *_: judged.model_copy(update={"systems": systems}))
            return compute_roi(context, write(text), verdict=done.record.run_id).result

    assert answer(before).measured.shot_tokens == pytest.approx(sum(added) / len(added))
    with pytest.raises(RequestError, match="has none of the held-out rows"):
        answer(elsewhere)
    (recipe.parent / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(ConflictError, match="cannot be found again") as caught:
        answer(before)
    assert "alternatives.few_shot.extra_prompt_tokens" in caught.value.do
