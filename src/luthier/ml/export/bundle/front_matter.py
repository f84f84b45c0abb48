"""The YAML at the top of a model card, by the Hugging Face hub specification, and the licences of base models.

The duties of a licence are summarised: never more than the licence states, and no legal advice.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import yaml

from luthier.core.evaluation import Evaluation, Metric, SystemResult
from luthier.core.records.export import Export
from luthier.core.task_head import TaskHeadKind
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.charts.visible import visible
from luthier.ml.export.bundle.facts import BundleFacts
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
from luthier.ml.export.exporters.registry import WHOLE, format_of


class Licence(NamedTuple):
    """What is known about a licence.

    Attributes:
        hub: the id on the Hugging Face hub.
        spdx: the SPDX id; None if SPDX has none.
        follows: duties when distributing the model, one sentence.
    """

    hub: str
    spdx: str | None
    follows: str


_PERMISSIVE: Final = "Redistribution must include the text of the licence and the notices"
_KNOWN: Final = (
    Licence("apache-2.0", "Apache-2.0", f"{_PERMISSIVE}, and says that the weights were changed (section 4)."),
    Licence("mit", "MIT", f"{_PERMISSIVE}."),
    Licence("bsd-3-clause", "BSD-3-Clause", f"{_PERMISSIVE}, and does not use its authors' names to promote it."),
    Licence("cc0-1.0", "CC0-1.0", "Its makers have waived their rights: nothing need be kept."),
    Licence("cc-by-4.0", "CC-BY-4.0", "Redistribution must name its makers and the changes made."),
    Licence("cc-by-nc-4.0", "CC-BY-NC-4.0", "No commercial use; redistribution must name its makers and changes."),
    Licence(
        "gemma",
        None,
        "This is a model derivative under the Gemma terms: redistribution must include a copy of those terms, "
        "binds the receiver to their use restrictions, says that files were changed, and adds the notice they ask for.",
    ),
)
_OTHER_SPELLINGS: Final = {
    "gemma terms of use": "gemma",
    "apache 2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "apache 2.0 license": "apache-2.0",
}
NOT_KNOWN: Final = (
    "The licence of the base model is not stated, so whether this model may be used or passed on is not known: ask its "
    "makers."
)
READ_IT: Final = "Read it before this model is used or passed on: what follows from it is not known to Luthier."


def find(licence: str | None) -> Licence | None:
    """The licence with this name; None if it is unknown."""
    name = (licence or "").strip().lower()
    name = _OTHER_SPELLINGS.get(name, name)
    return next((known for known in _KNOWN if known.hub == name), None)


def is_stated(licence: str | None) -> bool:
    """Whether the licence is known."""
    return bool(licence and licence.strip()) and licence != "not stated"


def hub_fields(licence: str | None, url: str | None) -> dict[str, str]:
    """The licence entries of the front matter: ids are SPDX ids in lower case, anything else is `other` with a name."""
    if licence is None or not is_stated(licence):
        return {}
    if (known := find(licence)) is not None:
        return {"license": known.hub}
    # The hub accepts only these characters in `license_name`.
    name = re.sub(r"[^a-z0-9.+-]+", "-", licence.lower()).strip("-") or "other"
    return {"license": "other", "license_name": name} | ({"license_link": url} if url else {})


def consequences(licence: str | None) -> str:
    """The duties of the licence, one or two sentences."""
    if not is_stated(licence):
        return NOT_KNOWN
    known = find(licence)
    return known.follows if known is not None else READ_IT


_TASKS: Final[dict[TaskHeadKind | None, str]] = {
    None: "text-generation",
    "classify": "text-classification",
    "regress": "text-classification",
    "rank": "text-ranking",
    "embed": "sentence-similarity",
}
"""The hub's name for the task of the model."""


def front_matter(export: Export, facts: BundleFacts) -> dict[str, Any]:
    """The metadata, without keys whose values are unknown."""
    made: dict[str, Any] = {}
    if facts.base.hub is not None:
        made |= {"base_model": facts.base.hub, "base_model_relation": _relation(export)}
    head = None if export.head_parity is None else HEAD_FORMATS[export.format]
    made["library_name"] = format_of(export.format).library if head is None else head.library
    made |= hub_fields(facts.base.licence, facts.base.licence_url)
    made["pipeline_tag"] = _TASKS[export.source.task_head]
    made["tags"] = _tags(export)
    if facts.evaluation is not None and (system := tuned_system(facts.evaluation)) is not None:
        result = _result(facts.evaluation, system, made["pipeline_tag"])
        made["model-index"] = [{"name": facts.title, "results": [result]}]
    return made


def front_matter_text(export: Export, facts: BundleFacts) -> str:
    """The metadata between two lines of dashes."""
    text = yaml.safe_dump(front_matter(export, facts), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n"


def tuned_system(evaluation: Evaluation) -> SystemResult | None:
    """The system of an evaluation that is the exported model, named `tuned`; None without one."""
    return next((system for system in evaluation.systems if system.name == "tuned"), None)


def _relation(export: Export) -> str:
    if export.head_parity is None and format_of(export.format).is_adapter:
        return "adapter"
    return "finetune" if export.source.run_id is not None or export.precision in WHOLE else "quantized"


def _tags(export: Export) -> list[str]:
    tags = ["luthier", export.format]
    if export.source.method is not None:
        tags.append(export.source.method)
    return [*tags, *([export.precision] if export.precision not in WHOLE else [])]


def _result(evaluation: Evaluation, system: SystemResult, task: str) -> dict[str, Any]:
    """One result of the model index. The model was evaluated before the export, and the names state that."""
    name = visible(evaluation.held_out_file.replace("\\", "/").rsplit("/", 1)[-1])
    return {
        "task": {"type": task},
        "dataset": {"name": name, "type": name, "split": "held_out", "revision": evaluation.held_out_sha256},
        "metrics": [_metric(kind, metric) for kind, metric in system.metrics.items()],
    }


def _metric(kind: str, metric: Metric) -> dict[str, Any]:
    decimals = figures.decimals_for(metric.low, metric.high)
    low, high = (f"{end:.{decimals}f}" for end in (metric.low, metric.high))
    name = f"{metric_title(kind)} before export, 95% interval {low} to {high}"
    return {"type": kind, "name": name, "value": metric.value}
