"""The card: what stands in it comes from facts, and text of unknown origin stays text."""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.ml.export.bundle.conftest import make_export, make_facts, make_parity, with_objective

from luthier.core.plan import ObjectivePlan
from luthier.core.records.export import Export
from luthier.core.task_head import TaskHead, TaskHeadKind
from luthier.ml.export.bundle.card import card_text
from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.bundle.front_matter import front_matter
from luthier.ml.export.bundle.manifest import BundleFile, Manifest

MANIFEST = Manifest(files=(BundleFile(path="model.gguf", sha256="0" * 64, num_bytes=1_500_000),))
HTML = MarkdownIt("gfm-like", {"html": True, "linkify": False})


MARKUP = [
    "<script>x</script>",
    "](javascript:x)",
    "# a",
    "|b|",
    "`c`",
    "---\na: b",
    "**",
    "- x",
    "&amp;",
    "1. y",
    "***",
]


def body(export: Export, facts: BundleFacts) -> str:
    return card_text(export, facts, MANIFEST).split("\n---\n", 1)[1]


def test_the_hub_reads_the_front_matter() -> None:
    card = ModelCard(card_text(make_export(), make_facts(), MANIFEST))
    data = card.data
    assert isinstance(data, ModelCardData)
    assert data.base_model == "org/tiny"
    assert (data.library_name, data.license, data.pipeline_tag) == ("gguf", "apache-2.0", "text-generation")
    assert data.tags == ["luthier", "gguf", "lora", "q8_0"]
    assert data.eval_results is not None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("exact_match", 0.5, "t.jsonl")
    assert result.metric_name == "exact match before export, 95% interval 0.25 to 0.75"


@pytest.mark.parametrize(
    ("kind", "task"),
    [(None, "text-generation"), ("classify", "text-classification"), ("embed", "sentence-similarity")],
)
def test_a_result_is_one_of_the_task_of_the_model(kind: str | None, task: str) -> None:
    export = make_export()
    source = export.source.model_copy(update={"task_head": kind})
    front = front_matter(export.model_copy(update={"source": source}), make_facts())
    assert front["pipeline_tag"] == task
    assert [one["task"]["type"] for one in front["model-index"][0]["results"]] == [task]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Gemma terms of use", {"license": "gemma"}),
        ("MIT", {"license": "mit"}),
        ("My Own Licence 2.0", {"license": "other", "license_name": "my-own-licence-2.0"}),
        ("not stated", {}),
        (None, {}),
    ],
)
def test_licences_as_the_hub_names_them(licence: str | None, expected: dict[str, str]) -> None:
    front = yaml.safe_load(card_text(make_export(), make_facts(licence=licence), MANIFEST).split("---\n")[1])
    assert {name: value for name, value in front.items() if name.startswith("license")} == expected


def test_what_it_was_trained_on_and_how() -> None:
    text = body(make_export(parity=make_parity()), make_facts())
    facts = make_facts()
    assert facts.run is not None
    for expected in (
        f"| train | `rows.jsonl` | `{'2' * 64}` | chat | 40 | 40 | 1,000 | 400 |",
        f"the plan's hash is `{facts.run.plan_hash}`",
        "| Loss mask | 1 on all that the chat template writes for an assistant's turn",
        "| Method | lora; rank 8, alpha 16, dropout 0.1; on q\\_proj |",
        "**Cannot tell.**",
        "| tuned | 0.50 [0.25, 0.75] |",
        "**The proof holds.**",
        "| Loss of quality | +0.0011 [−0.0004, +0.0026] nats a token |",
        "| Largest difference of a log-probability | 0.031 nats, no bound in this format |",
        "Not measured: this model was not tested with prompts for harmful",
        "- Energy: 0.008 [0.004, 0.016] kWh",
        "- Half of the tensors of /home/somebody/out/model.gguf fell back to another type.",
        "- few rows",
        "says that the weights were changed (section 4)",
        "    luthier export",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("objective", "shown"),
    [
        (ObjectivePlan(name="sft"), "SFT: supervised fine-tuning on the answers"),
        (
            ObjectivePlan(name="dpo", beta=0.1),
            "DPO: direct preference optimisation, against the model at the start, beta 0.1",
        ),
        (ObjectivePlan(name="embed"), "Embeddings: vectors of texts: those of a query and its document close"),
        (ObjectivePlan.model_construct(name="of_a_package_that_is_gone"), r"of\_a\_package\_that\_is\_gone"),
    ],
)
def test_the_objective_is_called_as_it_declares(objective: ObjectivePlan, shown: str) -> None:
    assert f"| Objective | {shown}" in body(make_export(), with_objective(make_facts(), objective))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("classify", "classes with probabilities"),
        ("regress", "numbers"),
        ("rank", "the relevance of documents to a query"),
        ("embed", "vectors of texts"),
    ],
)
def test_a_model_with_a_task_head_has_learned_no_text(kind: TaskHeadKind, given: str) -> None:
    head = TaskHead(kind=kind, width=8)
    text = body(make_export(), with_objective(make_facts(), ObjectivePlan(name=kind, task_head=head)))
    assert f"| Loss mask | none: no text is learned; the model gives {given} |" in text


def test_what_is_not_known_is_said() -> None:
    text = body(make_export(run_id=None), make_facts(run=False, licence=None))
    for expected in (
        "not tuned by a run",
        "Nothing was trained here.",
        "None: it was not evaluated on held-out rows.",
        "Not proved: the export was not compared with its source.",
        "Not measured: this model was not tested with prompts for harmful",
        "The licence of the base model is not stated",
    ):
        assert expected in text, expected
    assert "Tuning can weaken" not in text


def test_a_failed_proof_and_safety_results() -> None:
    facts = make_facts().model_copy(update={"safety": ("It refused 98 of 100 harmful asks.",)})
    text = body(make_export(parity=make_parity(passed=False)), facts)
    assert "**The proof failed.**" in text
    assert "- the loss of quality is significant" in text
    assert "- It refused 98 of 100 harmful asks." in text
    assert "was not tested" not in text


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40).filter(str.strip) | st.sampled_from(MARKUP))
def test_no_text_of_others_becomes_markup(name: str) -> None:
    facts = make_facts(title=name, licence=name)
    evaluation = facts.evaluation
    assert evaluation is not None
    assert evaluation.verdict is not None
    verdict = evaluation.verdict.model_copy(update={"headline": name, "caveats": (name,), "details": (name,)})
    systems = tuple(one.model_copy(update={"name": name}) for one in evaluation.systems)
    run = facts.run
    assert run is not None
    dataset = run.datasets[0].model_copy(update={"name": name})
    facts = facts.model_copy(
        update={
            "base": facts.base.model_copy(update={"name": name, "licence": name, "architecture": name}),
            "evaluation": evaluation.model_copy(update={"verdict": verdict, "systems": systems, "held_out_file": name}),
            "run": run.model_copy(update={"datasets": (dataset,)}),
            "safety": (name,),
        }
    )
    export = make_export(parity=make_parity()).model_copy(update={"warnings": (name,)})
    plain = re.findall(r"<[a-z0-9]+", HTML.render(body(make_export(parity=make_parity()), make_facts())))
    text = card_text(export, facts, MANIFEST)
    yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    found = re.findall(r"<[a-z0-9]+", HTML.render(text.split("\n---\n", 1)[1]))
    assert set(found) <= {*plain, "<code", "<strong"}
    assert found.count("<h2") == plain.count("<h2")
    assert found.count("<h1") <= 1
    assert found.count("<table") == plain.count("<table")
