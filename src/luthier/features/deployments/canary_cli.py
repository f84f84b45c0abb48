"""`luthier canary`: how a canary does beside the rest of its deployment, and when it is taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.canary_watch import CanaryRules, CanaryWatch


def canary(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a deployment.")],
    error: Annotated[
        float | None,
        typer.Option("--error", metavar="P", help="Chance that one which is no worse is taken back, over its life."),
    ] = None,
    least_requests: Annotated[
        int | None, typer.Option("--least-requests", metavar="N", help="Of the canary, before anything is said.")
    ] = None,
    rolls_back: Annotated[
        bool | None, typer.Option("--roll-back/--only-tell", help="Whether a worse one is taken back.")
    ] = None,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project it belongs to.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare a canary with the rest of its deployment now, or, with options, change the rules it is held to.

    Failed requests, seconds, refusals, ratings and scores, tested over users at looks that are set beforehand. This
    command only tells; a server that runs looks by itself and takes a worse one back.
    """
    from luthier.features.deployments import canary_release

    with open_context(home) as context:
        caller = caller_of(context, project)
        rules = canary_release.rules_of(context, caller.project_id, name)
        given = {"error": error, "least_requests": least_requests, "rolls_back": rolls_back}
        changes = {key: value for key, value in given.items() if value is not None}
        if changes:
            rules = _changed(rules, changes)
            canary_release.set_rules(context, caller, name, rules)
            document = rules.model_dump(mode="json")
            words = ", ".join(f"{key} {value}" for key, value in document.items())
            return Answer(as_json, document, lambda console: console.print(f"{name}: {words}", soft_wrap=True))
        deployment = context.deployments.get(caller.project_id, name)
        seen = canary_release.last_seen(context, caller, name)
        # Without a running canary the last result is shown; `check_canary` would refuse.
        if deployment.revision.canary is not None or seen is None:
            # A question about the state must not change the traffic.
            seen = canary_release.check_canary(context, caller, name, may_roll_back=False)
    found = seen
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def _changed(rules: CanaryRules, changes: dict[str, Any]) -> CanaryRules:
    from pydantic import ValidationError

    from luthier.core.errors import RequestError
    from luthier.core.records.canary_watch import CanaryRules

    try:
        return CanaryRules.model_validate(rules.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            f"{first['loc'][0]} {first['input']!r}", expected=str(first["msg"]), do="correct the option"
        ) from None


def _show(console: Console, seen: CanaryWatch) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import make_table, visible

    title = f"{seen.name}: canary {seen.canary}, {seen.state}"
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print(visible(seen.sentence), soft_wrap=True)
    if seen.rolled_back_to is not None:
        console.print(f"rolled back by revision {seen.rolled_back_to}")
    if seen.kept_because:
        console.print(visible(f"not rolled back: {seen.kept_because}"), soft_wrap=True)
    table = make_table(["signal", "state", "canary", "rest", "difference (95%)", "p", "needed"], num_text_columns=2)
    for one in seen.signals:
        if one.difference is None:
            table.add_row(one.title, one.state, "", "", "", "", "")
            continue
        gap = f"{one.difference:.3g} ({one.low:.3g} to {one.high:.3g})" + (" times" if one.is_ratio else "")
        table.add_row(
            one.title, one.state, f"{one.canary:.3g}", f"{one.rest:.3g}", gap, f"{one.p_value:.2g}", f"{one.level:.2g}"
        )
    if seen.signals:
        console.print(table)
    for one in seen.signals:
        if one.state == "too early":
            console.print(visible(one.sentence), soft_wrap=True)
    for caution in seen.cautions:
        console.print(visible(caution), soft_wrap=True)
    console.print(f"{seen.num_seen:,} exchanges so far; the next look is at {seen.next_at:,}")
