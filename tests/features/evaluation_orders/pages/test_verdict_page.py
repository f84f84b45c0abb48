"""The verdict for people: the sentence, the picture, the action with its button, three samples, and "Worth it?"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi.testclient import TestClient
from tests.ml.evaluation.judged_cases import LINEAR, curve, judged, sample, system

from luthier.core.access import Caller
from luthier.core.evaluation import Evaluation, LabelConfidence, Metric, SystemResult
from luthier.core.evaluation_plan import Prompting, ShownTurn
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.features.run_drafts.choices import fork, rows_of
from luthier.features.runs.entries_store import DatasetName
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_plan

Browser = Callable[..., TestClient]
ID = "eval-20261125-093000-aaaaaa"
PAGE = f"/evaluations/{ID}"
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
ASKED = "answers_per_week=400&minutes_each=6&cost_of_an_error=20"
SHOTS = (ShownTurn(role="user", content="Where is it?"), ShownTurn(role="assistant", content="Here."))
DRAWN = Prompting(kind="few_shot", examples="drawn", num_draws=3, extra_prompt_tokens=41.6, turns=SHOTS)


def of_rival(rival: SystemResult, tuned: float = 0.5) -> Evaluation:
    """The tuned model is worse than the rival, each with an answer to three rows."""
    answers = [sample(n, f"{HOSTILE} {n}", float(n == 1)) for n in (1, 2, 3)]
    other = rival.model_copy(update={"samples": tuple(sample(n, "right", 1.0) for n in (1, 2, 3))})
    return judged(
        tuned, [system("base", 0.0), other], ["better", "worse"], word="worse", beats_all="worse", tuned_samples=answers
    )


def keep(home: Context, evaluation: Evaluation) -> str:
    """Store it as that of a new run; returns the run's id."""
    run_id = add_run(home, "a")
    home.evaluations.save(evaluation.model_copy(update={"run_id": run_id}))
    return run_id


def action_of(page: str) -> str:
    return page[page.index('id="action"') : page.index("</section>", page.index('id="action"'))]


def test_the_page_opens_with_sentence_picture_action_and_three_samples(home: Context, browser: Browser) -> None:
    keep(home, of_rival(system(LINEAR, 0.78, kind="linear")))
    page = browser("read", "infer", "train").get(PAGE).text
    heading = re.sub("<[^>]*>", "", page[page.index("<h1") : page.index("</h1>")].partition(">")[2])
    assert unescape(heading) == (
        "The tuned model answers 50 of 100 held-out rows correctly, the untuned model 0 and a linear classifier 78. "
        "Use a linear classifier instead."
    )
    parts = ("<h1", '<svg class="drawn"', 'id="action"', 'id="worth"', 'class="one-sample"', 'id="details"')
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.count('class="one-sample"') == 3
    assert f'href="{PAGE}/alternative"' in action_of(page)
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_the_statistics_are_behind_details_and_open_by_address(home: Context, browser: Browser) -> None:
    keep(home, of_rival(system(LINEAR, 0.78, kind="linear")))
    one = browser("read")
    page = one.get(PAGE).text
    inside = page[page.index('<details class="verdict-details"') : page.index('<div id="samples">')]
    assert inside.startswith('<details class="verdict-details" id="details">')
    assert 'id="systems"' in inside
    assert 'id="differences"' in inside
    assert "A headline." in inside
    assert '<details class="verdict-details" id="details" open>' in one.get(f"{PAGE}?details=1").text


def test_alternatives_that_do_not_fit_the_rows_are_listed_with_the_reason(home: Context, browser: Browser) -> None:
    evaluation = of_rival(system(LINEAR, 0.78, kind="linear"))
    keep(home, evaluation.model_copy(update={"baselines_left_out": ("copy rules: <b>labels</b> repeat",)}))
    page = browser("read").get(PAGE).text
    inside = page[page.index("Alternatives that do not fit these rows") :]
    assert "copy rules: &lt;b&gt;labels&lt;/b&gt; repeat" in inside[: inside.index("</details>")]


