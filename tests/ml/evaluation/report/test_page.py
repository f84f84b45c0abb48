from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from tests.report_html import checked, words
from tests.vacuous import nonempty

import luthier
from luthier.core.aliases import new_key
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.run import Fit, Remedy
from luthier.ml.charts.page import TEMPLATES, fold
from luthier.ml.evaluation.report import facts
from luthier.ml.evaluation.report.page import render_report
from luthier.ml.evaluation.verdict_view import verdict_view
from luthier.testing.records import make_plan

ALL_ZERO = {"value": 0.0, "low": 0.0, "high": 0.0}


def render(documents: Any) -> str:
    return render_report(documents)[0]


def states(documents: Any, record_of: Any, plan_of: Any, events_of: Any) -> dict[str, Any]:
    return {
        "judged": documents,
        "unjudged": documents.but(evaluation=None, plan=plan_of(held_out=False)),
        "waiting": documents.but(evaluation=None),
        "failed": documents.but(
            evaluation=None,
            record=record_of(status="failed", step=0, result=None, stopped_because="no room left"),
            events=(),
        ),
        "paused": documents.but(
            evaluation=None,
            record=record_of(status="paused", step=74, result=None, stopped_because="SIGTERM"),
            events=events_of(74, ended=False),
        ),
        "planned": documents.but(evaluation=None, record=record_of(status="planned", step=0, result=None), events=()),
        "running": documents.but(
            evaluation=None, record=record_of(status="running", step=9, result=None), events=events_of(9, ended=False)
        ),
        "no_validation": documents.but(plan=plan_of(validation=False)),
    }


STATES = ("judged", "unjudged", "waiting", "failed", "paused", "planned", "running", "no_validation")


@pytest.mark.parametrize("state", STATES)
def test_every_page_is_whole_and_refers_to_nothing_outside(
    state: str, documents: Any, record_of: Any, plan_of: Any, events_of: Any
) -> None:
    html = render(states(documents, record_of, plan_of, events_of)[state])
    found = checked(html)
    assert ("html", {"lang": "en"}) in found.tags
    assert all(nonempty("scope" in attributes for tag, attributes in found.tags if tag == "th"))
    assert len(html.encode()) < 1_500_000


def test_the_verdict_comes_first_with_its_support_and_caveats(documents: Any) -> None:
    text = words(render(documents))
    verdict = documents.evaluation.verdict
    places = [text.index(part) for part in (verdict.headline, *verdict.details, *verdict.caveats, "Training time")]
    assert places == sorted(places)


def test_the_figures_behind_the_verdict_stand_apart_from_the_other_metrics(documents: Any) -> None:
    html = render(documents)
    verdict = documents.evaluation.verdict
    opening = html[html.index('<div class="support">') : html.index("</section>")]
    large, small = re.findall(r"<p>(.*?)</p>", opening), re.findall(r'<p class="small">(.*?)</p>', opening)
    assert [html_of.replace("&lt;", "<") for html_of in large] == list(verdict.details[:2])
    assert small == list(verdict.details[2:])
    assert "By the other metrics" in opening
    assert "By the other metrics" not in render(documents.but(evaluation=None))


def test_a_metric_without_any_difference_has_no_chart_and_the_page_says_so(
    documents: Any, evaluation_of: Callable[..., Any]
) -> None:
    evaluation = evaluation_of(30)
    systems = tuple(
        s.model_copy(
            update={"metrics": s.metrics | {"exact_match": s.metrics["exact_match"].model_copy(update=ALL_ZERO)}}
        )
        for s in evaluation.systems
    )
    html = render(documents.but(evaluation=evaluation.model_copy(update={"systems": systems})))
    assert "No chart for exact match: all systems have the same figures." in words(html)
    assert "chart-metric-exact_match" not in html
    assert "chart-metric-rouge_l" in html
    assert "No chart for" not in words(render(documents))


