"""Whether release gates let targets answer, and the reason of whoever overrides them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError
from luthier.core.records.deployment import Revision, Share
from luthier.core.results.release_gate import MAX_REASON_CHARACTERS, MIN_REASON_CHARACTERS, CheckedTarget, GatePassage
from luthier.features.release_gates.service import gates_of, outcome_of_target
from luthier.platform.home.context import Context

_MAX_SHOWN: Final = 20


def pass_gates(
    context: Context, caller: Caller, shares: Sequence[Share], *, gate: Path | None, override: str | None
) -> GatePassage | None:
    """What the gates say of targets that are to answer; None where there is no gate.

    Args:
        context, caller: The home, and whose project it is.
        shares: The targets.
        gate: A file of rules in addition to the project's.
        override: Why they are to answer although a gate refuses them.

    Raises:
        ConflictError: A gate refuses a target and there is no override.
        RequestError: An override that is too short or too long, or that nothing needs; a gate that cannot be read.
        NotFoundError: No such gate file or target.
    """
    reason = None if override is None else _reason(override)
    if not (files := gates_of(context, caller.project_id, gate)):
        if reason is not None:
            raise RequestError(
                "a reason to override a gate, but no gate applies here",
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
    if (found := GatePassage(checked=checked)).passed:
        return found
    if reason is None:
        raise _refused(found)
    return found.model_copy(update={"override": reason})


def facts_of_override(revision: Revision) -> dict[str, Any] | None:
    """What the audit log has of a gate that was overridden; None where none was."""
    if (passage := revision.gate) is None or passage.override is None:
        return None
    return {
        "revision": revision.number,
        "reason": passage.override,
        # Binds the log entry to the full outcome, of which only the first 20 failures are copied here.
        "outcome_sha256": passage.sha256(),
        "targets": sorted({one.target for one in passage.checked if not one.outcome.passed}),
        "num_failed": len(passage.failed),
        "failed": list(passage.failed[:_MAX_SHOWN]),
    }


def _reason(text: str) -> str:
    # Folded first, so that blanks do not count as characters of a reason.
    reason = " ".join(text.split())
    if not MIN_REASON_CHARACTERS <= len(reason) <= MAX_REASON_CHARACTERS:
        raise RequestError(
            f"a reason of {len(reason)} characters to override the gate",
            expected=f"{MIN_REASON_CHARACTERS} to {MAX_REASON_CHARACTERS:,} characters that a colleague still "
            "understands in a year: the audit log keeps it",
            do="write why this model is deployed although the gate refuses it",
        )
    return reason


def _refused(found: GatePassage) -> ConflictError:
    targets = sorted({one.target for one in found.checked if not one.outcome.passed})
    num_rules = sum(len(one.outcome.outcomes) for one in found.checked)
    head = f"the gate refuses {', '.join(targets)}: {len(found.failed)} of {num_rules} rules are not met"
    lines = [*found.failed[:_MAX_SHOWN]]
    if len(found.failed) > _MAX_SHOWN:
        lines.append(f"and {len(found.failed) - _MAX_SHOWN} more")
    return ConflictError(
        "\n    ".join([f"{head}:", *lines]),
        expected="a model that meets every rule",
        do="evaluate what is missing, train a better model, or override the gate with a reason for the audit log",
    )
