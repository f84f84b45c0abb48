"""`luthier alerts`: what has changed with deployed models, and who is notified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.alert import Alert, AlertSettings, AlertStatus
    from luthier.platform.home.context import Context
    from luthier.platform.notifications.mails import Mail

_ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project it belongs to.")]


def list_alerts(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Of one model.", show_default="all")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that are closed, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="The newest N.")] = 50,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List open alerts, newest first: what has changed, since when, what shows it, what to do."""
    from luthier.features.monitoring import alerts

    with open_context(home) as context:
        status: AlertStatus | None = None if every else "open"
        project_id = caller_of(context, project).project_id
        found = alerts.list_alerts(context, project_id, model=model, status=status, limit=limit)
        stuck = _stuck(context, project_id)
    document = {"alerts": [one.model_dump(mode="json") for one in found], "mails": _mails(stuck)}
    return Answer(as_json, document, lambda console: _show(console, found, stuck, every=every))


def send_test(project: _ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Send a test message to all receivers of alerts; exit code 1 where one cannot be reached."""
    from luthier.features.monitoring import alerts

    with open_context(home) as context:
        came = alerts.send_test(context, caller_of(context, project))

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import facts

        facts(console, list(came.items()))
        if len(came) == 1:
            console.print("nobody else: name somebody with `luthier alerts settings --email NAME@HOST`, or a webhook")

    return Answer(as_json, came, tell, exit_code=int(any(words.startswith("failed") for words in came.values())))


def settings(
    on: Annotated[bool | None, typer.Option("--on/--off", help="Whether the server looks.", show_default=False)] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="SPAN", help="How often: 30m, 1h.", show_default=False)
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", metavar="SPAN", help="What a look is about: 24h, 7d.", show_default=False)
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option("--watch", metavar="MODEL", help="Look at this one, too. Repeatable.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", metavar="NAME", help="Do not look at it. Repeatable.")
    ] = None,
    email: Annotated[
        list[str] | None, typer.Option("--email", metavar="NAME@HOST", help="Send a mail to. Repeatable.")
    ] = None,
    remove_email: Annotated[
        list[str] | None, typer.Option("--remove-email", metavar="NAME@HOST", help="Send none any more. Repeatable.")
    ] = None,
    open_after: Annotated[
        int | None, typer.Option("--open-after", metavar="N", help="Looks in a row that open.", show_default=False)
    ] = None,
    close_after: Annotated[
        int | None, typer.Option("--close-after", metavar="N", help="Looks in a row that close.", show_default=False)
    ] = None,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show which models are monitored and who is notified; with options, change it."""
    from luthier.features.monitoring import alerts
    from luthier.features.monitoring import loop as monitor_loop

    with open_context(home) as context:
        caller = caller_of(context, project)
        now = alerts.alert_settings(context, caller.project_id)
        changes: dict[str, Any] = {} if on is None else {"is_on": on}
        changes |= _spans(every, window)
        if watch or leave_out:
            named, left = set(watch or ()), set(leave_out or ())
            # Named wins over left out and the other way round: a model is in one of the two lists at most.
            changes["models"] = tuple(sorted((set(now.models) | named) - left))
            changes["left_out"] = tuple(sorted((set(now.left_out) | left) - named))
        if email or remove_email:
            # An address that is added and removed in one command is removed.
            kept = [one for one in (*now.emails, *(email or ())) if one not in (remove_email or ())]
            changes["emails"] = tuple(dict.fromkeys(kept))
        rule = {"open_after": open_after, "close_after": close_after}
        if any(value is not None for value in rule.values()):
            changes["rule"] = now.rule.model_dump() | {name: v for name, v in rule.items() if v is not None}
        after = alerts.change_settings(context, caller, changes) if changes else now
        models = monitor_loop.monitored_models(context, caller.project_id, after)
        has_server = context.settings.smtp is not None
    document = after.model_dump(mode="json") | {"watched": models}
    return Answer(as_json, document, lambda console: _show_settings(console, after, models, has_server=has_server))


def check(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Which models.", show_default="all that are watched")
    ] = None,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Check watched models once, now: for a home without a server. Exit code 1 where a check failed."""
    from luthier.features.monitoring import loop as monitor_loop
    from luthier.platform.notifications import mails

    with open_context(home) as context:
        project_id = caller_of(context, project).project_id
        chosen = models or monitor_loop.monitored_models(context, project_id)
        told = [alert for model in chosen for alert in monitor_loop.check_model(context, project_id, model)]
        # A home without a server has no thread that would send them.
        mails.send_due(context)
        states = {model: monitor_loop.state_of(context, project_id, model) for model in chosen}
        problems = {model: state.problem for model, state in states.items() if state is not None and state.problem}
        stuck = _stuck(context, project_id)
    changed = [one.model_dump(mode="json") for one in told]
    document = {"models": chosen, "changed": changed, "problems": problems, "mails": _mails(stuck)}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        for model, problem in problems.items():
            console.print(f"the look at {visible(model)} failed: {visible(problem)}", soft_wrap=True)
        if not chosen:
            console.print("nothing is watched: deploy a model, or name one")
        elif told:
            _show(console, told, stuck, every=True)
        elif not problems:
            console.print(f"looked at {visible(', '.join(chosen))}: no alert has opened or closed", soft_wrap=True)

    return Answer(as_json, document, tell, exit_code=int(bool(problems)))


def _spans(every: str | None, window: str | None) -> dict[str, int]:
    from luthier.platform.home.duration import parse_duration

    # Whole minutes and hours: rounding down gives 0 for "30s", which the settings then refuse.
    spans = {} if every is None else {"every_minutes": int(parse_duration(every, option="--every") // 60)}
    return spans if window is None else spans | {"window_hours": int(parse_duration(window, option="--window") // 3600)}


def _stuck(context: Context, project_id: str) -> list[Mail]:
    from luthier.platform.notifications import mails

    # `last_answer` is set by a failed attempt; mails that only wait for their first have none.
    return [mail for mail in mails.list_mails(context, project_id) if mail.last_answer]


def _mails(stuck: Sequence[Mail]) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json") for one in stuck]


def _show(console: Console, found: Sequence[Alert], stuck: Sequence[Mail], *, every: bool) -> None:
    from luthier.features.monitoring.alert_format import text_of
    from luthier.platform.cli.console import visible

    if not found:
        console.print("no alert yet" if every else "no alert is open")
    for alert in found:
        console.print(f"{visible(alert.model)}  {visible(text_of([alert]))}", soft_wrap=True, highlight=False)
    for mail in stuck:
        state = "was given up" if mail.status == "failed" else "waits to be tried again"
        line = f"a mail to {', '.join(mail.to)} {state}: {mail.last_answer}"
        console.print(visible(line), soft_wrap=True, highlight=False)


def _show_settings(console: Console, now: AlertSettings, models: Sequence[str], *, has_server: bool) -> None:
    from luthier.platform.cli.console import facts

    looks = f"every {now.every_minutes} min at the last {now.window_hours} h" if now.is_on else "off"
    rows = [
        ("looks", looks),
        ("models", ", ".join(models) or "none: nothing is deployed, and none is named with --watch"),
        ("an alert opens", f"after {now.rule.open_after} changed in a row"),
        ("an alert closes", f"after {now.rule.close_after} steady in a row; twice as many each time it comes back"),
        ("mails go to", ", ".join(now.emails) or "nobody"),
    ]
    if now.left_out:
        rows.insert(2, ("left out", ", ".join(now.left_out)))
    facts(console, rows)
    if now.emails and not has_server:
        console.print("LUTHIER_SMTP is not set here: the server needs it to send mails", soft_wrap=True)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "list": list_alerts,
    "test": send_test,
    "settings": settings,
}
