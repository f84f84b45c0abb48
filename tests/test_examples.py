"""The worked cases that we ship run, and say what their pages say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.errors import RequestError
from luthier.features.datasets.data_files import AuditOptions, SplitOptions, audit, split
from luthier.features.datasets.documents import ingest, read_corpus
from luthier.features.datasets.previews import preview
from luthier.features.recipes.service import load_recipe
from luthier.features.roi.service import compute_roi, load_case
from luthier.features.training.service import train
from luthier.ml.inference.models import catalog
from luthier.platform.home.context import Context
from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.open(tmp_path / "home")


def script(place: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / place))


@pytest.mark.parametrize("name", ["shop", "law_firm"])
def test_a_worked_case_has_an_answer_that_its_page_repeats(context: Context, tmp_path: Path, name: str) -> None:
    found = compute_roi(context, EXAMPLES / name / "case.yaml", html=tmp_path / "worth.html")
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    word = {"yes": "Yes:", "no": "No:", "open": "Not settled:"}[found.result.answer]
    assert f"\n    {word}" in page
    assert {way.name for way in found.result.alternatives} == {"better_prompt", "few_shot", "bigger_model"}
    assert [way.name for way in found.result.not_priced] == ["without_model"]  # it has to be measured first
    assert len(found.result.tornado) > 10
    assert found.report is not None


@pytest.mark.parametrize("name", ["shop", "law_firm"])
def test_a_recipe_of_a_worked_case_loads(name: str) -> None:
    assert load_recipe(EXAMPLES / name / "recipe.yaml").base_model in catalog.entries()


@pytest.mark.parametrize("name", ["shop", "law_firm"])
def test_a_measured_case_needs_a_verdict(context: Context, name: str) -> None:
    assert load_case(EXAMPLES / name / "case_measured.yaml").tuned.gain is None
    with pytest.raises(RequestError, match="no gain of the tuned model is given"):
        compute_roi(context, EXAMPLES / name / "case_measured.yaml")


def test_the_shops_estimate_stands_beside_the_guides_figures() -> None:
    estimate = script("shop/estimate.py")
    quote = estimate["quote"]()
    lines = list(estimate["report"](quote))
    # 27 x 32 layers x (4 x (4,096 + 4,096) + 3 x (4,096 + 11,008)): 1.00% of 6,738,415,616
    assert any("67,461,120" in line and "1.00%" in line for line in lines)
    hours, parts = quote.prediction.hours, {line.name: line for line in estimate["bill"](quote)}
    assert hours.high < estimate["GUIDE_HOURS"]
    assert 96 * quote.usd_per_hour.high < estimate["GUIDE_USD"] / 10
    assert parts["one training"].typical == pytest.approx(4 * hours.value * quote.usd_per_hour.value, rel=1e-6)
    assert parts["preparing data"].typical == 60 * 75
    assert sum(line.low for line in parts.values()) < estimate["GUIDE_USD"] < sum(line.high for line in parts.values())
    case = load_case(EXAMPLES / "shop" / "case.yaml")
    assert case.training.hours is not None
    assert hours.low <= case.training.hours.typical <= hours.high


def test_the_shops_rows_repeat_and_are_as_long_as_the_estimate_says(tmp_path: Path) -> None:
    made = script("shop/make_data.py")
    made["write_rows"](tmp_path / "a.jsonl")
    made["write_rows"](tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 600
    things = {thing for shelf in made["SHELVES"].values() for thing in shelf}
    assert {row["completion"] for row in rows} == things
    followed = sum(made["GOES_WITH"][_last_bought(row["prompt"])] == row["completion"] for row in rows)
    assert 0.65 < followed / len(rows) < 0.85  # 0.7, and a chance hit now and then


def _last_bought(prompt: str) -> str:
    return prompt.partition("\nReviews:")[0].splitlines()[-1].partition(": ")[2]


def test_the_law_firms_documents_go_all_the_way_to_a_preview(
    context: Context, tmp_path: Path, tiny_model: Path
) -> None:
    made = script("law_firm/make_documents.py")
    made["write_documents"](tmp_path)
    documents = sorted((tmp_path / "documents").rglob("*.md"))
    assert len(documents) == 8 + 24 + 48
    assert all(made["MARK"] in path.read_text(encoding="utf-8") for path in documents)

    done = ingest(context, [tmp_path / "documents"], tmp_path / "passages.jsonl", model=str(tiny_model), num_workers=1)
    assert done.ingestion.num_rows >= len(documents)
    assert done.ingestion.failed == ()

    drafts = tmp_path / "drafts.jsonl"
    checks = ("schema", "exact_duplicate", "near_duplicate", "personal_data", "secret", "empty_completion")
    found = audit(context, drafts, AuditOptions(model=str(tiny_model), only=checks)).audit
    assert found.num_rows == 144
    assert found.worst() != "error"

    options = SplitOptions(tmp_path / "drafts-split", held_out=0.2, group_by="matter", stratify_by="task")
    split(context, drafts, options)
    sides = {
        side: [json.loads(line) for line in (tmp_path / "drafts-split" / f"{side}.jsonl").read_text().splitlines()]
        for side in ("train", "validation", "held_out")
    }
    matters = [{row["matter"] for row in rows} for rows in sides.values()]
    assert len(set.union(*matters)) == sum(len(side) for side in matters) == 48
    assert sum(len(rows) for rows in sides.values()) == 144

    (row,) = preview(context, tmp_path / "drafts-split" / "train.jsonl", str(tiny_model), num_rows=1).rows
    learned = "".join(span.text for span in row.spans if span.learned)
    assert sides["train"][0]["completion"] in learned
    assert sides["train"][0]["prompt"] not in learned


def test_the_cited_law_holds_all_that_its_rows_cite_and_no_row_is_on_both_sides() -> None:
    from luthier.core.results.suite import CitationsTask, Suite
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.split.split import leaked_ids
    from luthier.ml.evaluation.grounding.corpus import Corpus, findings

    folder = EXAMPLES / "law_firm"
    suite = Suite.model_validate(yaml.safe_load((folder / "citations.yaml").read_text(encoding="utf-8")))
    (task,) = suite.tasks
    assert isinstance(task, CitationsTask)
    documents = read_corpus(folder / task.corpus)
    assert len(documents) == 28
    assert all("do not exist" in text for text in documents.values())
    corpus = Corpus(documents, forms=task.forms, patterns=task.patterns)
    train, held_out = (load_file(folder / "cited" / f"{side}.jsonl").examples for side in ("train", "held_out"))
    assert (len(train), len(held_out)) == (40, 25)
    for example in nonempty((*train, *held_out)):
        assert [one.status for one in findings(example.reference or "", corpus)] == ["known", "known"]
    leaked = leaked_ids(train, held_out)
    assert not leaked.exact
    assert not leaked.same_prompt


def test_the_case_of_the_reference_page_has_an_answer(context: Context, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "roi.md").read_text(encoding="utf-8")
    (tmp_path / "case.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    assert compute_roi(context, tmp_path / "case.yaml").result.answer in ("yes", "no", "open")


def test_every_key_of_a_case_is_on_the_reference_page() -> None:
    from luthier.core.results.roi import Case
    from luthier.features.recipes.file import known_keys

    page = (ROOT / "docs" / "roi.md").read_text(encoding="utf-8")
    for key in nonempty(known_keys(Case)):
        name = key.rpartition(".")[2]
        assert name in ("low", "typical", "high") or f"`{name}`" in page, f"docs/roi.md does not name {key}"


def test_the_rows_of_the_heads_repeat_and_held_out_messages_are_said_in_other_ways() -> None:
    made = script("heads/make_rows.py")
    rows = made["make"]()
    assert rows == made["make"]() != made["make"](seed=1)
    prompts = [{row["prompt"] for row in rows[f"classify_{side}"]} for side in ("train", "validation", "held_out")]
    assert len(set.union(*prompts)) == sum(map(len, prompts)) == sum(made["NUM_ROWS"].values())
    for page, known, new in nonempty(made["PAGES"].values()):
        assert len(known) == made["NUM_KNOWN"]
        assert "{}" in page
        for way in nonempty((*known, *new)):
            texts = {way.format(thing) for thing in made["THINGS"]}
            assert not texts & (prompts[2] if way in known else prompts[0] | prompts[1]), way
    for row in nonempty(rows["rank_held_out"]):
        assert row["chosen"] != row["rejected"]


@pytest.mark.parametrize("kind", ["classify", "rank", "embed"])
def test_an_example_of_a_head_trains_and_is_judged(
    context: Context, tmp_path: Path, tiny_model: Path, kind: str
) -> None:
    script("heads/make_rows.py")["write_rows"](tmp_path / "work")
    recipe = tmp_path / f"{kind}.yaml"
    recipe.write_text((EXAMPLES / "heads" / recipe.name).read_text(encoding="utf-8"), encoding="utf-8")
    assert load_recipe(recipe).base_model in catalog.entries()
    small = [f"base_model={tiny_model}", "training.max_steps=2", "training.num_threads=1", "method.rank=2"]
    small += ["objective.dimensions=[16]"] if kind == "embed" else []  # its states are 32 wide
    outcome = train(context, load_recipe(recipe, small), base_dir=tmp_path)
    assert outcome.plan.objective.task_head is not None
    assert outcome.plan.objective.task_head.kind == kind
    assert outcome.evaluation is not None
    assert outcome.evaluation.num_rows == 32  # of a search: queries
    assert f"{kind}.yaml" in (EXAMPLES / "heads" / "README.md").read_text(encoding="utf-8")
