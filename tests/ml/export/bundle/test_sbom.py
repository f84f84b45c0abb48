"""The parts list holds against the schema of CycloneDX 1.6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.ml.export.bundle.conftest import make_export, make_facts, with_objective

from luthier.core.plan import ObjectivePlan
from luthier.core.records.export import Export
from luthier.core.task_head import TaskHeadKind
from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.bundle.manifest import BundleFile, Manifest
from luthier.ml.export.bundle.provenance import sbom

validation = pytest.importorskip("cyclonedx.validation.json", reason="needs cyclonedx-python-lib[json-validation]")
MANIFEST = Manifest(files=(BundleFile(path="model.gguf", sha256="0" * 64, num_bytes=1),))


def faults(document: dict[str, Any]) -> Any:
    from cyclonedx.schema import SchemaVersion

    return validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))


@pytest.mark.parametrize(
    "facts",
    [
        make_facts(),
        make_facts(run=False),
        make_facts(licence=None),
        make_facts(licence="Gemma terms of use"),
        make_facts(licence="A licence of my own, version 2"),
        make_facts(licence="LGPL-2.1-or-later"),
    ],
)
def test_the_schema_holds(facts: BundleFacts) -> None:
    export: Export = make_export(run_id=facts.run.run_id if facts.run else None)
    assert faults(sbom(export, facts, MANIFEST)) is None


def test_the_validator_finds_faults() -> None:
    document = sbom(make_export(), make_facts(), MANIFEST)
    document["components"][0]["type"] = "no such type"
    assert faults(document) is not None


@pytest.mark.parametrize(
    ("kind", "task", "output"),
    [
        (None, "text generation", "text"),
        ("classify", "classification", "labels with probabilities"),
        ("regress", "regression", "number"),
        ("rank", "ranking", "number"),
        ("embed", "embedding", "vector of numbers"),
    ],
)
def test_a_model_with_a_task_head_is_listed_with_what_it_gives(
    kind: TaskHeadKind | None, task: str, output: str
) -> None:
    export = make_export()
    source = export.source.model_copy(update={"task_head": kind})
    document = sbom(export.model_copy(update={"source": source}), make_facts(), MANIFEST)
    assert faults(document) is None
    parameters = document["metadata"]["component"]["modelCard"]["modelParameters"]
    assert (parameters["task"], parameters["outputs"]) == (task, [{"format": output}])


@pytest.mark.parametrize(
    ("objective", "approach"),
    [
        ("sft", {"type": "supervised"}),
        ("pretraining", {"type": "self-supervised"}),
        ("grpo", {"type": "reinforcement-learning"}),
        ("of_a_package_that_is_gone", None),
    ],
)
def test_how_it_learned_is_what_its_objective_declares(objective: str, approach: dict[str, str] | None) -> None:
    facts = with_objective(make_facts(), ObjectivePlan.model_construct(name=objective))
    document = sbom(make_export(), facts, MANIFEST)
    assert faults(document) is None
    assert document["metadata"]["component"]["modelCard"]["modelParameters"].get("approach") == approach


def test_model_base_rows_and_packages(whole_bundle: Path) -> None:
    document = json.loads((whole_bundle / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert faults(document) is None
    model = document["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", make_facts().title)
    assert {part["name"] for part in model["components"]} >= {"model.gguf", "adapters/a.bin"}
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "data-train"}]
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["confidenceInterval"] == {"lowerBound": "0.25", "upperBound": "0.75"}
    assert "No safety evaluation was run." in card["considerations"]["technicalLimitations"]
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert parts["base-model"]["purl"] == "pkg:huggingface/org/tiny@abc123"
    assert parts["base-model"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["data-train"]["hashes"] == [{"alg": "SHA-256", "content": "2" * 64}]
    torch = parts["pkg:pypi/torch@2.13.0%2Bcpu"]
    assert torch["licenses"] == [{"expression": "BSD-3-Clause AND MIT"}]
    assert parts["python"]["type"] == "platform"
    assert set(document["dependencies"][0]["dependsOn"]) == set(parts)
