"""What a bundle is made of: a CycloneDX 1.6 document with the model, its base, its rows and the packages."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from luthier.core.evaluation import Evaluation
from luthier.core.records.export import Export
from luthier.ml.export.bundle import licences
from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts, DatasetFacts, PackageFacts
from luthier.ml.export.bundle.front_matter import tuned_system
from luthier.ml.export.bundle.lineage import WEIGHTS_DIGEST, base_uri
from luthier.ml.export.bundle.manifest import Manifest

_MODEL, _BASE = "model", "base-model"
_EXPRESSION: Final = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_APPROACHES: Final = {"pretraining": "self-supervised", "grpo": "reinforcement-learning"}


def sbom(export: Export, facts: BundleFacts, manifest: Manifest) -> dict[str, Any]:
    """The CycloneDX document. Its serial number follows from its content.

    Args:
        export: what was exported.
        facts: where it comes from.
        manifest: of the files of the model.
    """
    base = _base(facts.base)
    # Rows are named by digest only: the bundle never holds them.
    data = [_data(dataset) for dataset in facts.run.datasets] if facts.run is not None else []
    packages = [_package(package) for package in facts.packages]
    parts = [base, *data, *packages]
    # A UUID of version 5, so that the same bundle gives the same document, byte for byte.
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
    parameters: dict[str, Any] = {"task": "text generation", "inputs": [{"format": "text"}]}
    parameters["outputs"] = [{"format": "text"}]
    properties: dict[str, str] = {"luthier:format": export.format, "luthier:precision": export.precision}
    if facts.base.architecture is not None:
        parameters |= {"architectureFamily": "transformer", "modelArchitecture": facts.base.architecture}
    limits = [*export.warnings]
    if (run := facts.run) is not None:
        approach = _APPROACHES.get(run.plan.objective.name, "supervised")
        parameters["approach"] = {"type": approach}
        parameters["datasets"] = [{"ref": _data_ref(dataset)} for dataset in run.datasets]
        bill = run.result.bill
        properties |= {
            "luthier:run": run.run_id,
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
    """Of the tuned model, before it was exported, on held-out rows."""
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
    # PEP 503's normal form, which purls of PyPI require; `+` of local versions must be encoded.
    name = re.sub(r"[-_.]+", "-", package.name).lower()
    made: dict[str, Any] = {"type": "library", "name": package.name, "version": package.version}
    if name != "python":
        purl = f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}"
        made |= {"purl": purl, "bom-ref": purl}
    else:
        made |= {"type": "platform", "bom-ref": "python"}
    return made | _licences(package.licence, None)


def _tool(package: PackageFacts) -> dict[str, Any]:
    """What has written the document; without a reference, which the same package has among the parts."""
    return {"type": "application", "name": package.name, "version": package.version}


def _licences(licence: str | None, url: str | None) -> dict[str, Any]:
    """The licence as SPDX's expression where it is one, else by its name; nothing where none is stated."""
    if licence is None or not licences.is_stated(licence):
        return {}
    known = licences.find(licence)
    if known is not None and known.spdx is not None:
        one: dict[str, Any] = {"id": known.spdx} | ({"url": url} if url else {})
        return {"licenses": [{"license": one}]}
    # A digit or hyphen tells an SPDX id from a plain word, which validators would refuse as an expression.
    if _EXPRESSION.fullmatch(licence) and re.search(r"[-0-9]", licence):
        return {"licenses": [{"expression": licence}]}
    return {"licenses": [{"license": {"name": licence} | ({"url": url} if url else {})}]}
