"""/api/v1/plans and /api/v1/audits: the plan of a recipe and the audit of a file, before any training."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from luthier.core.frozen_model import ClosedModel
from luthier.features.files.references import AuditRequest, audit_of, plan_of
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.errors import documented

router = APIRouter(prefix="/api/v1", tags=["plans"])

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class PlanBody(ClosedModel):
    """recipe: as in a recipe file, with ids of files (`file-...`) and names of models in place of paths."""

    recipe: dict[str, Any]


class AuditBody(ClosedModel):
    """file_id, against: ids of files. model: whose tokens count. only: ids of checks, all where none is named."""

    file_id: _Name
    against: _Name | None = None
    model: _Name | None = None
    only: Annotated[list[_Name], Field(min_length=1, max_length=100)] | None = None
    mapping: Annotated[dict[str, str], Field(max_length=100)] | None = None
    group_by: _Name | None = None
    method: _Name = "lora"


@router.post("/plans", summary="Plan a recipe", responses=documented(503))
def plan(context: HomeContext, caller: Trainer, asked: PlanBody) -> dict[str, Any]:
    """The complete plan and the quote, as `luthier plan --json` prints them; all rows are read and checked."""
    return plan_of(context, caller.project_id, asked.recipe)


@router.post("/audits", summary="Audit a file", responses=documented(503))
def audit(context: HomeContext, caller: Trainer, asked: AuditBody) -> dict[str, Any]:
    """Findings, most severe first, and a grade, as `luthier data audit --json` prints them."""
    given = AuditRequest(
        asked.file_id,
        against=asked.against,
        model=asked.model,
        only=None if asked.only is None else tuple(asked.only),
        mapping=asked.mapping,
        group_by=asked.group_by,
        method=asked.method,
    )
    return audit_of(context, caller.project_id, given)
