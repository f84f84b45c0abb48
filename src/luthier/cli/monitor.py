"""`luthier monitor MODEL`: has anything changed in what a model is asked and answers, since when, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.answer import Answer
from luthier.cli.opening import open_context
from luthier.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.watch_settings import WatchSettings
    from luthier.service.monitoring import Looked

_NO_JUDGE = "none"
_STYLES = {"changed": "bold red", "steady": "green", "unknown": "dim"}


def monitor(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As clients ask for it: a deployment, mostly.")],
    since: Annotated[str, typer.Option("--since", metavar="SPAN", help="How far to look back: 24h, 7d.")] = "7d",
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots.")] = None,
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
    normal_now: Annotated[
        bool, typer.Option("--normal-now", help="From now on, compare with nothing that was before. Kept.")
    ] = False,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project whose model it is.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Look at a model: speed, errors, cost, prompts, answers, quality, groups; each against what it was before."""
    from luthier.core.duration import parse_duration
    from luthier.service import monitoring

    seconds = parse_duration(since, option="--since")
    with open_context(home) as context:
        project_id, now = context.access.project(project).project_id, context.access.now()
        if corpus or data or group or normal_now or judge or judged:
            kept = monitoring.model_settings(context, project_id, model)
            changed = _changed(kept, corpus, data, group or [], now if normal_now else kept.normal_since)
            changed = _with_judge(changed, judge, judged)
            monitoring.set_model_settings(context, project_id, model, changed)
        found = monitoring.look(context, project_id, model, since=now - seconds, html=html)
    document = found.report.model_dump(mode="json") | {"page": None if found.page is None else str(found.page)}
    return Answer(as_json, document, lambda console: _show(console, found))


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
            "corpus": kept.corpus if corpus is None else str(corpus.absolute()),
            "data": kept.data if data is None else str(data.absolute()),
            "groups": named or kept.groups,
            "normal_since": normal_since,
        }
    )


def _with_judge(kept: WatchSettings, judge: str | None, num_judged: int | None) -> WatchSettings:
    chosen = kept.judge if judge is None else None if judge == _NO_JUDGE else judge
    return kept.model_copy(update={"judge": chosen, "num_judged": num_judged or kept.num_judged})


def _show(console: Console, found: Looked) -> None:
    from rich.text import Text

    from luthier.cli.console import make_table, visible
    from luthier.monitor.report.page import headline, moment, value_of

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
    if found.page is not None:
        console.print(f"\npage   {visible(str(found.page))}", soft_wrap=True)
