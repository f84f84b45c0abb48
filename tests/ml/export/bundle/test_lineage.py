"""The lineage says what came from what, by digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.ml.export.bundle.conftest import BASE_SHA256, make_facts

from luthier.core.ids import sha256_file


@pytest.fixture
def statement(whole_bundle: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((whole_bundle / "lineage.intoto.json").read_text(encoding="utf-8"))
    return document


def test_it_is_a_statement_with_slsa_provenance(statement: dict[str, Any]) -> None:
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}
    definition = statement["predicate"]["buildDefinition"]
    assert set(definition) == {"buildType", "externalParameters", "resolvedDependencies"}
    assert statement["predicate"]["runDetails"]["builder"]["version"]["luthier"] == "0.1.0"


def test_subjects_are_the_files(statement: dict[str, Any], whole_bundle: Path) -> None:
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    others = {"lineage.intoto.json", "bundle.json"}
    present = {path.relative_to(whole_bundle).as_posix() for path in whole_bundle.rglob("*") if path.is_file()}
    assert subjects.keys() == present - others
    assert all(sha256_file(whole_bundle / name) == digest for name, digest in subjects.items())


def test_from_rows_to_run_to_evaluation_to_export(statement: dict[str, Any], whole_bundle: Path) -> None:
    definition = statement["predicate"]["buildDefinition"]
    found = {one["annotations"]["role"]: one for one in definition["resolvedDependencies"]}
    assert found["base model"]["digest"] == {"luthierWeightsV1": BASE_SHA256}
    assert found["base model"]["uri"] == "pkg:huggingface/org/tiny@abc123"
    assert found["training rows"]["digest"] == {"sha256": "2" * 64}
    assert found["trained weights"]["digest"]["sha256"]
    facts = make_facts()
    assert facts.run is not None
    asked = definition["externalParameters"]
    assert (asked["format"], asked["precision"], asked["planHash"]) == ("gguf", "q8_0", facts.run.plan_hash)
    assert asked["plan"] == json.loads((whole_bundle / "plan.json").read_text(encoding="utf-8"))
    byproducts = {one["annotations"]["role"]: one for one in statement["predicate"]["runDetails"]["byproducts"]}
    assert set(byproducts) == {"run", "evaluation", "proof against the source"}
    for one in byproducts.values():
        assert one["digest"]["sha256"] == sha256_file(whole_bundle / one["annotations"]["file"])
