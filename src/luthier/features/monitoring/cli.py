"""`luthier monitor MODEL`: has anything changed in what a model is asked and answers, since when, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import HomeOption, JsonOption, PageOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.monitor_settings import WatchSettings
    from luthier.features.monitoring.service import MonitorResult

_NONE = "none"
_MAX_HOURS = 24 * 366
_STYLES = {"changed": "bold red", "steady": "green", "unknown": "dim"}


def monitor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As clients ask for it: a deployment, mostly.")],
    since: Annotated[str, typer.Option("--since", metavar="SPAN", help="How far to look back: 24h, 7d.")] = "7d",
    html: PageOption = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="PATH", help="Documents that answers may cite. Kept.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Rows it was trained on, if not its run's. Kept.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME=REGEX", help="Prompts of a group of people. Repeatable, kept."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="ENGINE", help="A model that scores samples of answers; none: no more. Kept."),
    ] = None,
    judged: Annotated[
        int | None, typer.Option("--judged", min=20, max=1000, metavar="N", help="Answers that are scored. Kept.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="FILE", help="Have the server judge it by this, too; none: no more. Kept."),
    ] = None,
    suite_every: Annotated[
        str | None, typer.Option("--suite-every", metavar="SPAN", help="How often: 24h, 7d. Kept.")
    ] = None,
    normal_now: Annotated[
        bool, typer.Option("--normal-now", help="From now on, compare with nothing that was before. Kept.")
    ] = False,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project whose model it is.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Look at a model: speed, errors, cost, prompts, answers, quality, groups; each against what it was before."""
    from luthier.features.monitoring import scheduled_suites
    from luthier.features.monitoring import service as monitoring
    from luthier.features.monitoring import settings as watch_settings
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
    return Answer(as_json, document, lambda console: _show(console, found, settings, job_id))


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
    chosen = kept.judge if judge is None else None if judge == _NONE else judge
    return kept.model_copy(update={"judge": chosen, "num_judged": num_judged or kept.num_judged})


def _with_suite(kept: WatchSettings, suite: str | None, every: str | None) -> WatchSettings:
    from luthier.core.errors import RequestError
    from luthier.platform.home.duration import parse_duration

    chosen = kept.suite if suite is None else None if suite == _NONE else str(Path(suite).absolute())
    hours = kept.suite_every_hours if every is None else parse_duration(every, option="--suite-every") / 3600
    if not 1 <= hours <= _MAX_HOURS:
        raise RequestError(f"--suite-every {every}", expected="from 1h to 366d", do="write for example 24h or 7d")
    return kept.model_copy(update={"suite": chosen, "suite_every_hours": hours})


def _show(console: Console, found: MonitorResult, settings: WatchSettings, job_id: str | None) -> None:
    from rich.text import Text

    from luthier.ml.drift.report.page import headline, moment, value_of
    from luthier.platform.cli.console import make_table, visible

    report = found.report
    console.print(visible(f"{report.model}: {headline(report)}"), soft_wrap=True)
    console.print(
        f"{moment(report.since)} to {moment(report.until)}: {report.num_exchanges:,} exchanges", soft_wrap=True
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