CASES = {
    "use_model": (
        judged(0.9, [system("base", 0.1)], ["better"], word="better"),
        ["/playground?model={run}", "/models/{run}#deploy"],
    ),
    "use_prompt": (of_rival(system("base + 1 example", 0.7, prompting=DRAWN, num_few_shot=1)), [f"{PAGE}/alternative"]),
    "use_other_model": (judged(0.5, [system("base", 0.9)], ["worse"], word="worse"), ["/playground?model=tiny"]),
    "add_rows": (
        judged(0.5, [system("base", 0.6)], ["not distinguishable"], word="not distinguishable", learning_curve=curve()),
        ["/datasets/new"],
    ),
    "larger_base": (
        judged(0.0, [system("base", 0.0)], ["not distinguishable"], word="not distinguishable"),
        ["/models?show=base"],
    ),
    "evaluate_more": (
        judged(0.6, [system("base", 0.5)], ["not distinguishable"], word="not distinguishable", rows_needed=300),
        ["/evaluations/new?model={run}"],
    ),
}


@pytest.mark.parametrize("action", CASES)
def test_each_action_has_its_buttons(
    home: Context, browser: Browser, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, addresses = CASES[action]
    monkeypatch.setattr("luthier.features.runs.next_steps.base_models", lambda _: {"tiny": "tiny"})
    run_id = keep(home, evaluation)
    box = action_of(browser("read", "infer", "train").get(PAGE).text)
    found = re.findall(r'<a class="(button[^"]*)" href="([^"]*)"', box)
    assert [unescape(address) for _, address in found] == [one.format(run=run_id) for one in addresses]
    assert [name for name, _ in found] == ["button primary", *["button"] * (len(found) - 1)]


@pytest.mark.parametrize("is_dataset", [True, False])
def test_all_held_out_rows_are_evaluated_before_others_are_asked_for(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch, is_dataset: bool
) -> None:
    run_id = keep(home, CASES["evaluate_more"][0].model_copy(update={"num_rows_in_file": 184}))
    rows = [f'{{"prompt": "p{n}", "completion": "c"}}\n'.encode() for n in range(20)]
    file = keep_rows(home, Caller(), rows, "rows.jsonl")
    if is_dataset:
        create_dataset(home, Caller(), "Letters", file)
    plan = make_plan(train_sha256=file.sha256)
    held_out = plan.data.train.model_copy(update={"split": "held_out"})
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"held_out": held_out})})
    monkeypatch.setattr(type(home.runs), "plan", lambda *_: plan)
    box = action_of(browser("read", "train").get(PAGE).text)
    assert "Evaluate all 184 held-out rows before you decide." in box
    assert "84 held-out rows have not been evaluated yet. After that, about 120 more rows are needed." in box
    # Rows that are no dataset of the project cannot be chosen in the form.
    label = "Evaluate all held-out rows" if is_dataset else "Evaluate on more rows"
    assert re.findall(r'<a class="button primary" href="([^"]*)">([^<]*)</a>', box) == [
        (f"/evaluations/new?model={run_id}", label)
    ]


