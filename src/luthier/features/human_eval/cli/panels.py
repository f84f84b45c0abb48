"""`luthier human-eval list`, `status`, `link` and `close`: how panels stand, and who is let in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.features.human_eval.cli.arguments import PanelArgument, ProjectOption, link_document
from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import DEFAULT_URL, HomeOption, JsonOption, UrlOption, checked_url

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.human_eval.store import PanelCounts


def list_panels(project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the panels, newest first."""
    from luthier.features.human_eval import service as rating_panels

    with open_context(home) as context:
        found = rating_panels.list_panels(context, caller_of(context, project))
    document = [
        {**one.panel.model_dump(mode="json"), "num_raters": one.num_raters, "num_ratings": one.num_ratings}
        for one in found
    ]
    return Answer(as_json, document, lambda console: _show_all(console, found))


def status(
    panel: PanelArgument, project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Who has rated how much and how well, how far they agree, and what follows."""
    from luthier.features.human_eval import service as rating_panels

    with open_context(home) as context:
        found = rating_panels.panel_report(context, caller_of(context, project), panel)

    def tell(console: Console) -> None:
        from luthier.features.human_eval.cli.format import show_report

        show_report(console, found)

    return Answer(as_json, {**found.model_dump(mode="json"), "caught": found.caught}, tell)


def link(
    panel: PanelArgument,
    rater: Annotated[str, typer.Argument(metavar="NAME", help="The name of a rater; a new one is added.")],
    revoke: Annotated[bool, typer.Option("--revoke", help="Let them in no longer; their ratings stay.")] = False,
    url: UrlOption = DEFAULT_URL,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Print another link for a rater (the one before ends), add a rater, or revoke a link."""
    from luthier.core.errors import NotFoundError
    from luthier.features.human_eval import links as rating_links

    root = checked_url(url)
    with open_context(home) as context:
        caller = caller_of(context, project)
        context.rating_panels.get(caller.project_id, panel)
        known = {one.name: one for one in context.rating_panels.raters(panel)}
        if revoke:
            if rater not in known:
                raise NotFoundError(f"no rater {rater!r}", expected=f"one of {', '.join(known)}", do="correct the name")
            rating_links.revoke_link(context, caller, panel, known[rater].rater_id)
            return Answer(as_json, {"rater": rater, "revoked": True}, lambda console: console.print("revoked"))
        if rater in known:
            made = rating_links.renew_link(context, caller, panel, known[rater].rater_id)
        else:
            made = rating_links.add_rater(context, caller, panel, rater)
    document = link_document(made, root)
    return Answer(as_json, document, lambda console: console.print(document["url"], soft_wrap=True))


def close(
    panel: PanelArgument, project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Take no more ratings."""
    from luthier.features.human_eval import service as rating_panels

    with open_context(home) as context:
        found = rating_panels.close_panel(context, caller_of(context, project), panel)
    document = found.model_dump(mode="json")
    return Answer(as_json, document, lambda console: console.print(f"closed {found.panel_id}", soft_wrap=True))


def _show_all(console: Console, found: Sequence[PanelCounts]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print("no panels yet: make one with `luthier human-eval create`")
        return
    table = make_table(["panel", "name", "kind", "state", "raters", "items", "ratings"], num_text_columns=4)
    for one in found:
        panel = one.panel
        state = "open" if panel.closed_at is None else "closed"
        figures: list[Any] = [one.num_raters, panel.num_items, one.num_ratings]
        table.add_row(panel.panel_id, visible(panel.name), panel.kind, state, *map(str, figures))
    console.print(table)