def test_sections_come_in_the_order_a_reader_asks(documents: Any) -> None:
    html = render(documents)
    headings = re.findall(r"<h2 id=\"([a-z]+)\"", html)
    expected = ["systems", "differences", "samples", "trained", "curves", "warnings", "plan", "again"]
    assert headings == expected


def test_figures_intervals_differences_and_digests_are_there(documents: Any) -> None:
    text = words(render(documents)).replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "10 min 41 s", "840 tokens/s", "4.88 million", "2.64 GB", "43,200", "all steps done",
        "0.347", "[0.296, 0.398]", "+0.229", "[+0.183, +0.275]", "< 0.001", "about 780 rows would settle it",
        documents.plan.base_model.sha256, documents.record.result.adapter_sha256, documents.record.plan_hash,
        "held_out.jsonl", "learning_rate: 0.0005", "it learns its rows by heart", "luthier models pull",
        "transformers", "5.24.0",
    ):  # fmt: skip
        assert part in text, part


def test_every_value_of_the_plan_has_its_source_and_reason(documents: Any) -> None:
    text = words(render(documents))
    for row in nonempty(documents.plan.values()):
        assert new_key(row["name"]) in text
        assert row["why"] in text


def test_what_people_and_models_wrote_is_escaped_and_keeps_its_white_space(documents: Any) -> None:
    evil = "<script>alert('x')</script>\n\tindented   twice & <b>bold</b>"
    systems = tuple(
        system.model_copy(
            update={
                "name": f"{system.name} <i>",
                "samples": tuple(
                    s.model_copy(update={"prompt": evil, "reference": evil, "output": evil, "row_id": f"{s.row_id}<u>"})
                    for s in system.samples
                ),
            }
        )
        for system in documents.evaluation.systems
    )
    evaluation = documents.evaluation.model_copy(update={"systems": systems, "comparisons": ()})
    html = render(documents.but(evaluation=evaluation, example=((evil, False), (evil, True)), versions={"<b>": "<b>"}))
    found = checked(html)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in found.tags}
    assert evil in "".join(found.text)
    assert "alert(&#39;x&#39;)" in html


def test_the_masked_example_marks_what_is_learned(documents: Any) -> None:
    html = render(documents)
    learned = "Remove any common leading whitespace from every line in text.&lt;|im_end|&gt;\n"
    assert f"<mark>{learned}</mark>" in html
    assert "One training example" not in render(documents.but(example=()))


def test_without_held_out_rows_it_says_that_nothing_was_judged_and_how_to(documents: Any, plan_of: Any) -> None:
    text = words(render(documents.but(evaluation=None, plan=plan_of(held_out=False))))
    assert "it is not known whether it is better" in text
    assert "names no held-out rows" in text
    assert "luthier eval run-20261125-093000-1f2e3d --data held_out.jsonl --against smollm2-135m-instruct" in text
    assert "--few-shot-from '/data/python docs/train.jsonl'" in text


def test_failed_and_paused_runs_are_said_to_be_so(documents: Any, record_of: Any, plan_of: Any, events_of: Any) -> None:
    found = states(documents, record_of, plan_of, events_of)
    failed, paused = words(render(found["failed"])), words(render(found["paused"]))
    assert "This run failed at step 0 of 180." in failed
    assert "no room left" in failed
    assert "No step was finished" in failed
    assert "This run is paused at step 74 of 180." in paused
    assert "luthier train --resume run-20261125-093000-1f2e3d" in paused
    assert "at step 72, so far" in paused


def test_a_failed_run_that_was_judged_shows_both(documents: Any, record_of: Any) -> None:
    text = words(render(documents.but(record=record_of(status="failed"))))
    assert text.index("This run failed") < text.index(documents.evaluation.verdict.headline)