def test_a_larger_base_model_of_this_machine_is_offered_with_the_run_to_fork(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.models.service import ModelView

    def model(name: str, num: int, path: str | None = "/m") -> ModelView:
        return ModelView(
            name=name, title=name, source="catalog", licence="", licence_url="", num_parameters=num,
            context_length_tokens=512, has_chat_template=True, note="", path=path, num_bytes=1, sha256="0",
            architecture=None,
        )  # fmt: skip

    # The run's base has 100,000 parameters.
    known = [model("same", 110_000), model("big", 400_000), model("bigger", 800_000), model("far", 200_000, None)]
    monkeypatch.setattr("luthier.features.runs.next_steps.list_models", lambda _: known)
    monkeypatch.setattr("luthier.features.runs.next_steps.base_models", lambda _: {one.name: one.name for one in known})
    run_id = keep(home, CASES["larger_base"][0])
    box = unescape(action_of(browser("read", "train").get(PAGE).text))
    assert f'href="/runs/new?from={run_id}&base_model=big"' in box
    assert "Train big" in box
    # The rows are a version of a dataset: the guided run begins with these answers.
    rows = DatasetName(dataset_id="data-1", name="Client questions", version=3)
    sha256 = home.runs.plan(run_id).data.train.sha256
    monkeypatch.setattr("luthier.features.runs.next_steps.datasets_of", lambda *_: {sha256: rows})
    box = unescape(action_of(browser("read", "train").get(PAGE).text))
    assert re.findall(r'<a class="button[^"]*" href="([^"]*)"', box) == [
        "/start?dataset=data-1&version=3&base_model=big",
        f"/runs/new?from={run_id}&base_model=big",
        "/models?show=base",
    ]


@pytest.mark.parametrize("is_split", [True, False])
def test_a_larger_model_is_trained_with_the_same_held_out_rows(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch, is_split: bool
) -> None:
    """Rows that no split has made, such as those of a workflow, are found by the form of the forked run alone."""
    monkeypatch.setattr("luthier.features.runs.next_steps._next_larger", lambda *_: "big")
    run_id = keep(home, CASES["larger_base"][0])
    files = {
        side: keep_rows(home, Caller(), [json.dumps({"prompt": side, "completion": "c"}).encode()], f"{side}.jsonl")
        for side in ("train", "held_out")
    }
    of = {"dataset_id": "data-1", "name": "Docs", "version": 1}
    for (side, file), name in zip(files.items(), ("Docs-train", "Docs-held-out"), strict=True):
        details = {"of": of, "side": side, "split": {"seed": 0}} if is_split else {"side": side}
        create_dataset(home, Caller(), name, file, origin="split" if is_split else "upload", details=details)
    plan = make_plan(train_sha256=files["train"].sha256)
    held_out = plan.data.train.model_copy(update={"split": "held_out", "sha256": files["held_out"].sha256})
    data = plan.recipe.data.model_copy(update={"train": "train.jsonl", "held_out": "held_out.jsonl"})
    recipe = plan.recipe.model_copy(update={"data": data})
    plan = plan.model_copy(
        update={"recipe": recipe, "data": plan.data.model_copy(update={"held_out": held_out, "sources": ()})}
    )
    monkeypatch.setattr(type(home.runs), "plan", lambda *_: plan)
    box = unescape(action_of(browser("read", "train").get(PAGE).text))
    (first,) = re.findall(r'<a class="button primary" href="([^"]*)">Train big<', box)
    chosen = fork(home, Caller(), run_id).keys["data"]
    if is_split:
        query = dict(parse_qsl(urlsplit(first).query))
        assert query["base_model"] == "big"
        chosen = rows_of(home, Caller(), query["dataset"], int(query["version"])).data
    else:
        assert first == f"/runs/new?from={run_id}&base_model=big"
    assert {side: chosen[side] for side in files} == {side: file.file_id for side, file in files.items()}


def test_who_may_only_read_gets_the_advice_without_the_buttons(home: Context, browser: Browser) -> None:
    keep(home, CASES["use_model"][0])
    box = action_of(browser("read").get(PAGE).text)
    assert "Use the tuned model." in box
    assert "button" not in box


def test_the_prompt_is_shown_as_messages_to_copy(home: Context, browser: Browser) -> None:
    turns = (ShownTurn(role="user", content=HOSTILE), SHOTS[1])
    own = DRAWN.model_copy(update={"instruction": "Say where.", "turns": turns})
    keep(home, of_rival(system("base + 1 example", 0.7, prompting=own, num_few_shot=1)))
    page = browser("read").get(f"{PAGE}/alternative").text
    assert "<script>alert" not in page
    text = unescape(re.findall(r'id="alternative-text"[^>]*>(.*?)</pre>', page, re.S)[0])
    assert json.loads(text) == [
        {"role": "system", "content": "Say where."},
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "YOUR QUESTION"},
    ]
    assert "the best of 3 draws" in page
    assert "about 42 tokens" in page
    assert 'data-copy="#alternative-text"' in page


def test_the_alternative_is_only_shown_where_it_is_recommended_and_to_its_project(
    home: Context, browser: Browser
) -> None:
    create_project(home, "other")
    keep(home, CASES["use_model"][0])
    answer = browser("read").get(f"{PAGE}/alternative")
    assert answer.status_code == 404
    assert "does not recommend a prompt or a simple method" in answer.text
    other = browser("read", project="other")
    for address in (f"{PAGE}/alternative", f"{PAGE}/worth?{ASKED}", PAGE):
        assert other.get(address).status_code == 404
        assert browser("infer").get(address).status_code == 403


