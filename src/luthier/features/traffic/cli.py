"""`luthier traffic`: requests and answers of deployed models, and how much of them is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.records.logging_mode import MOST_DAYS_KEPT, LoggingMode
from luthier.core.text.counted import counted
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, caller_of, open_context
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.traffic import Exchange, TrafficPolicy
    from luthier.features.traffic.service import TrafficSummary

_ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="Name or id of the project.")]
_KEEPS: dict[LoggingMode, str] = {
    "off": "nothing",
    "metadata": "times, sizes, user and outcome; no texts",
    "sampled": "the text of a share, metadata of all",
    "full": "the text of all",
}


def policy(
    keep: Annotated[
        LoggingMode | None, typer.Option("--keep", help="; ".join(f"{name}: {text}" for name, text in _KEEPS.items()))
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            "--fraction", metavar="F", help="The fraction of requests whose text `sampled` keeps, such as 0.1."
        ),
    ] = None,
    mask: Annotated[
        bool | None, typer.Option("--mask/--no-mask", help="Mask personal data and secrets before text is stored.")
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option("--keep-days", metavar="N", min=1, max=MOST_DAYS_KEPT, help="Delete requests after N days."),
    ] = None,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show what is stored of a project's traffic; with options, change it from now on.

    Running servers apply a change within seconds. What is already stored stays until its days are over.
    """
    from luthier.core.errors import RequestError
    from luthier.core.records.traffic import TrafficPolicy
    from luthier.features.traffic.policy import set_traffic_policy, traffic_policy

    # None is "not given"; --no-mask is a value.
    given = {"keep": keep, "fraction": fraction, "mask_personal_data": mask, "keep_days": keep_days}
    changes = {name: value for name, value in given.items() if value is not None}
    if fraction is not None and not 0 < fraction <= 1:
        raise RequestError(f"--fraction {fraction:g}", expected="above 0, at most 1", do="write for example 0.1")
    with open_context(home) as context:
        caller = caller_of(context, project)
        now = traffic_policy(context, caller.project_id)
        if changes:
            # Built again instead of copied with changes, so that the whole is validated.
            now = set_traffic_policy(context, caller, TrafficPolicy(**(now.model_dump() | changes)))
    return Answer(as_json, now.model_dump(mode="json"), lambda console: _show_policy(console, now))


def list_exchanges(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Only requests to this model or deployment.", show_default="all"),
    ] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="How far to look back: 7d, 12h, 30m.")] = "7d",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Show the newest N.")] = 20,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the newest exchanges without their text, with the number stored and the number lost."""
    from luthier.features.traffic.service import newest, summary
    from luthier.platform.home.duration import parse_duration

    seconds = parse_duration(since, option="--since")
    with open_context(home) as context:
        project_id = context.access.project(project).project_id
        # The database's clock, by which the exchanges were stamped, not that of this machine.
        begin = context.access.now() - seconds
        found = newest(context, project_id, model=model, since=begin, limit=limit)
        counts = summary(context, project_id, model=model, since=begin)
    document = counts.model_dump(mode="json") | {"exchanges": [_document(one) for one in found]}
    return Answer(as_json, document, lambda console: _show_all(console, found, counts))


def show(
    exchange_id: Annotated[str, typer.Argument(metavar="ID", help="The id of an answer, such as chatcmpl-...")],
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show one exchange with its stored text."""
    from luthier.features.traffic.service import exchange

    with open_context(home) as context:
        found = exchange(context, context.access.project(project).project_id, exchange_id)
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def forget_user(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's name in requests.")],
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Delete all requests of a user, with the feedback on them and their entries in the review queue.

    Their later requests are stored as the policy says.
    """
    from luthier.features.traffic.files import forget_user as forget

    with open_context(home) as context:
        caller = caller_of(context, project)
        found = forget(context, caller, user)
    words = f"deleted: {counted(found.num_exchanges, 'exchange')}"
    if found.num_stored_completions:
        words += f", {counted(found.num_stored_completions, 'stored chat completion')}"
    if found.num_stored_responses:
        words += f", {counted(found.num_stored_responses, 'stored response')}"
    if found.num_conversations:
        words += f", {counted(found.num_conversations, 'conversation')}"
    if found.unreadable:
        words += f"; {counted(len(found.unreadable), 'file')} could not be read: {', '.join(found.unreadable)}"
    # A script that must prove a deletion has to notice that something may be left.
    exit_code = 1 if found.unreadable else 0
    show_it = lambda console: console.print(words, soft_wrap=True)  # noqa: E731
    return Answer(as_json, found.model_dump(mode="json"), show_it, exit_code)


def _document(one: Exchange) -> dict[str, Any]:
    return one.model_dump(mode="json", exclude={"messages", "answer"})


def _show_policy(console: Console, now: TrafficPolicy) -> None:
    from luthier.platform.cli.console import facts

    rows = [("kept", f"{now.keep}: {_KEEPS[now.keep]}")]
    if now.keep == "sampled":
        rows.append(("part", f"{now.fraction:.1%}"))
    if now.keep in ("sampled", "full"):
        rows.append(("personal data", "masked before it is stored" if now.mask_personal_data else "stored unchanged"))
    facts(console, [*rows, ("deleted after", counted(now.keep_days, "day"))])


def _show_all(console: Console, found: Sequence[Exchange], counts: TrafficSummary) -> None:
    from luthier.platform.cli.console import make_table, visible
    from luthier.platform.cli.figures import size

    if found:
        table = make_table(["asked (UTC)", "id", "model", "ended", "tokens", "seconds"], num_text_columns=4)
        for one in found:
            # A deployment is shown with what has answered behind it.
            who = visible(one.model) + (f" -> {visible(one.target)}" if one.target not in ("", one.model) else "")
            ended = visible(one.finish_reason) if one.status < 400 else f"{one.status} {visible(one.error_code)}"
            tokens = f"{one.num_prompt_tokens:,} + {one.num_new_tokens:,}"
            at = utc(one.at, is_exact=True)
            table.add_row(at, visible(one.exchange_id), who, ended, tokens, f"{one.seconds:.2f}")
        console.print(table)
    exchanges = counted(counts.num_exchanges, "exchange")
    words = f"{exchanges}, {counts.num_with_text:,} with text, {counts.num_failed:,} failed"
    console.print(f"{words}; all files take {size(counts.num_bytes)}", soft_wrap=True)
    for reason, count in sorted(counts.lost.items()):
        console.print(f"lost: {count:,} ({reason})", soft_wrap=True)


def _show(console: Console, one: Exchange) -> None:
    from luthier.platform.cli.console import facts, visible

    rows = [(name, str(value)) for name, value in _document(one).items() if value not in (None, "", False)]
    # The stored time is a number of seconds, which is not readable.
    facts(console, [*(row for row in rows if row[0] != "at"), ("at", f"{utc(one.at, is_exact=True)} UTC")])
    if not one.has_text:
        console.print("its text was not stored")
    for message in one.messages or ():
        # A turn that only calls a tool has no content.
        content = message.get("content") or message.get("tool_calls") or ""
        console.print(f"\n{visible(str(message.get('role')))}: {visible(str(content))}", soft_wrap=True)
    if one.answer is not None:
        console.print(f"\nanswer: {visible(one.answer)}", soft_wrap=True)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "policy": policy,
    "list": list_exchanges,
    "show": show,
    "forget-user": forget_user,
}