def test_leaks_drops_and_cuts_are_told(documents: Any, plan_of: Any) -> None:
    plan = plan_of(num_dropped=14, dropped_ids=tuple(f"train.jsonl:{i}" for i in range(14)), num_truncated=1)
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"num_leaked": 3})})
    text = words(render(documents.but(plan=plan)))
    assert "3 held-out rows are also in the training data" in text
    assert "14 dropped: train.jsonl:0" in text
    assert "train.jsonl:11 and 2 more" in text
    assert "1 truncated: (not named)" in text
    assert "none of which training has seen" not in text
    assert "none of which training has seen" in words(render(documents))


def test_a_warning_is_told_once_whether_it_came_as_event_or_in_the_result(documents: Any) -> None:
    message = next(e.message for e in documents.events if e.kind == "warning")
    result = documents.record.result.model_copy(update={"warnings": (message, "another thing")})
    record = documents.record.model_copy(update={"result": result})
    html = render(documents.but(record=record))
    assert html.count("it learns its rows by heart") == 1
    assert "another thing" in html
    assert "2 warnings" in html


def test_long_text_is_folded_and_endless_text_says_what_is_left_out(
    documents: Any, evaluation_of: Callable[..., Any]
) -> None:
    evaluation = evaluation_of(10)
    endless = evaluation.systems[2].samples[0].model_copy(update={"output": "word " * 100_000})
    tuned = evaluation.systems[2].model_copy(update={"samples": (endless, *evaluation.systems[2].samples[1:])})
    html = render(documents.but(evaluation=evaluation.model_copy(update={"systems": (*evaluation.systems[:2], tuned)})))
    assert "Show all 500,000 characters" in html
    assert "494,000 more characters are in report.json" in html
    assert len(html.encode()) < 1_500_000


def test_fold_never_hides_without_saying() -> None:
    short, long = fold("a\nb", 360), fold("x" * 5000, 360)
    assert not short.is_folded
    assert short.start == "a\nb"
    assert long.is_folded
    assert len(long.start) == 360
    assert long.num_left_out == 0
    assert not fold("x" * 400, 360).is_folded
    assert fold("\n" * 40, 360).is_folded


