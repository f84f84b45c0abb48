"""`luthier monitor` and `luthier alerts`: what has changed with deployed models, and who is notified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    Answer,
    HomeOption,
    JsonOption,
    PageOption,
    ProjectOption,
    caller_of,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.monitoring import Alert, AlertSettings, AlertStatus, WatchSettings
    from luthier.features.monitoring.service import MonitorResult
    from luthier.platform.home.context import Context
    from luthier.platform.notifications.mails import Mail

_NONE = "none"
_MAX_HOURS = 24 * 366
_STYLES = {"changed": "bold red", "steady": "green", "unknown": "dim"}


def monitor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name in requests, usually a deployment.")],
    since: Annotated[str, typer.Option("--since", metavar="SPAN", help="How far to look back: 24h, 7d.")] = "7d",
    html: PageOption = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="PATH", help="Documents that answers may cite. Saved.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Rows that it was trained on, if not those of its run. Saved."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group", metavar="NAME=REGEX", help="A group of people, recognised by their prompts. Repeatable. Saved."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="ENGINE", help="A model that scores samples of answers; none: turn off. Saved."
        ),
    ] = None,
    judged: Annotated[
        int | None, typer.Option("--judged", min=20, max=1000, metavar="N", help="Number of answers to score. Saved.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="FILE", help="A suite that the server also evaluates; none: turn off. Saved."),
    ] = None,
    suite_every: Annotated[
        str | None,
        typer.Option("--suite-every", metavar="SPAN", help="How often the suite is evaluated: 24h, 7d. Saved."),
    ] = None,
    normal_now: Annotated[
        bool, typer.Option("--normal-now", help="Treat the traffic from now on as normal: compare only with it. Saved.")
    ] = False,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project of the model.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Report on a deployed model: speed, errors, cost, prompts, answers, quality, groups; each compared with before."""
    from luthier.features.monitoring import scheduled_suites
    from luthier.features.monitoring import scheduled_suites as watch_settings
    from luthier.features.monitoring import service as monitoring
    from luthier.platform.home.duration import parse_duration

    seconds = parse_duration(since, option="--since")
    with open_context(home) as context:
        project_id, now = context.access.project(project).project_id, context.access.now()
        if corpus or data or group or normal_now or judge or judged or suite or suite_every:
            kept = watch_settings.model_settings(context, project_id, model)
            # Options that are left out keep what is stored: each command changes only what it names.
            changed = _changed(kept, corpus, data, group or [], now if normal_now else kept.normal_since)
            changed = _with_suite(_with_judge(changed, judge, judged), suite, suite_every)
            monitoring.set_model_settings(context, project_id, model, changed)
        found = monitoring.look(context, project_id, model, since=now - seconds, html=html)
        settings = watch_settings.model_settings(context, project_id, model)
        job_id = scheduled_suites.state_of(context, project_id, model).job_id
    document = found.report.model_dump(mode="json") | {"page": None if found.page is None else str(found.page)}
    document |= {"settings": settings.model_dump(mode="json"), "suite_job_id": job_id}
    return Answer(as_json, document, lambda console: _show_check(console, found, settings, job_id))


def _changed(
    kept: WatchSettings, corpus: Path | None, data: Path | None, groups: list[str], normal_since: float
) -> WatchSettings:
    from luthier.core.errors import RequestError

    named = {}
    for text in groups:
        name, found, pattern = text.partition("=")
        if not found or not pattern:
            raise RequestError(
                f"--group {text[:80]!r}",
                expected="a name, = and a regular expression",
                do="write --group women='she|her'",
            )
        named[name] = pattern
    return kept.model_copy(
        update={
            # Absolute: the server that reads it later has another working directory.
            "corpus": kept.corpus if corpus is None else str(corpus.absolute()),
            "data": kept.data if data is None else str(data.absolute()),
            "groups": named or kept.groups,
            "normal_since": normal_since,
        }
    )


def _with_judge(kept: WatchSettings, judge: str | None, num_judged: int | None) -> WatchSettings:
    changed: dict[str, object] = {"num_judged": num_judged or kept.num_judged}
    if judge is not None:
        # Who is at the machine may name any judge, which then stays whatever is configured.
        changed |= {"judge": None if judge == _NONE else judge, "judge_is_configured": False}
    return kept.model_copy(update=changed)


def _with_suite(kept: WatchSettings, suite: str | None, every: str | None) -> WatchSettings:
    from luthier.core.errors import RequestError
    from luthier.platform.home.duration import parse_duration

    chosen = kept.suite if suite is None else None if suite == _NONE else str(Path(suite).absolute())
    hours = kept.suite_every_hours if every is None else parse_duration(every, option="--suite-every") / 3600
    if not 1 <= hours <= _MAX_HOURS:
        raise RequestError(f"--suite-every {every}", expected="from 1h to 366d", do="write for example 24h or 7d")
    of_project = kept.suite_file_id if suite is None else None  # one suite, from the page or from here
    return kept.model_copy(update={"suite": chosen, "suite_file_id": of_project, "suite_every_hours": hours})