def test_worth_is_answered_in_place_and_kept_in_the_address(home: Context, browser: Browser) -> None:
    keep(home, of_rival(system(LINEAR, 0.78, kind="linear")))
    one = browser("read")
    assert "All figures and assumptions" not in one.get(PAGE).text
    page = one.get(f"{PAGE}?{ASKED}").text
    part = page[page.index('id="worth"') : page.index("</section>", page.index('id="worth"'))]
    assert 'value="400"' in part
    assert "Worth in 12 months" in part
    assert "This evaluation does not measure which cases the model can answer alone" in part
    assert "95%" in part, "with its range"
    piece = one.get(f"{PAGE}/worth?{ASKED}", headers={"HX-Request": "true"})
    assert piece.text.strip().startswith('<section class="card stack tight worth-part" id="worth"')
    assert piece.headers["hx-push-url"] == f"{PAGE}?{ASKED}"
    assert one.get(f"{PAGE}/worth?{ASKED}").headers["location"] == f"{PAGE}?{ASKED}#worth"
    samples = one.get(f"{PAGE}?{ASKED}&order=best", headers={"HX-Request": "true"}).text
    assert 'id="samples-title"' in samples, "a filter of samples keeps to the samples"


def test_worth_beside_a_verdict_is_in_the_currency_of_its_form(home: Context, browser: Browser) -> None:
    keep(home, of_rival(system(LINEAR, 0.78, kind="linear")))
    one = browser("read")
    page = one.get(f"{PAGE}?{ASKED}&currency=chf&currency_per_usd=0.8").text
    part = page[page.index('id="worth"') : page.index("</section>", page.index('id="worth"'))]
    assert "CHF" in part
    assert "USD" not in part.replace('placeholder="USD"', "")
    assert f"/worth?{ASKED.replace('&', '&amp;')}&amp;currency=chf&amp;currency_per_usd=0.8" in part, (
        "the whole page is in the same currency"
    )
    assert "USD" in one.get(f"{PAGE}?{ASKED}").text, "without one it is the dollar"
    piece = one.get(f"{PAGE}/worth?{ASKED}&currency=CH", headers={"HX-Request": "true"})
    assert piece.status_code == 422
    assert "three capital letters" in piece.text


def test_worth_takes_what_the_evaluation_measured_where_answers_are_labels(home: Context, browser: Browser) -> None:
    evaluation = of_rival(system(LINEAR, 0.78, kind="linear"), tuned=0.97)
    nothing = Metric(value=0.0, low=0.0, high=0.0, unit="", higher_is_better=False)
    sure = LabelConfidence(
        system="tuned", num_labels=2, calibration_error=nothing, brier=nothing, bins=(),
        confidence=tuple(n / 100 for n in range(1, 101)), is_right=tuple(n > 3 for n in range(1, 101)),
    )  # fmt: skip
    keep(home, evaluation.model_copy(update={"label_confidence": (sure,)}))
    page = browser("read").get(f"{PAGE}?{ASKED}").text
    assert "does not measure which cases" not in page
    assert "Worth in 12 months" in page
    assert f"evaluation={ID}" in page


@pytest.mark.parametrize(
    ("query", "words"),
    [("answers_per_week=400", "no minutes for each"), (ASKED.replace("400", "many"), "a number from 0 on")],
)
def test_wrong_answers_are_an_error_beside_the_verdict(home: Context, browser: Browser, query: str, words: str) -> None:
    keep(home, of_rival(system(LINEAR, 0.78, kind="linear")))
    one = browser("read")
    page = one.get(f"{PAGE}?{query}")
    assert page.status_code == 200
    assert words in page.text
    assert "Use a linear classifier instead." in page.text
    assert one.get(f"{PAGE}/worth?{query}", headers={"HX-Request": "true"}).status_code == 422


def test_one_system_alone_is_to_be_compared(home: Context, browser: Browser) -> None:
    alone = judged(0.5, [], [], word="better").model_copy(update={"verdict": None})
    run_id = keep(home, alone)
    page = browser("read", "train").get(PAGE).text
    assert "A verdict needs at least two systems" in page
    assert f'href="/evaluations/new?model={run_id}"' in action_of(page)
    assert 'id="worth"' not in page
