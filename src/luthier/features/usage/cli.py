"""`luthier usage`: requests to models by key, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.platform.auth.store import DayOfUse


def usage(
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=3660, help="Show the last N days (UTC).")] = 30,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only this model or deployment.", show_default="all")
    ] = None,
    project: Annotated[
        str, typer.Option("--project", metavar="P", help="The project that sent the requests.")
    ] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show requests, tokens and cost by day, key, model and target.

    Money is counted where LUTHIER_SERVING_USD_PER_MILLION_PROMPT_TOKENS or ..._NEW_TOKENS is set for the server.
    """
    from luthier.features.usage.service import usage as find
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        rows = find(context, context.access.project(project).project_id, num_days=days, model=model)
        names = {key.key_id: key.name for key in access.list_keys(context)}
    document = [row.model_dump(mode="json") | {"key_name": names.get(row.key_id)} for row in rows]
    return Answer(as_json, document, lambda console: _show(console, rows, names))


def _show(console: Console, rows: Sequence[DayOfUse], names: dict[str, str]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not rows:
        console.print("no requests in these days")
        return
    headers = ["day (UTC)", "key", "model", "target", "requests", "prompt tokens", "new tokens", "USD"]
    table = make_table(headers, num_text_columns=4)
    for row in rows:
        key = names.get(row.key_id, row.key_id) or "none"
        target = "" if row.target == row.model else row.target
        table.add_row(row.day, visible(key), visible(row.model), visible(target), *_figures([row]))
    if len(rows) > 1:
        table.add_section()
        table.add_row("all", "", "", "", *_figures(rows), style="bold")
    console.print(table)


def _figures(rows: Sequence[DayOfUse]) -> list[str]:
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    counts = [
        sum(row.num_requests for row in rows),
        sum(row.num_prompt_tokens for row in rows),
        sum(row.num_new_tokens for row in rows),
    ]
    return [*(f"{count:,}" for count in counts), f"{sum(costs):.4f}" if costs else "-"]