def _show_check(console: Console, found: MonitorResult, settings: WatchSettings, job_id: str | None) -> None:
    from rich.text import Text

    from luthier.ml.drift.report.page import headline, moment, value_of
    from luthier.platform.cli.console import make_table, visible

    report = found.report
    console.print(visible(f"{report.model}: {headline(report)}"), soft_wrap=True)
    console.print(
        f"{moment(report.since)} to {moment(report.until)}: {counted(report.num_exchanges, 'exchange')}", soft_wrap=True
    )
    for caution in report.cautions:
        console.print(visible(f"note: {caution}"), soft_wrap=True)
    table = make_table(["signal", "state", "now", "95%", "before"], num_text_columns=2)
    for one in report.signals:
        ends = "" if one.low is None else f"{value_of(one, one.low)} to {value_of(one, one.high)}"
        state = Text(one.state, style=_STYLES[one.state])
        table.add_row(visible(one.title), state, value_of(one, one.value), ends, value_of(one, one.reference))
    console.print(table)
    for one in report.signals:
        if one.state == "changed":
            since = "" if one.since is None else f" First seen on {moment(one.since)}."
            console.print(Text(f"\n{visible(one.title)}", style="bold"), soft_wrap=True)
            console.print(visible(f"  {one.sentence}{since} {one.do}".rstrip()), soft_wrap=True)
            if one.examples:
                console.print(visible(f"  see {', '.join(one.examples)}"), soft_wrap=True)
    if settings.suite is not None:
        last = f"last by {job_id}" if job_id else "not begun yet: a server begins it at its next look"
        line = f"\nsuite  {settings.suite}, every {settings.suite_every_hours:g} hours; {last}"
        console.print(visible(line), soft_wrap=True)
    if found.page is not None:
        console.print(f"\npage   {visible(str(found.page))}", soft_wrap=True)


def list_alerts(
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only alerts of this model.", show_default="all")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Include closed alerts.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show only the newest N.")] = 50,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List open alerts, newest first: what has changed, since when, the evidence, and what to do."""
    from luthier.features.monitoring import alerts

    with open_context(home) as context:
        status: AlertStatus | None = None if every else "open"
        project_id = caller_of(context, project).project_id
        found = alerts.list_alerts(context, project_id, model=model, status=status, limit=limit)
        stuck = _stuck(context, project_id)
    document = {"alerts": [one.model_dump(mode="json") for one in found], "mails": _mails(stuck)}
    return Answer(as_json, document, lambda console: _show_alert(console, found, stuck, every=every))


def send_test(project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Send a test message to all receivers of alerts; exit code 1 if one cannot be reached."""
    from luthier.features.monitoring import alerts

    with open_context(home) as context:
        came = alerts.send_test(context, caller_of(context, project))

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import facts

        facts(console, list(came.items()))
        if len(came) == 1:
            line = "no one else: add an address with `luthier alerts settings --email NAME@HOST`, or a webhook"
            console.print(in_home(line))

    return Answer(as_json, came, tell, exit_code=int(any(words.startswith("failed") for words in came.values())))


OpenAfterOption = Annotated[
    int | None,
    typer.Option(
        "--open-after", metavar="N", help="Number of changed checks in a row that open an alert.", show_default=False
    ),
]
CloseAfterOption = Annotated[
    int | None,
    typer.Option(
        "--close-after", metavar="N", help="Number of steady checks in a row that close an alert.", show_default=False
    ),
]


def settings(
    on: Annotated[
        bool | None,
        typer.Option("--on/--off", help="Whether the server checks models on schedule.", show_default=False),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="SPAN", help="How often models are checked: 30m, 1h.", show_default=False),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="SPAN", help="The time window of a check: 24h, 7d.", show_default=False),
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option("--watch", metavar="MODEL", help="Check this model, too. Repeatable.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", metavar="NAME", help="Do not check this model. Repeatable.")
    ] = None,
    email: Annotated[
        list[str] | None,
        typer.Option("--email", metavar="NAME@HOST", help="Send alerts to this mail address. Repeatable."),
    ] = None,
    remove_email: Annotated[
        list[str] | None,
        typer.Option("--remove-email", metavar="NAME@HOST", help="Stop sending alerts to this address. Repeatable."),
    ] = None,
    open_after: OpenAfterOption = None,
    close_after: CloseAfterOption = None,
    project: ProjectOption = "default",
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
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="The models to check.", show_default="all monitored models"),
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Check monitored models once, now, for a home without a server. Exit code 1 if a check failed."""
    from luthier.features.monitoring import loop as monitor_loop
    from luthier.platform.notifications import mails

    with open_context(home) as context:
        project_id = caller_of(context, project).project_id
        chosen = models or monitor_loop.monitored_models(context, project_id)
        found = [alert for model in chosen for alert in monitor_loop.check_model(context, project_id, model)]
        # A home without a server has no thread that would send them.
        mails.send_due(context)
        states = {model: monitor_loop.state_of(context, project_id, model) for model in chosen}
        problems = {model: state.problem for model, state in states.items() if state is not None and state.problem}
        stuck = _stuck(context, project_id)
    changed = [one.model_dump(mode="json") for one in found]
    document = {"models": chosen, "changed": changed, "problems": problems, "mails": _mails(stuck)}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        for model, problem in problems.items():
            console.print(f"the check of {visible(model)} failed: {visible(problem)}", soft_wrap=True)
        if not chosen:
            console.print("nothing is monitored: deploy a model, or name one")
        elif found:
            _show_alert(console, found, stuck, every=True)
        elif not problems:
            console.print(f"checked {visible(', '.join(chosen))}: no alert opened or closed", soft_wrap=True)

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


def _show_alert(console: Console, found: Sequence[Alert], stuck: Sequence[Mail], *, every: bool) -> None:
    from luthier.features.monitoring.alerts import text_of
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

    looks = f"every {now.every_minutes} min, over the last {now.window_hours} h" if now.is_on else "off"
    rows = [
        ("looks", looks),
        ("models", ", ".join(models) or "none: nothing is deployed, and none is named with --watch"),
        ("an alert opens", f"after {now.rule.open_after} changed in a row"),
        ("an alert closes", f"after {now.rule.close_after} steady in a row; twice as many each time it comes back"),
        ("mails go to", ", ".join(now.emails) or "no one"),
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
