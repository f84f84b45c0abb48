"""Bundles of a real run: what the documents say of it, and what they say where nothing is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.assessed import make_safety_result
from tests.fixtures.service import chat_row, write_rows
from tests.hub_server import COMMIT, Hub, read_files, serving

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.plan import Plan
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.records.export import Export, ExportFormat, ExportSource
from luthier.core.run import RunRecord
from luthier.features.exports.bundles import facts_for, push, run_facts, verify_bundle
from luthier.features.models.service import ModelView, pull_model
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.charts import visible
from luthier.ml.export.bundle import add_bundle_files, verify
from luthier.ml.export.bundle.provenance import read_origin
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record, make_result

DOCUMENTS = ("README.md", "plan.json", "evaluation.json", "sbom.cdx.json", "lineage.intoto.json", "bundle.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Context, RunRecord, Plan]]:
    """A home in which one run has been trained and judged; no test changes it."""
    place = tmp_path_factory.mktemp("trained")
    write_rows(place / "train.jsonl", [chat_row(n) for n in range(16)])
    write_rows(place / "test.jsonl", [chat_row(n) for n in range(200, 204)])
    recipe = {
        "base_model": str(tiny_model),
        "data": {"train": str(place / "train.jsonl"), "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 4},
        "training": {"epochs": 1, "global_batch_size": 8, "precision": "float32", "num_threads": 1},
        "evaluation": {"metrics": ["perplexity", "exact_match"], "few_shot": 0, "max_new_tokens": 4},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with Context.open(place / "home") as context:
        outcome = train(context, load_recipe(place / "recipe.yaml"), base_dir=place)
        yield context, outcome.record, outcome.plan


def make_export(source: ExportSource, folder: Path, format: ExportFormat) -> Export:
    return Export(
        source=source,
        format=format,
        precision="float32",
        folder=str(folder),
        num_bytes=0,
        files={},
        parity=None,
        seconds=1.0,
    )


def adapter_export(record: RunRecord, plan: Plan, folder: Path) -> Export:
    """What an export of the run's adapter is before its bundle, written into the folder."""
    assert record.result is not None
    assert record.result.adapter_path is not None
    shutil.copytree(record.result.adapter_path, folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = Path(plan.base_model.name).name  # as the exporter names it
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    source = ExportSource(
        name=record.run_id,
        run_id=record.run_id,
        base_name=plan.base_model.name,
        base_path=plan.base_model.path,
        base_sha256=plan.base_model.sha256,
        adapter_path=record.result.adapter_path,
        adapter_sha256=record.result.adapter_sha256,
        method=plan.method.name,
        precision=plan.training.precision,
    )
    return make_export(source, folder, "adapter")


def base_export(view: ModelView, folder: Path) -> Export:
    """What an export of a base model is that no run has changed."""
    shutil.copytree(str(view.path), folder)
    source = ExportSource(
        name=view.name,
        run_id=None,
        base_name=view.name,
        base_path=str(view.path),
        base_sha256=str(view.sha256),
        precision="float32",
    )
    return make_export(source, folder, "merged")


@pytest.fixture
def made(trained: tuple[Context, RunRecord, Plan], tmp_path: Path) -> Path:
    """The bundle of the run's adapter."""
    context, record, plan = trained
    folder = tmp_path / "bundle"
    export = adapter_export(record, plan, folder)
    add_bundle_files(folder, export, facts_for(context, export))
    return folder


def test_a_run_as_its_bundle_tells_it(trained: tuple[Context, RunRecord, Plan], made: Path) -> None:
    context, record, plan = trained
    assert record.result is not None
    assert verify(made).is_whole
    card = (made / "README.md").read_text(encoding="utf-8")
    assert f"| train | `train.jsonl` | `{plan.data.train.sha256}` | chat | 16 | 16 |" in card
    assert "No held-out row is in the training rows" in card
    assert f"the plan's hash is `{plan.hash}`" in card
    assert record.evaluation_id is not None
    verdict = context.evaluations.get(record.evaluation_id).verdict
    assert verdict is not None
    # A time below a hundredth of a second has a sign that Markdown would read as HTML.
    assert visible.text(verdict.headline, 1_000) in card
    assert f"{record.result.num_trainable_parameters:,} (" in card
    assert "no meter was read" in card
    assert f"    luthier export {record.run_id} --to adapter --quantise float32 -o DIR" in card
    lineage = json.loads((made / "lineage.intoto.json").read_text(encoding="utf-8"))
    found = {
        one["annotations"]["role"]: one["digest"]
        for one in lineage["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert found == {
        "base model": {"luthierWeightsV1": plan.base_model.sha256},
        "training rows": {"sha256": plan.data.train.sha256},
        "held-out rows": {"sha256": plan.data.held_out.sha256 if plan.data.held_out else ""},
        "trained weights": {"sha256": record.result.adapter_sha256},
    }


@pytest.mark.parametrize("kept", [("lineage.intoto.json",), ("sbom.cdx.json",), ("evaluation.json",), ()])
def test_each_document_of_a_bundle_leads_back_to_its_run(
    trained: tuple[Context, RunRecord, Plan], made: Path, kept: tuple[str, ...]
) -> None:
    _, record, _ = trained
    assert record.result is not None
    assert read_origin(made) == ((record.run_id,), record.result.adapter_sha256)
    for name in DOCUMENTS:
        if name not in kept:
            (made / name).unlink(missing_ok=True)
    digest = record.result.adapter_sha256 if "lineage.intoto.json" in kept else None
    assert read_origin(made) == ((record.run_id,) if kept else (), digest)


def test_no_folder_of_this_machine_and_no_row_stands_in_it(
    trained: tuple[Context, RunRecord, Plan], made: Path, tiny_model: Path
) -> None:
    context, _, plan = trained
    assert str(context.home.parent) in plan.model_dump_json()  # so that there is something to leave out
    for name in DOCUMENTS:
        text = (made / name).read_text(encoding="utf-8")
        for secret in (str(context.home.parent), str(tiny_model.parent), "What comes after 200?"):
            assert secret not in text, name
    kept = Plan.model_validate_json((made / "plan.json").read_bytes())
    assert (kept.hash, kept.recipe.data.train, kept.base_model.path) == (plan.hash, "train.jsonl", "tiny")


def test_what_was_exported_before_the_end_has_no_verdict(
    trained: tuple[Context, RunRecord, Plan], tmp_path: Path
) -> None:
    context, record, plan = trained
    export = adapter_export(record, plan, tmp_path / "a")
    snapshot = export.source.model_copy(update={"adapter_sha256": "7" * 64})
    facts = facts_for(context, export.model_copy(update={"source": snapshot}))
    assert facts.evaluation is None
    assert facts.run is not None


def test_the_card_tells_of_the_newest_safety_check(trained: tuple[Context, RunRecord, Plan], tmp_path: Path) -> None:
    context, record, plan = trained
    export = adapter_export(record, plan, tmp_path / "a")
    assert facts_for(context, export).safety == ()
    found = make_safety_result().model_copy(update={"run_id": record.run_id})
    context.assessments.save(
        "safety", found.result_id, found, project_id="default", subject=record.run_id, run_id=record.run_id
    )
    assert facts_for(context, export).safety[: 1 + len(found.concerns)] == (found.headline, *found.concerns)
    add_bundle_files(tmp_path / "a", export, facts_for(context, export))
    assert "Not measured" not in (tmp_path / "a" / "README.md").read_text(encoding="utf-8").split("## Safety")[1][:200]


def test_a_base_model_without_a_run(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export = base_export(pull_model(context, str(tiny_model)), folder)
    facts = facts_for(context, export)
    assert (facts.run, facts.evaluation, facts.title, facts.base.hub) == (None, None, "tiny", None)
    add_bundle_files(folder, export, facts)
    card = (folder / "README.md").read_text(encoding="utf-8")
    no_run, licence = "not tuned by a run", "licence of the base"
    for expected in (no_run, "None: it was not evaluated", "It was not: the weights", licence):
        assert expected in card
    assert verify_bundle(context, folder, base=str(tiny_model)).is_whole
    with pytest.raises(NotFoundError, match="is not on this machine"):
        verify_bundle(context, folder, base="smollm2-135m-instruct")


def test_a_base_model_from_a_hub(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Hub(read_files(tiny_model) | {"LICENSE": b"CC0\n"})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        view = pull_model(context, "hub:org/tiny@main")
    facts = facts_for(context, base_export(view, tmp_path / "bundle"))
    assert (facts.base.name, facts.base.hub, facts.base.revision) == ("hub:org/tiny@main", "org/tiny", COMMIT)
    assert (facts.base.licence, facts.base.licence_texts) == ("cc0-1.0", {"LICENSE": "CC0\n"})
    assert facts.command == "luthier export hub:org/tiny@main --to merged --quantise float32 -o DIR"


def test_versions_and_licences_of_packages(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    facts = facts_for(context, base_export(pull_model(context, str(tiny_model)), tmp_path / "a"))
    found = {package.name: package for package in facts.packages}
    assert {"python", "luthier", "torch", "transformers", "peft"} <= found.keys()
    assert found["luthier"].licence == "Apache-2.0"
    assert all(package.version for package in found.values())


def test_a_run_that_has_not_ended(context: Context, trained: tuple[Context, RunRecord, Plan], tmp_path: Path) -> None:
    _, record, plan = trained
    export = adapter_export(record, plan, tmp_path / "a")
    unfinished = make_record()
    context.runs.create(unfinished, make_plan())
    source = export.source.model_copy(update={"run_id": unfinished.run_id})
    with pytest.raises(RequestError, match="has no result yet"):
        facts_for(context, export.model_copy(update={"source": source}))
    source = export.source.model_copy(update={"run_id": "run-20260101-000000-000000"})
    with pytest.raises(NotFoundError):
        facts_for(context, export.model_copy(update={"source": source}))


def test_only_whole_bundles_are_pushed(context: Context, made: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a URL"):
        push(context, made, str(tmp_path / "target"))
    pushed = push(context, made, f"file://{tmp_path / 'target'}")
    assert verify(tmp_path / "target").bundle_sha256 == pushed.bundle_sha256
    (made / "README.md").chmod(0o644)
    (made / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match=r"not a complete bundle: README.md has 4 bytes"):
        push(context, made, f"file://{tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()


def test_a_bundle_has_no_signature_of_an_address() -> None:
    data = DataRecipe(train="https://rows.example/train.jsonl?X-Amz-Signature=secret", held_out="s3://bucket/t.csv")
    plan = make_plan().model_copy(update={"recipe": Recipe(base_model="tiny", data=data)})
    record = make_record(status="succeeded").model_copy(update={"result": make_result()})
    facts = run_facts(record, plan)
    assert facts.plan.recipe.data.train == "https://rows.example/train.jsonl"
    assert "secret" not in facts.plan.model_dump_json()