def test_the_page_stays_small_whatever_is_on_it(documents: Any, evaluation_of: Callable[..., Any]) -> None:
    evaluation = evaluation_of(30)
    huge = {"prompt": "字" * 50_000, "reference": "ß" * 50_000, "output": "字\n" * 50_000}
    systems = tuple(
        s.model_copy(update={"samples": tuple(x.model_copy(update=huge) for x in s.samples)})
        for s in evaluation.systems
    )
    example = tuple(("字" * 10, place % 2 == 0) for place in range(10_000))
    html = render(documents.but(evaluation=evaluation.model_copy(update={"systems": systems}), example=example))
    assert len(html.encode()) < 1_500_000
    assert "80,000 more characters are in report.json" in html


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa_on_light_and_dark() -> None:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part)) for part in css.split("@media screen")[:2]
    )
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for text in ("ink", "muted", "accent", "good", "bad", "open", "quiet", "tuned"):
            for ground in ("paper", "card"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for text in ("ink", "muted"):
            assert contrast(theme[text], theme["sunk"]) >= 4.5, text
        assert contrast(theme["ink"], theme["learned"]) >= 4.5
        for line in ("base", "tuned", "other-1", "other-2", "other-3"):
            assert contrast(theme[line], theme["paper"]) >= 3.0, line


def test_how_the_run_fitted_stands_below_the_curves_with_what_to_do(documents: Any) -> None:
    fit = Fit(
        kind="overfitted",
        seen="Validation loss rose <fast>.",
        best_step=126,
        last_step=180,
        remedies=(Remedy(text="Stop at step 126.", settings=("training.max_steps=126",)), Remedy(text="More rows.")),
    )
    assert documents.record.result is not None
    record = documents.record.model_copy(update={"result": documents.record.result.model_copy(update={"fit": fit})})
    text = words(render(documents.but(record=record)))
    assert "It memorised its rows Validation loss rose <fast>." in text
    assert "Stop at step 126. --set training.max_steps=126" in text
    assert "What to do in the next run" not in words(render(documents))


def test_the_first_screen_is_that_of_the_page_sentence_picture_action_and_samples(documents: Any) -> None:
    html = render(documents)
    view = verdict_view(documents.evaluation)
    assert view is not None
    assert view.recommendation is not None
    text = words(html)
    heading = html[html.index("<h1") : html.index("</h1>")]
    assert view.sentence in heading
    assert view.recommendation.title in heading
    assert view.recommendation.reason in text
    parts = ("<h1", 'class="verdict-reason"', "<svg", 'class="one-sample"', 'class="support"')
    places = [html.index(part) for part in parts]
    assert places == sorted(places)
    assert html.count('class="one-sample"') == 3
    assert view.picks.rule in text
    assert "the untuned model with 4 examples in its prompt 0.204" in view.sentence
    assert "luthier deploy run-20261125-093000-1f2e3d --as NAME" in text


def test_the_recipe_of_a_report_has_no_signature_of_an_address() -> None:
    data = DataRecipe(train="https://rows.example/train.jsonl?sig=secret", held_out="s3://bucket/t.csv")
    written = facts.recipe_yaml(make_plan().model_copy(update={"recipe": Recipe(base_model="tiny", data=data)}))
    assert "https://rows.example/train.jsonl\n" in written
    assert "secret" not in written


NUMBER_AND_NOUN = re.compile(
    r"\}\} (?:held-out |more |general )?"
    r"(?:answers|characters|days|examples|exchanges|labels|models|months|prompts|rounds|rows|runs|samples|sources|"
    r"steps|tasks|tokens|warnings)\b"
)
NEVER_ONE = {
    "model_comparison.html.j2": ("answers of at most {{ spec.max_new_tokens }} tokens",),
    "formats.html.j2": ("{{ table.num_rounds }} rounds", "{{ table.num_timed }} prompts"),
    "watch.html.j2": ("{{ days[1] }} days",),
}
"""Bounds and settings that are never 1."""


def test_every_number_of_a_report_has_its_noun_in_both_forms() -> None:
    wrong: list[str] = []
    left_over: list[str] = []
    for template in nonempty(sorted(Path(luthier.__file__).parent.rglob("*.j2"))):
        text = re.sub(r"<[^>]+>", "", template.read_text(encoding="utf-8"))
        known = NEVER_ONE.get(template.name, ())
        left_over += [one for one in known if one not in text]
        text = reduce(lambda rest, one: rest.replace(one, ""), known, text)
        wrong += [f"{template.name}: {found[0]}" for found in NUMBER_AND_NOUN.finditer(text)]
    assert wrong == [], 'write {{ num | counted("row") }}'
    assert left_over == [], "no exception is left over"


def test_one_row_one_answer_and_one_warning_are_singular(documents: Any, plan_of: Any) -> None:
    evaluation = documents.evaluation
    systems = tuple(one.model_copy(update={"num_cut_off": 1, "samples": one.samples[:1]}) for one in evaluation.systems)
    one = evaluation.model_copy(update={"num_rows": 1, "systems": systems})
    plan = plan_of()
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"num_same_prompt": 1})})
    result = documents.record.result.model_copy(update={"warnings": ()})
    record = documents.record.model_copy(update={"result": result})
    text = words(render(documents.but(evaluation=one, plan=plan, record=record, events=())))
    assert "All were evaluated on the same 1 held-out row of" in text
    assert "1 answer was cut off at the longest length allowed." in text
    assert "The only held-out row, by " in text
    assert "1 warning was raised in this run." in text
    alone = one.model_copy(update={"systems": systems[-1:], "comparisons": (), "verdict": None})
    assert "Measured on 1 held-out row, but without a verdict." in words(render(documents.but(evaluation=alone)))
