"""Tools about deployments: list, show, deploy, promote a canary, roll back."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from luthier.core.results.release_gate import MAX_REASON_CHARACTERS, MIN_REASON_CHARACTERS
from luthier.core.text.counted import counted
from luthier.features.deployments import api as deployments
from luthier.features.deployments.api import DeployBody, DeploymentObject, PromoteBody, RollbackBody
from luthier.features.mcp_server.records import Arguments, Call, Name, NoArguments, Tool, ToolResult

DeploymentName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="The name that programs send questions to.")
]
Revision = Annotated[
    int | None,
    Field(ge=0, lt=2**31, description="Refuse if the deployment is at another revision; 0: the name must be new."),
]
Override = Annotated[
    str | None,
    Field(
        min_length=MIN_REASON_CHARACTERS,
        max_length=MAX_REASON_CHARACTERS,
        description="Only if a person has decided so: why the model is deployed although the release gate refuses it. "
        "It is written to the audit log.",
    ),
]


class DeploymentArguments(Arguments):
    """One deployment."""

    name: DeploymentName


class DeployArguments(DeploymentArguments):
    """What answers by a name."""

    target: Annotated[Name, Field(description="A run that has succeeded, a tuned model (ft:...) or a base model.")]
    canary: Annotated[
        float | None, Field(gt=0, lt=1, description="The share of users that it gets; without it, it gets all of them.")
    ] = None
    expected_revision: Revision = None
    override: Override = None


class PromoteArguments(DeploymentArguments):
    """What gets all users."""

    target: Annotated[Name | None, Field(description="The target; without it, the canary.")] = None
    expected_revision: Revision = None
    override: Override = None


class RollbackArguments(DeploymentArguments):
    """The deployment to roll back."""

    expected_revision: Revision = None


def list_deployments(call: Call, _asked: NoArguments) -> ToolResult:
    """All of the project."""
    found = deployments.list_all(call.context, call.caller)
    return ToolResult(
        f"{counted(len(found.data), 'deployment')}.", {"deployments": found.model_dump(mode="json")["data"]}
    )


def get_deployment(call: Call, asked: DeploymentArguments) -> ToolResult:
    """One of them, with its history."""
    return _result(deployments.show(call.context, call.caller, asked.name))


def deploy(call: Call, asked: DeployArguments) -> ToolResult:
    """A new name, or a new revision of one."""
    body = DeployBody(
        name=asked.name,
        target=asked.target,
        canary=asked.canary,
        expected_revision=asked.expected_revision,
        override=asked.override,
    )
    return _result(deployments.deploy(call.context, call.caller, body))


def promote(call: Call, asked: PromoteArguments) -> ToolResult:
    """Give a canary all users."""
    body = PromoteBody(target=asked.target, expected_revision=asked.expected_revision, override=asked.override)
    return _result(deployments.promote(call.context, call.caller, asked.name, body))


def rollback(call: Call, asked: RollbackArguments) -> ToolResult:
    """Go back to the revision before."""
    body = RollbackBody(expected_revision=asked.expected_revision)
    return _result(deployments.rollback(call.context, call.caller, asked.name, body))


def _result(found: DeploymentObject) -> ToolResult:
    shares = ", ".join(f"{one.target} ({100 * one.fraction:.3g}% of users)" for one in found.revision.shares)
    summary = f"{found.name} is at revision {found.revision.number}: {shares}."
    if found.revision.unjudged:
        summary += f" Without an evaluation: {', '.join(found.revision.unjudged)}."
    return ToolResult(summary, found.model_dump(mode="json"))


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "list_deployments",
        "List deployments",
        "Names of the project that route to models, and how users are shared out.",
        ("read",),
        NoArguments,
        list_deployments,
        is_read_only=True,
    ),
    Tool(
        "get_deployment",
        "Show a deployment",
        "One deployment with its targets, requests and earlier revisions.",
        ("read",),
        DeploymentArguments,
        get_deployment,
        is_read_only=True,
    ),
    Tool(
        "deploy",
        "Deploy a model",
        "Let a model answer by a name, for all users or as a canary for a share of them. It replaces what answered "
        "before; rollback undoes it. The release gate of the project may refuse it.",
        ("train",),
        DeployArguments,
        deploy,
        is_destructive=True,
    ),
    Tool(
        "promote",
        "Promote a canary",
        "Give the canary of a deployment, or another of its targets, all users.",
        ("train",),
        PromoteArguments,
        promote,
        is_destructive=True,
    ),
    Tool(
        "rollback",
        "Roll back",
        "Return a deployment to the revision before this one, for the next request on.",
        ("train",),
        RollbackArguments,
        rollback,
        is_destructive=True,
    ),
)
