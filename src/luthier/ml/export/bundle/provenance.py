"""Provenance of a bundle: an in-toto Statement with a SLSA provenance (both v1), and a CycloneDX 1.6 SBOM.

    subject                 every file of the bundle that was there before this document
    resolvedDependencies    base model, rows of each split, and the weights that the run has made
    externalParameters      the request: the format, and the plan of the run
    byproducts              the run and its evaluation, the facts between the rows and the export

The SBOM lists the model, its base, its rows and the packages. `read_origin` reads back which run is behind a bundle.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id
from luthier.core.records.export import Export
from luthier.core.registry import OBJECTIVES
from luthier.core.task_head import TaskHeadKind
from luthier.ml.export.bundle import front_matter
from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts, DatasetFacts, PackageFacts
from luthier.ml.export.bundle.front_matter import tuned_system
from luthier.ml.export.bundle.manifest import EVALUATION, GGUF_PARITY, LINEAGE, PARITY, PLAN, SBOM, Manifest

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:luthier:export:v1"
BUILDER_ID: Final = "urn:luthier:export"
WEIGHTS_DIGEST: Final = "luthierWeightsV1"
"""The digest of a base model: SHA-256 of the canonical JSON {name of a weight file: its SHA-256}."""
BASE_ROLE, TRAINED_ROLE, RUN_ROLE = "base model", "trained weights", "run"
RUN_PROPERTY: Final = "luthier:run"
"""The property of a bill of materials that names the run."""
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
        facts: the origin of the model.
        manifest: manifest of the files that the statement covers.

    Returns:
        The document as JSON values.
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


class Origin(NamedTuple):
    """What a bundle says of the run behind it.

    Attributes:
        run_ids: the run, as its documents name it; more than one where they do not agree, none where it is not named.
        trained_sha256: digest of the trained weights that it was made of; None where it is not stated.
    """

    run_ids: tuple[str, ...]
    trained_sha256: str | None


def read_origin(folder: Path) -> Origin:
    """The origin of a bundle by its lineage, bill of materials and evaluation; nothing of it is verified.

    Args:
        folder: of the bundle, or of anything else, which says nothing.
    """
    statement, materials, evaluation = (_document(folder / name) for name in (LINEAGE, SBOM, EVALUATION))
    found: list[Any] = []
    # A bundle has an evaluation only where its run has one; the run is also in the other two.
    with suppress(LookupError, TypeError):
        byproducts = statement["predicate"]["runDetails"]["byproducts"]
        found += [one["name"] for one in byproducts if one["annotations"]["role"] == RUN_ROLE]
    with suppress(LookupError, TypeError):
        properties = materials["metadata"]["component"]["modelCard"]["properties"]
        found += [one["value"] for one in properties if one["name"] == RUN_PROPERTY]
    found.append(evaluation.get("run_id"))
    trained = None
    with suppress(LookupError, TypeError):
        trained = str(dependency(statement, TRAINED_ROLE)["digest"]["sha256"])
    return Origin(tuple(dict.fromkeys(one for one in map(str, found) if is_id(one, "run"))), trained)


def dependency(statement: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The first dependency of a lineage that has a role.

    Args:
        statement: the lineage, as `lineage` writes it.
        role: such as `BASE_ROLE`.

    Raises:
        KeyError: there is none, or the statement has no dependencies.
        TypeError: the statement is of another form.
    """
    found: list[dict[str, Any]] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    for one in found:
        if one["annotations"]["role"] == role:
            return one
    raise KeyError(role)


def _document(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def base_uri(base: BaseFacts) -> str | None:
    """The package URL of the base model (purl-spec, type huggingface); None without a public name."""
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
            "role": RUN_ROLE,
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
    proofs = (
        ("parity", PARITY, export.parity or export.head_parity),
        ("parity of adapter.gguf", GGUF_PARITY, export.gguf_parity),
    )
    for name, file, parity in proofs:
        if parity is not None:
            annotations = {"role": "proof against the source", "passed": parity.passed}
            found.append(_byproduct(name, file, manifest, annotations))
    return found


def _byproduct(name: str, path: str, manifest: Manifest, annotations: dict[str, Any]) -> dict[str, Any]:
    """An intermediate fact, with the digest of the bundle file that states it."""
    # The digest of the file in the bundle: a verifier needs nothing but the bundle.
    digest = {"sha256": manifest.by_path[path].sha256}
    return {"name": name, "digest": digest, "annotations": annotations | {"file": path}}


_MODEL, _BASE = "model", "base-model"
_EXPRESSION: Final = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_TASKS: Final[dict[TaskHeadKind | None, tuple[str, str]]] = {
    None: ("text generation", "text"),
    "classify": ("classification", "labels with probabilities"),
    "regress": ("regression", "number"),
    "rank": ("ranking", "number"),
    "embed": ("embedding", "vector of numbers"),
}
"""What a model does and what it gives, by its task head."""


def sbom(export: Export, facts: BundleFacts, manifest: Manifest) -> dict[str, Any]:
    """The CycloneDX document. Its serial number is derived from its content.

    Args:
        export: what was exported.
        facts: the origin of the model.
        manifest: manifest of the model files.
    """
    base = _base(facts.base)
    # Rows are listed by digest only: a bundle never contains them.
    data = [_data(dataset) for dataset in facts.run.datasets] if facts.run is not None else []
    packages = [_package(package) for package in facts.packages]
    parts = [base, *data, *packages]
    # A version 5 UUID, so that equal bundles give byte-identical documents.
    named = f"{manifest.digest} {facts.made_at} {facts.title}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, named)}",
        "version": 1,
        "metadata": {
            "timestamp": facts.made_at,
            "tools": {"components": [_tool(package) for package in facts.packages if package.name == "luthier"]},
            "component": _model(export, facts, manifest),
        },
        "components": parts,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"], "dependsOn": []} for part in parts),
        ],
    }


