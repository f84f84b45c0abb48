"""The YAML at the top of a model's card, as the Hugging Face hub reads it (its model card specification)."""

from __future__ import annotations

from typing import Any

import yaml

from luthier.core.evaluation import Evaluation, Metric, SystemResult
from luthier.core.records.export import Export
from luthier.ml.charts import figures
from luthier.ml.charts.metric_titles import metric_title
from luthier.ml.charts.visible import visible
from luthier.ml.export.bundle import licences
from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.exporters.registry import WHOLE, format_of


def front_matter(export: Export, facts: BundleFacts) -> dict[str, Any]:
    """The metadata; keys of which nothing is known are left out."""
    made: dict[str, Any] = {}
    if facts.base.hub is not None:
        made |= {"base_model": facts.base.hub, "base_model_relation": _relation(export)}
    made["library_name"] = format_of(export.format).library
    made |= licences.hub_fields(facts.base.licence, facts.base.licence_url)
    made["pipeline_tag"] = "text-generation"
    made["tags"] = _tags(export)
    if facts.evaluation is not None and (system := tuned_system(facts.evaluation)) is not None:
        made["model-index"] = [{"name": facts.title, "results": [_result(facts.evaluation, system)]}]
    return made


def front_matter_text(export: Export, facts: BundleFacts) -> str:
    """The metadata between its two lines of dashes."""
    text = yaml.safe_dump(front_matter(export, facts), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


def tuned_system(evaluation: Evaluation) -> SystemResult | None:
    """The system of an evaluation that is the exported model: the one named `tuned`; None where there is none."""
    return next((system for system in evaluation.systems if system.name == "tuned"), None)


def _relation(export: Export) -> str:
    if format_of(export.format).is_adapter:
        return "adapter"
    return "finetune" if export.source.run_id is not None or export.precision in WHOLE else "quantized"


def _tags(export: Export) -> list[str]:
    tags = ["luthier", export.format]
    if export.source.method is not None:
        tags.append(export.source.method)
    return [*tags, *([export.precision] if export.precision not in WHOLE else [])]


def _result(evaluation: Evaluation, system: SystemResult) -> dict[str, Any]:
    """One result of the model index. What was judged is the model before it was exported, and the names say so."""
    name = visible(evaluation.held_out_file.replace("\\", "/").rsplit("/", 1)[-1])
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": name, "type": name, "split": "held_out", "revision": evaluation.held_out_sha256},
        "metrics": [_metric(kind, metric) for kind, metric in system.metrics.items()],
    }


def _metric(kind: str, metric: Metric) -> dict[str, Any]:
    decimals = figures.decimals_for(metric.low, metric.high)
    low, high = (f"{end:.{decimals}f}" for end in (metric.low, metric.high))
    name = f"{metric_title(kind)} before export, 95% interval {low} to {high}"
    return {"type": kind, "name": name, "value": metric.value}
