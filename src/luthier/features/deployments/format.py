"""Deployments as text and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from luthier.core.access import project_option
from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.console import facts, make_table, visible
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.deployment import Deployment, Revision
    from luthier.features.deployments.service import DeploymentView
    from luthier.features.serving.engine_choice import EngineDecision

_BAR_CELLS = 20
_WORDS = {
    "deploy": "deployed",
    "canary": "canary",
    "split": "split",
    "promote": "promoted",
    "rollback": "rolled back",
}


def show_change(console: Console, made: Deployment, project: str, engines: Mapping[str, EngineDecision]) -> None:
    """The new revision of a deployment, and possible next steps.

    Args:
        console: Where it is printed.
        made: The deployment.
        project: Its project, as the command named it.
        engines: How each target is served, where that was requested.
    """
    revision, of = made.revision, f"{made.name}{project_option(project)}"
    title = f"{made.name} is at revision {revision.number} ({_WORDS[revision.kind]})"
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    _show_shares(console, revision, {})
    _show_gate(console, revision)
    _show_unjudged(console, revision)
    for target, decision in engines.items():
        words = f"engine of {target}: {decision.served.engine} ({decision.reason})"
        console.print(Text(visible(words)), soft_wrap=True)
    if revision.canary is not None:
        console.print(in_home(f"Next: luthier promote {of}, or luthier rollback {of}"), soft_wrap=True)
    elif revision.number == 1:
        line = f'Ask it as model "{made.name}" of a server of this home: luthier up'
        console.print(in_home(line), soft_wrap=True)
    elif revision.before is not None:
        console.print(in_home(f"Back: luthier rollback {of}"), soft_wrap=True)


def _show_unjudged(console: Console, revision: Revision) -> None:
    from luthier.features.release_gates.service import remedy

    if revision.unjudged:
        console.print(Text(visible(in_home(f"warning: {remedy(revision.unjudged)}")), style="yellow"), soft_wrap=True)


def show_all(console: Console, found: Sequence[DeploymentView]) -> None:
    """One line for each target of each deployment."""
    if not found:
        console.print(in_home("no deployments yet: make one with `luthier deploy RUN --as NAME`"))
        return
    table = make_table(["name", "target", "", "users", "requests", "revision", "since (UTC)"], num_text_columns=3)
    for view in found:
        revision = view.deployment.revision
        for number, share in enumerate(revision.shares):
            is_first = number == 0
            table.add_row(
                Text(view.deployment.name, style="bold") if is_first else "",
                visible(share.target),
                "canary" if share.target == revision.canary else "",
                _percent(share.fraction),
                f"{view.num_requests.get(share.target, 0):,}",
                str(revision.number) if is_first else "",
                utc(revision.created_at) if is_first else "",
            )
    console.print(table)


def show_one(console: Console, view: DeploymentView) -> None:
    """A deployment, how its traffic is shared out, what answers it, and its history."""
    from luthier.features.serving.models import describe_engines

    made = view.deployment
    facts(
        console,
        [
            ("name", made.name),
            ("made", f"{utc(made.created_at)} UTC"),
            ("revision", f"{made.revision.number}, {_WORDS[made.revision.kind]} {utc(made.revision.created_at)} UTC"),
        ],
    )
    console.print()
    _show_shares(console, made.revision, view.num_requests)
    for target, engines in view.engines.items():
        console.print(Text(visible(f"  engine of {target}: {describe_engines(engines)}")), soft_wrap=True)
    _show_gate(console, made.revision)
    _show_unjudged(console, made.revision)
    table = make_table(["revision", "", "goes to", "when (UTC)", "back to"], num_text_columns=4)
    for one in view.history:
        is_now = one.number == made.revision.number
        goes_to = ", ".join(f"{visible(share.target)} {_percent(share.fraction)}" for share in one.shares)
        back = "" if one.before is None else str(one.before)
        table.add_row(f"{one.number}", _WORDS[one.kind], goes_to, utc(one.created_at), back, style="bold" * is_now)
    console.print(table)


def _show_shares(console: Console, revision: Revision, num_requests: dict[str, int]) -> None:
    width = max(len(visible(share.target)) for share in revision.shares)
    for share in revision.shares:
        # A canary of 1% still gets one cell.
        filled = max(1, round(share.fraction * _BAR_CELLS))
        is_canary = share.target == revision.canary
        line = Text.assemble(
            f"  {visible(share.target):<{width}}  ",
            ("█" * filled, "yellow" if is_canary else "green"),
            ("░" * (_BAR_CELLS - filled), "dim"),
            f" {_percent(share.fraction):>6} of users",
            " (canary)" if is_canary else "",
        )
        if num_requests:
            line.append(f", {counted(num_requests.get(share.target, 0), 'request')}")
        console.print(line, soft_wrap=True)


def _show_gate(console: Console, revision: Revision) -> None:
    """The result of the gates for the revision's targets, in one line, and each rule that was not met."""
    gate = revision.gate
    if gate is None:
        return
    num_rules = sum(len(one.outcome.outcomes) for one in gate.checked)
    if gate.passed:
        console.print(f"  gate: {counted(num_rules, 'rule')} met", soft_wrap=True)
        return
    console.print(Text(f"  gate: overridden, {len(gate.failed):,} of {num_rules:,} rules not met", style="yellow"))
    for sentence in gate.failed:
        console.print(Text(f"    {visible(sentence)}"), soft_wrap=True)
    console.print(Text(f"    reason: {visible(gate.override or '')}"), soft_wrap=True)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}%"
