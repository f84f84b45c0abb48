"""Use case: let only those models answer that their gates let through, or whom somebody answers for with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError
from luthier.core.records.deployment import Share
from luthier.core.results.release_gate import MAX_REASON_CHARACTERS, MIN_REASON_CHARACTERS, CheckedTarget, GatePassage
from luthier.features.release_gates.service import gates_of, outcome_of_target
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.service import make_audit_event
from luthier.platform.home.context import Context

_MAX_TOLD = 20


def pass_gates(
    context: Context, caller: Caller, shares: Sequence[Share], *, gate: Path | None, override: str | None
) -> GatePassage | None:
    """What the gates say of targets that are to answer; None where there is no gate.

    Args:
        shares: The targets.
        gate: A file of rules besides the project's own.
        override: Why they are to answer although a gate refuses them.

    Raises:
        ConflictError: A gate refuses a target and there is no override.
        RequestError: An override that is too short or too long, or that nothing needs; a gate that cannot be read.
        NotFoundError: No such gate file or target.
    """
    files = gates_of(context, caller.project_id, gate)
    reason = None if override is None else _reason(override)
    if not files:
        if reason is not None:
            raise RequestError(
                "a reason to override a gate, but no gate holds here",
                expected="a gate: gate.yaml in the home, or one that is named",
                do="leave the reason out, or name a gate with --gate",
            )
        return None
    checked = tuple(
        CheckedTarget(target=share.target, file=file.name, outcome=outcome_of_target(context, caller, share, file))
        # Each target passes each gate: a split with one failing target is refused as a whole.
        for share in shares
        for file in files
    )
    found = GatePassage(checked=checked)
    if found.passed:
        return found
    if reason is None:
        raise _refused(found)
    return found.model_copy(update={"override": reason})


def override_event(caller: Caller, name: str, revision: int, passage: GatePassage | None) -> tuple[AuditEvent, ...]:
    """What the audit log is to hold of a gate that was overridden; nothing where none was."""
    if passage is None or passage.override is None:
        return ()
    document = {
        "revision": revision,
        "reason": passage.override,
        # Binds the log entry to the full outcome, of which only the first 20 failures are copied here.
        "outcome_sha256": passage.sha256(),
        "targets": sorted({one.target for one in passage.checked if not one.outcome.passed}),
        "num_failed": len(passage.failed),
        "failed": list(passage.failed[:_MAX_TOLD]),
    }
    return (make_audit_event(caller, "deployment.gate_overridden", name, document),)


def _reason(text: str) -> str:
    # Folded first, so that blanks do not count as characters of a reason.
    reason = " ".join(text.split())
    if not MIN_REASON_CHARACTERS <= len(reason) <= MAX_REASON_CHARACTERS:
        raise RequestError(
            f"a reason of {len(reason)} characters to override the gate",
            expected=f"{MIN_REASON_CHARACTERS} to {MAX_REASON_CHARACTERS:,} characters that a colleague understands "
            "in a year: it stays in the audit log",
            do="say why this model is to answer although the gate refuses it",
        )
    return reason


def _refused(found: GatePassage) -> ConflictError:
    targets = sorted({one.target for one in found.checked if not one.outcome.passed})
    num_rules = sum(len(one.outcome.outcomes) for one in found.checked)
    head = f"the gate refuses {', '.join(targets)}: {len(found.failed)} of {num_rules} rules are not met"
    told = [*found.failed[:_MAX_TOLD]]
    if len(found.failed) > _MAX_TOLD:
        told.append(f"and {len(found.failed) - _MAX_TOLD} more")
    return ConflictError(
        "\n    ".join([f"{head}:", *told]),
        expected="a model that meets every rule",
        do="judge it by what is missing, train a better one, or override the gate with a reason for the audit log",
    )
