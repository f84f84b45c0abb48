"""/v1/fine_tuning/alpha/graders: validate a grader, and run it on one text."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from luthier.features.serving import graders
from luthier.features.serving.graders import Graded, GraderCheck, GraderRun, MultiRequest
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.errors import ApiError, documented

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["graders"])


class GraderErrors(BaseModel):
    """Error flags, and details as text."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class GraderMetadata(BaseModel):
    """The outcome of the run.

    Attributes:
        name: Of the grader.
        type: Its kind.
        errors: What has failed.
        execution_time: In seconds.
        scores: Of each part of a multi grader, by name.
        token_usage: None: tokens are not counted here.
        sampled_model_name: The grading model; None without one.
    """

    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    scores: dict[str, float]
    token_usage: int | None
    sampled_model_name: str | None


class GraderAnswer(BaseModel):
    """The grade of one text.

    Attributes:
        reward: The grade; 0 if the run failed.
        metadata: How it went.
        sub_rewards: Of each part of a multi grader, by name.
        model_grader_token_usage_per_model: Empty, for the same reason.
    """

    reward: float
    metadata: GraderMetadata
    sub_rewards: dict[str, float]
    model_grader_token_usage_per_model: dict[str, Any]


class GraderChecked(BaseModel):
    """The grader, if it can be run here."""

    grader: dict[str, Any]


@router.post("/run", response_model=GraderAnswer, responses=documented(404, 503))
def run(request: GraderRun, caller: Trainer, context: HomeContext) -> GraderAnswer:
    """Grade one text. A failed run has the reward 0, with the reason in `errors`."""
    grader = request.grader
    # The training scope alone must not allow model queries.
    if graders.uses_model(grader) and not caller.may("infer"):
        raise ApiError(
            403,
            f"The key {caller.name!r} may not ask models, and this grader asks one; what to do: use a key with the "
            "scope infer",
            type="insufficient_permissions",
            code="missing_scope",
        )
    graded = graders.run(context, caller, grader, request.model_sample, request.item or {})
    return GraderAnswer(
        reward=graded.reward,
        metadata=GraderMetadata(
            name=grader.name,
            type=grader.type,
            errors=_errors(graded),
            execution_time=graded.seconds,
            scores=graded.scores,
            token_usage=None,
            sampled_model_name=None if isinstance(grader, MultiRequest) else getattr(grader, "model", None),
        ),
        sub_rewards=graded.scores,
        model_grader_token_usage_per_model={},
    )


@router.post("/validate", response_model=GraderChecked, responses=documented())
def validate(request: GraderCheck, caller: Trainer, context: HomeContext) -> GraderChecked:  # noqa: ARG001
    """Check whether a grader can be run here."""
    graders.check(request.grader, allows_python=context.settings.python_graders)
    return GraderChecked(grader=request.grader.model_dump(mode="json", exclude_none=True))


def _errors(graded: Graded) -> GraderErrors:
    flags = {name: name in graded.errors for name in graders.ERRORS}
    is_of_code = flags["python_grader_runtime_error"]
    return GraderErrors(
        **flags,
        python_grader_server_error_type=None,
        python_grader_runtime_error_details=graded.details if is_of_code else None,
        model_grader_server_error_details=None if is_of_code else graded.details,
    )