def _model(export: Export, facts: BundleFacts, manifest: Manifest) -> dict[str, Any]:
    files = [
        {"type": "file", "name": file.path, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}
        for file in manifest.files
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": facts.title,
        "description": f"{export.format}, {export.precision}",
        **_licences(facts.base.licence, facts.base.licence_url),
        "modelCard": _model_card(export, facts),
        "components": files,
    }


def _model_card(export: Export, facts: BundleFacts) -> dict[str, Any]:
    task, output = _TASKS[export.source.task_head]
    parameters: dict[str, Any] = {"task": task, "inputs": [{"format": "text"}], "outputs": [{"format": output}]}
    properties: dict[str, str] = {"luthier:format": export.format, "luthier:precision": export.precision}
    if facts.base.architecture is not None:
        parameters |= {"architectureFamily": "transformer", "modelArchitecture": facts.base.architecture}
    limits = [*export.warnings]
    if (run := facts.run) is not None:
        # A plug-in that is no longer installed leaves out how it learns: the schema has no word for "not known".
        if (rules := OBJECTIVES.find(run.plan.objective.name)) is not None:
            parameters["approach"] = {"type": rules.approach}
        parameters["datasets"] = [{"ref": _data_ref(dataset)} for dataset in run.datasets]
        bill = run.result.bill
        properties |= {
            RUN_PROPERTY: run.run_id,
            "luthier:plan-hash": run.plan_hash,
            "luthier:method": run.plan.method.name,
            "luthier:objective": run.plan.objective.name,
        }
        if bill is not None and bill.energy_kwh is not None:
            properties["luthier:energy-kwh-estimated"] = f"{bill.energy_kwh.value:.6g}"
    card: dict[str, Any] = {"modelParameters": parameters}
    if facts.evaluation is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(facts.evaluation)}
        if facts.evaluation.verdict is not None:
            limits += facts.evaluation.verdict.caveats
    if not facts.safety:
        limits.append("No safety evaluation was run.")
    card["considerations"] = {"technicalLimitations": limits}
    card["properties"] = [{"name": name, "value": value} for name, value in properties.items()]
    return card


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Figures of the tuned model on held-out rows, before the export."""
    system = tuned_system(evaluation)
    if system is None:
        return []
    return [
        {
            "type": name,
            "value": f"{metric.value:.6g}",
            "slice": "held-out rows, before export",
            "confidenceInterval": {"lowerBound": f"{metric.low:.6g}", "upperBound": f"{metric.high:.6g}"},
        }
        for name, metric in system.metrics.items()
    ]


def _base(base: BaseFacts) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": base.name,
        **_licences(base.licence, base.licence_url),
        "properties": [{"name": f"luthier:{WEIGHTS_DIGEST}", "value": base.sha256}],
    }
    if base.revision is not None:
        made["version"] = base.revision
    if (uri := base_uri(base)) is not None:
        made["purl"] = uri
    return made


def _data(dataset: DatasetFacts) -> dict[str, Any]:
    split = dataset.split.replace("_", " ")
    described = f"{split}: {dataset.num_rows} rows, {dataset.num_trained_tokens} learned tokens"
    return {
        "type": "data",
        "bom-ref": _data_ref(dataset),
        "name": dataset.name,
        "hashes": [{"alg": "SHA-256", "content": dataset.sha256}],
        "data": [{"type": "dataset", "name": dataset.name, "description": described}],
    }


def _data_ref(dataset: DatasetFacts) -> str:
    return f"data-{dataset.split}"


def _package(package: PackageFacts) -> dict[str, Any]:
    """A package as a component; Python itself is the platform."""
    # The normal form of PEP 503, which PyPI purls require. The `+` of local versions must be encoded.
    name = re.sub(r"[-_.]+", "-", package.name).lower()
    made: dict[str, Any] = {"type": "library", "name": package.name, "version": package.version}
    if name != "python":
        purl = f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}"
        made |= {"purl": purl, "bom-ref": purl}
    else:
        made |= {"type": "platform", "bom-ref": "python"}
    return made | _licences(package.licence, None)


def _tool(package: PackageFacts) -> dict[str, Any]:
    """The tool that wrote the document; without a reference, as the same package is already a component."""
    return {"type": "application", "name": package.name, "version": package.version}


def _licences(licence: str | None, url: str | None) -> dict[str, Any]:
    """The licence as an SPDX expression if it is one, else by name; empty if none is stated."""
    if licence is None or not front_matter.is_stated(licence):
        return {}
    known = front_matter.find(licence)
    if known is not None and known.spdx is not None:
        one: dict[str, Any] = {"id": known.spdx} | ({"url": url} if url else {})
        return {"licenses": [{"license": one}]}
    # A digit or hyphen distinguishes an SPDX id from a plain word, which validators reject as an expression.
    if _EXPRESSION.fullmatch(licence) and re.search(r"[-0-9]", licence):
        return {"licenses": [{"expression": licence}]}
    return {"licenses": [{"license": {"name": licence} | ({"url": url} if url else {})}]}
