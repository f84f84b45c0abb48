"""The workflows by kind, and short forms of their requests."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from luthier.core.import_string import import_string
from luthier.core.registry import STORED
from luthier.core.workflows.pipeline import Pipeline, PipelineKind
from luthier.platform.workflows.engine import Workflow

WORKFLOWS: Final[Mapping[PipelineKind, str]] = {
    "showdown": "luthier.features.workflows.model_comparison.workflow:WORKFLOW",
    "auto": "luthier.features.workflows.automl.workflow:WORKFLOW",
    "retrain": "luthier.features.workflows.retraining.workflow:WORKFLOW",
    "quickstart": "luthier.features.workflows.quickstart.workflow:WORKFLOW",
    "distill": "luthier.features.workflows.distillation.workflow:WORKFLOW",
}
"""Workflows with records in the table of workflows. A search has its record in its study, and a table of formats in its
folder; both run on the same engine."""
_MAX_CHARACTERS: Final = 160


def workflow_of(kind: PipelineKind) -> Workflow:
    """The declaration of a kind of workflow."""
    found: Workflow = import_string(WORKFLOWS[kind])
    return found


def lines_of(workflow: Workflow, pipeline: Pipeline) -> dict[str, list[str]]:
    """For each stage the reason for an early end, its findings, and the ids of what it made."""
    specs = {one.name: one for one in workflow.stages(workflow.request.model_validate(pipeline.asked, context=STORED))}
    found = {}
    for stage in pipeline.stages:
        outcome = specs[stage.name].outcome.model_validate(stage.came, context=STORED)
        made = [made_id for _, made_id in outcome.made()]
        found[stage.name] = [*([stage.reason] if stage.reason else []), *outcome.lines(), *made]
    return found


def short(text: str) -> str:
    """A text cut to one line."""
    return textwrap.shorten(text, _MAX_CHARACTERS, placeholder=" …") if len(text) > _MAX_CHARACTERS else text


def file_name(path: Any) -> str:
    """A file without its folder."""
    return PurePath(str(path)).name if path else ""


def model_name(name: Any) -> str:
    """A model without its folder."""
    return PurePath(str(name)).name if str(name).startswith("/") else str(name)


def model_names(names: Sequence[Any]) -> str:
    """Models, separated by commas."""
    return ", ".join(model_name(name) for name in names)
