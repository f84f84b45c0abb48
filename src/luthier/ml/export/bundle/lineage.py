"""Where a bundle comes from: an in-toto Statement (v1) with a SLSA provenance (v1) as its predicate.

subject                 every file of the bundle that was there before this document
resolvedDependencies    base model, rows of each split, and the weights that the run has made
externalParameters      what was asked for: the format, and the plan of the run
byproducts              the run and its evaluation, the facts between the rows and the export
"""

from __future__ import annotations

from typing import Any, Final

from luthier.core.records.export import Export
from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts
from luthier.ml.export.bundle.manifest import EVALUATION, GGUF_PARITY, PARITY, PLAN, Manifest

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:luthier:export:v1"
BUILDER_ID: Final = "urn:luthier:export"
WEIGHTS_DIGEST: Final = "luthierWeightsV1"
"""How a base model is named: SHA-256 of the canonical JSON {name of a weight file: its SHA-256}."""
BASE_ROLE, TRAINED_ROLE = "base model", "trained weights"
_ROLES: Final = {
    "train": "training rows",
    "validation": "validation rows",
    "held_out": "held-out rows",
    "replay": "replayed rows",
    "replay_held_out": "held-out general rows",
}


def lineage(export: Export, facts: BundleFacts, manifest: Manifest) -> dict[str, Any]:
    """The in-toto statement.

    Args:
        export: what was exported.
        facts: where it comes from.
        manifest: of the files that the statement is about.

    Returns:
        The document, ready for JSON.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in manifest.files],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _asked(export, facts),
                "resolvedDependencies": _dependencies(export, facts),
            },
            "runDetails": _details(export, facts, manifest),
        },
    }


def base_uri(base: BaseFacts) -> str | None:
    """A package URL of the base model (purl-spec, type huggingface); None where it has no public name."""
    if base.hub is None:
        return None
    return f"pkg:huggingface/{base.hub}" + (f"@{base.revision}" if base.revision else "")


def _asked(export: Export, facts: BundleFacts) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "command": facts.command,
        "source": facts.title,
        "format": export.format,
        "precision": export.precision,
    }
    if facts.run is not None:
        asked |= {"plan": facts.run.plan.model_dump(mode="json"), "planHash": facts.run.plan_hash}
    return asked


def _dependencies(export: Export, facts: BundleFacts) -> list[dict[str, Any]]:
    base: dict[str, Any] = {"name": facts.base.name, "digest": {WEIGHTS_DIGEST: facts.base.sha256}}
    if (uri := base_uri(facts.base)) is not None:
        base["uri"] = uri
    base["annotations"] = {"role": BASE_ROLE, "licence": facts.base.licence or "not stated"}
    found = [base]
    for dataset in facts.run.datasets if facts.run is not None else ():
        found.append(
            {
                "name": dataset.name,
                "digest": {"sha256": dataset.sha256},
                "annotations": {"role": _ROLES[dataset.split], "numRows": dataset.num_rows, "shape": dataset.shape},
            }
        )
    trained = export.source.adapter_sha256 or (facts.run.result.adapter_sha256 if facts.run is not None else None)
    if trained is not None:
        annotations = {"role": TRAINED_ROLE, "method": export.source.method or "not stated"}
        found.append({"name": facts.title, "digest": {"sha256": trained}, "annotations": annotations})
    return found


def _details(export: Export, facts: BundleFacts, manifest: Manifest) -> dict[str, Any]:
    versions = {one.name: one.version for one in facts.packages}
    return {
        "builder": {"id": BUILDER_ID, "version": versions},
        "metadata": {"finishedOn": facts.made_at},
        "byproducts": _byproducts(export, facts, manifest),
    }


def _byproducts(export: Export, facts: BundleFacts, manifest: Manifest) -> list[dict[str, Any]]:
    found = []
    if (run := facts.run) is not None:
        annotations: dict[str, Any] = {
            "role": "run",
            "startedOn": run.created_at,
            "finishedOn": run.ended_at,
            "status": run.result.status,
            "stoppedBecause": run.result.stopped_because,
        }
        found.append(_byproduct(run.run_id, PLAN, manifest, annotations))
    if (evaluation := facts.evaluation) is not None:
        annotations = {
            "role": "evaluation",
            "heldOutSha256": evaluation.held_out_sha256,
            "verdict": evaluation.verdict.word if evaluation.verdict is not None else "none",
        }
        found.append(_byproduct(evaluation.evaluation_id, EVALUATION, manifest, annotations))
    proofs = (("parity", PARITY, export.parity), ("parity of adapter.gguf", GGUF_PARITY, export.gguf_parity))
    for name, file, parity in proofs:
        if parity is not None:
            annotations = {"role": "proof against the source", "passed": parity.passed}
            found.append(_byproduct(name, file, manifest, annotations))
    return found


def _byproduct(name: str, path: str, manifest: Manifest, annotations: dict[str, Any]) -> dict[str, Any]:
    """A fact on the way, with the digest of the file in the bundle that states it."""
    digest = {"sha256": manifest.by_path[path].sha256}
    return {"name": name, "digest": digest, "annotations": annotations | {"file": path}}
