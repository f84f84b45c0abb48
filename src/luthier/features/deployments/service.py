"""Use cases: deployments: name a model, try another one on a part of the traffic, promote it or go back.

A running server looks the name up with each request, so a change applies from the next one on. Every change is made
from the revision that the caller has seen: if it is no longer the newest, the change is refused. A model is deployed
only if its release gates let it pass, or if somebody overrides them with a reason.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.records import deployment as routing
from luthier.core.records.deployment import NAME, Deployment, Revision, Share
from luthier.features.deployments.gate_passage import facts_of_override, pass_gates
from luthier.features.deployments.store import changed_meanwhile
from luthier.features.models.uses import refuse_named, remove_unused
from luthier.features.release_gates.service import (
    own_run_behind,
    refuse_unjudged,
    unjudged_targets,
)
from luthier.features.serving.engine_choice import EngineDecision, choose_engines
from luthier.features.serving.models import EngineView, engines_of, fastest
from luthier.features.serving.targets import check_targets_of, find_share, find_shares, served_share
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models


def deployed_run(context: Context, caller: Caller, revision: Revision) -> str:
    """The run that made the target which most users get.

    Raises:
        ConflictError: None is known.
    """
    share = revision.main_share
    judged = own_run_behind(context, caller, share)
    if judged.run_id is None:
        why = "; ".join(judged.set_aside) or f"{share.target} is a base model"
        raise ConflictError(
            f"no run belongs to {share.target}: {why}",
            expected="a deployment of a run's model: its recipe and rows can be used again",
            do="train it once with a recipe, and deploy that run",
        )
    return judged.run_id


_MAX_ENTRIES = 500
_AUDIT_ACTIONS = {"deploy": "deployed", "canary": "canary_set", "promote": "promoted", "rollback": "rolled_back"}


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A deployment with its requests.

    Attributes:
        deployment: The deployment at its newest revision.
        num_requests: Requests that each target has answered under this name, over all revisions.
        history: All revisions, newest first; empty in lists.
        engines: What answers for each target that is on this machine; empty in lists.
    """

    deployment: Deployment
    num_requests: dict[str, int]
    history: tuple[Revision, ...] = ()
    engines: Mapping[str, Sequence[EngineView]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier deployments --json`; folders stay on this machine."""
        document = {
            "name": self.deployment.name,
            "id": self.deployment.deployment_id,
            "project_id": self.deployment.project_id,
            "created_at": self.deployment.created_at,
            "revision": revision_json(self.deployment.revision),
            "requests": self.num_requests,
        }
        if self.engines:
            # Without what is in memory, which only the server's process knows.
            document["engines"] = {
                target: [one.model_dump(mode="json", exclude={"is_loaded"}) for one in each]
                for target, each in self.engines.items()
            }
        return document | ({"history": [revision_json(one) for one in self.history]} if self.history else {})


def deploy(
    context: Context,
    caller: Caller,
    name: str,
    target: str,
    *,
    canary: float | None = None,
    expected_revision: int | None = None,
    gate: Path | None = None,
    override: str | None = None,
    may_be_unjudged: bool = True,
) -> Deployment:
    """Have a name answered by a target: all of it or, with `canary`, that fraction of its users.

    Args:
        context, caller: The home, and whose project it is.
        name: The name of the deployment.
        target: As `find_share` takes it.
        canary: A fraction between 0 and 1; None replaces all targets.
        expected_revision: The revision that this one follows; 0 for a new name.
        gate: Rules in addition to the project's.
        override: Why the target is to answer although a gate refuses it.
        may_be_unjudged: Allow a target that was not evaluated; the revision and the audit log then record it.

    Raises:
        RequestError: A name or fraction that cannot be, or a canary for a new name.
        NotFoundError: No such target.
        ConflictError: Another revision than expected, a gate that refuses, or a target that was not evaluated.
    """
    # Name and revision before the target: a stale page is refused before any model is looked up or pulled.
    current = _current(context, caller, name, expected_revision)
    # A new canary has its own fraction; the shares of the rest are scaled down in `routing.with_canary`.
    share = find_share(context, caller, target, 1.0 if canary is None else _fraction(canary))
    if current is None:
        if canary is not None:
            raise RequestError(
                f"a canary for {name!r}, which is not deployed yet",
                expected="a deployment that answers the requests that the canary does not get",
                do="deploy it without --canary: the first target gets all traffic",
            )
        made = routing.first(share)
    elif canary is None:
        made = routing.replace(share, current.revision)
    else:
        made = routing.with_canary(share, current.revision)
    made = _past_gates(context, caller, made, [share], gate, override)
    # A canary may be unjudged: trying it on a few users is a way to judge it.
    if not may_be_unjudged and canary is None:
        refuse_unjudged(name, made.unjudged, has_others=current is not None)
    return _add(context, caller, name, made) if current is None else _revise(context, caller, current, made)


def split(
    context: Context,
    caller: Caller,
    name: str,
    fractions: Mapping[str, float],
    *,
    expected_revision: int | None = None,
    gate: Path | None = None,
    override: str | None = None,
    may_be_unjudged: bool = True,
) -> Deployment:
    """Share the users of a name out over targets, as for an A/B test.

    Args:
        context, caller: The home, and whose project it is.
        name: The name of the deployment.
        fractions: The fraction of each target; they add up to 1.
        expected_revision: The revision that this one follows; 0 for a new name.
        gate: Rules in addition to the project's.
        override: Why the targets are to answer although a gate refuses them.
        may_be_unjudged: Allow a split of which no target was evaluated.

    Raises:
        RequestError: A name or fractions that cannot be, or an override that nothing needs.
        NotFoundError: No such target.
        ConflictError: Another revision than expected, a gate that refuses, or no target was evaluated.
    """
    current = _current(context, caller, name, expected_revision)
    shares = find_shares(context, caller, {target: _fraction(part) for target, part in fractions.items()})
    made = routing.split(shares, None if current is None else current.revision)
    made = _past_gates(context, caller, made, shares, gate, override)
    if not may_be_unjudged and len(made.unjudged) == len(shares):
        refuse_unjudged(name, made.unjudged, has_others=False)
    return _add(context, caller, name, made) if current is None else _revise(context, caller, current, made)


def promote(
    context: Context,
    caller: Caller,
    name: str,
    target: str | None = None,
    *,
    expected_revision: int | None = None,
    gate: Path | None = None,
    override: str | None = None,
    may_be_unjudged: bool = True,
) -> Deployment:
    """Give all traffic to the canary, or to the named one of the targets.

    Args:
        context, caller: The home, and whose project it is.
        name: The name of the deployment.
        target: The target; None for the canary.
        expected_revision: The revision that this one follows.
        gate: Rules in addition to the project's.
        override: Why it is to answer although a gate refuses it.
        may_be_unjudged: Allow a target that was not evaluated.

    Raises:
        NotFoundError: No such deployment.
        ConflictError: No canary, another revision than expected, one that is gone or saved again, or a gate refuses it.
    """
    current = _expected(context.deployments.get(caller.project_id, name), expected_revision)
    made = routing.promoted(current.revision, target)
    # As it was when it got its share: files that are gone, or other weights, would answer all users.
    check_targets_of(context, caller, name, current.revision.model_copy(update={"shares": made.shares}))
    made = _past_gates(context, caller, made, made.shares, gate, override)
    if not may_be_unjudged:
        refuse_unjudged(name, made.unjudged, has_others=False)
    return _revise(context, caller, current, made)


def rollback(context: Context, caller: Caller, name: str, *, expected_revision: int | None = None) -> Deployment:
    """Go back to the previous revision; repeat to go back further. No gate blocks this.

    Raises NotFoundError for the name, ConflictError where there is none before, or its targets are not there any more
    or were replaced.
    """
    current = _expected(context.deployments.get(caller.project_id, name), expected_revision)
    history = context.deployments.revisions(current.deployment_id)
    # `before` and not number - 1: after a rollback the chain leads further back, never to what was just left.
    earlier = next((one for one in history if one.number == current.revision.before), None)
    if earlier is None:
        raise ConflictError(
            f"the deployment {name!r} has no revision before this one",
            expected="an earlier revision",
            do=f"deploy another target: luthier deploy RUN --as {name}",
        )
    # Every target is resolved first: a rollback to deleted files would turn a bad model into an outage.
    check_targets_of(context, caller, name, earlier)
    made = routing.rolled_back(current.revision, earlier)
    # A rollback is the way out of trouble: nothing that cannot be looked up about a target blocks it.
    with contextlib.suppress(LuthierError):
        made = made.model_copy(update={"unjudged": unjudged_targets(context, caller, made.shares)})
    return _revise(context, caller, current, made)


def choose_target_engines(context: Context, caller: Caller, made: Deployment) -> dict[str, EngineDecision]:
    """How each target of a deployment is served from now on; GGUF copies are made, which takes minutes.

    Raises:
        NotFoundError: A target is no longer on this machine.
    """
    found = {share.target: served_share(context, caller, share) for share in made.revision.shares}
    return choose_engines(context, found)


def remove(context: Context, caller: Caller, name: str) -> Deployment:
    """Delete a deployment; its targets stay. Returns the deleted one.

    Raises:
        NotFoundError: The project has no such deployment.
        ConflictError: A job that has not ended names it as its teacher or judge.
    """
    found = context.deployments.get(caller.project_id, name)

    def delete() -> Deployment:
        with context.database.transaction():
            context.deployments.delete(caller.project_id, name)
            record(context, caller, "deployment.deleted", name, {"revision": found.revision.number})
        return found

    return remove_unused(context, lambda: refuse_named(context, caller, found), delete)


def list_deployments(context: Context, caller: Caller) -> list[DeploymentView]:
    """The deployments of a project, newest first."""
    found = context.deployments.list(caller.project_id)
    counts = context.usage.num_requests(caller.project_id, [one.name for one in found])
    return [DeploymentView(one, _counts_of(one.name, counts)) for one in found]


def show_deployment(context: Context, caller: Caller, name: str) -> DeploymentView:
    """One deployment with its history, newest first.

    Raises:
        NotFoundError: The project has no such deployment.
    """
    found = context.deployments.get(caller.project_id, name)
    counts = context.usage.num_requests(caller.project_id, [name])
    history = context.deployments.revisions(found.deployment_id)
    return DeploymentView(found, _counts_of(name, counts), history, _engines_of(context, caller, found))


def _engines_of(context: Context, caller: Caller, deployment: Deployment) -> dict[str, tuple[EngineView, ...]]:
    found = {}
    for share in deployment.revision.shares:
        with contextlib.suppress(LuthierError):  # its files are not on this machine
            served = fastest(context, served_share(context, caller, share))
            found[share.target] = engines_of(served, context.inference_client.loaded)
    return found


def authors_of(context: Context, caller: Caller, name: str) -> dict[int, str]:
    """Who has made which revision of a deployment, by the audit log; not of an earlier one of the name."""
    found: dict[int, str] = {}
    for entry in context.audit_log.about(caller.project_id, name, limit=_MAX_ENTRIES):
        # Entries come newest first; older ones are about an earlier deployment of the same name.
        if entry.action == "deployment.deleted":
            break
        number = json.loads(entry.document).get("revision")
        if entry.action.startswith("deployment.") and isinstance(number, int):
            # A gate override is logged for the same revision as the deployment itself; the first entry is enough.
            found.setdefault(number, _name_of(entry.actor))
    return found


def _name_of(actor: str) -> str:
    """Who it was by name: the log has the id of the key or the member before it."""
    identity, _, name = actor.partition(" ")
    # The actor is "ID NAME" or a bare name; a name may contain blanks, so the id decides.
    return name if name and is_id(identity, identity.partition("-")[0]) else actor


def revision_json(revision: Revision) -> dict[str, Any]:
    """A revision as clients see it."""
    # `folder` is a path of this machine, and the digest is about what lies there.
    return revision.model_dump(mode="json", exclude={"shares": {"__all__": {"folder", "weights_sha256"}}})


def _past_gates(
    context: Context, caller: Caller, made: Revision, shares: Sequence[Share], gate: Path | None, override: str | None
) -> Revision:
    """The revision with what the gates say of these shares, and which of all its targets have no evaluation.

    Raises:
        ConflictError: A gate refuses a target and there is no override.
        RequestError: The override is too short, too long or not needed, or the gate cannot be read.
        NotFoundError: There is no such gate file or target.
    """
    passage = pass_gates(context, caller, shares, gate=gate, override=override)
    asked = [one for one in made.shares if one in shares or one.target in made.unjudged]  # who stays beside a canary
    return made.model_copy(update={"gate": passage, "unjudged": unjudged_targets(context, caller, asked)})


def _add(context: Context, caller: Caller, name: str, revision: Revision) -> Deployment:
    made = Deployment(deployment_id=new_id("dep"), project_id=caller.project_id, name=name, revision=revision)
    with context.database.transaction():
        added = context.deployments.add(made)
        for action, facts in _logged(revision):
            record(context, caller, action, name, facts)
    return added


def _revise(context: Context, caller: Caller, current: Deployment, revision: Revision) -> Deployment:
    with context.database.transaction():
        revised = context.deployments.revise(current, revision)
        for action, facts in _logged(revision):
            record(context, caller, action, current.name, facts)
    return revised


def _logged(revision: Revision) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the audit log has of a revision: what was done, and a gate that was overridden for it."""
    shares = {share.target: share.fraction for share in revision.shares}
    document: dict[str, Any] = {"revision": revision.number, "canary": revision.canary, "shares": shares}
    document |= {"unjudged": list(revision.unjudged)} if revision.unjudged else {}
    yield f"deployment.{_AUDIT_ACTIONS.get(revision.kind, revision.kind)}", document
    if (overridden := facts_of_override(revision)) is not None:
        yield "deployment.gate_overridden", overridden


def _current(context: Context, caller: Caller, name: str, expected_revision: int | None) -> Deployment | None:
    """The current deployment; None where the name is still free, and can be one."""
    # An impossible name is not looked up; `_check_name` refuses it below with the rule.
    found = context.deployments.find(caller.project_id, name) if NAME.fullmatch(name) else None
    if found is None:
        if expected_revision:
            raise changed_meanwhile(name, expected_revision, None)
        _check_name(context, name)
        return None
    if expected_revision == 0:
        raise ConflictError(
            f"the deployment {name!r} exists already, at revision {found.revision.number}",
            expected="a name that is free",
            do="open it, then deploy there, or choose another name",
        )
    return _expected(found, expected_revision)


def _expected(found: Deployment, expected_revision: int | None) -> Deployment:
    if expected_revision not in (None, found.revision.number):
        raise changed_meanwhile(found.name, expected_revision or 0, found.revision.number)
    return found


def _check_name(context: Context, name: str) -> None:
    if not NAME.fullmatch(name):
        raise RequestError(
            f"the name {name[:65]!r} for a deployment",
            expected="1 to 64 letters, digits, dots, dashes and underscores, the first a letter or a digit",
            do="choose such a name",
        )
    # A run id or a base model's name is a target by itself: a deployment of that name would shadow it.
    taken = {known.casefold() for known in base_models(context)}
    if is_id(name, "run") or name.casefold() in taken:
        what = "has the form of a run's id" if is_id(name, "run") else "is the name of a base model"
        raise RequestError(
            f"the name {name!r} for a deployment {what}", expected="an unused name", do="choose another name"
        )


def _fraction(fraction: float) -> float:
    if 0 < fraction < 1:
        return fraction
    raise RequestError(f"a fraction of {fraction:g}", expected="a number between 0 and 1, such as 0.1", do="correct it")


def _counts_of(name: str, counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {target: count for (model, target), count in counts.items() if model == name}
