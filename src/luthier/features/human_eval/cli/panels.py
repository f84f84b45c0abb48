"""The commands of `luthier human-eval`: create panels, let raters in, close them, and exchange ratings as files."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.defaults import RATED_TOKENS
from luthier.core.json_limits import json_utf8
from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    DEFAULT_URL,
    Answer,
    ForceOption,
    HomeOption,
    JsonOption,
    LinksUrlOption,
    MappingOption,
    caller_of,
    checked_url,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.results.human_eval import RatingPanel
    from luthier.features.human_eval.files import Pairs
    from luthier.features.human_eval.items import AnsweredRows
    from luthier.features.human_eval.service import RaterLink
    from luthier.features.human_eval.store import PanelCounts
    from luthier.platform.home.context import Context

PanelArgument = Annotated[str, typer.Argument(metavar="PANEL", help="A panel's id, from `luthier human-eval list`.")]
ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project that the panel belongs to.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]


def link_document(made: RaterLink, root: str) -> dict[str, str]:
    """A rater with the address that lets them in."""
    return {"rater": made.rater.name, "rater_id": made.rater.rater_id, "url": f"{root}{made.path}", "path": made.path}


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        NotFoundError: The file is missing or cannot be read.
    """
    from luthier.core.errors import NotFoundError

    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", expected="a file that can be read", do="correct it") from error


class KindChoice(StrEnum):
    """The task of raters."""

    PAIRWISE = "pairwise"
    LIKERT = "likert"


_Systems = Annotated[
    str | None,
    typer.Option(
        "--systems", metavar="A,B", help="The systems that answer: base models, runs, or http(s)://host:port/v1#MODEL."
    ),
]
_Evaluation = Annotated[
    str | None,
    typer.Option("--evaluation", metavar="ID", help="Use the answers of this evaluation instead of --data."),
]
_MostRows = Annotated[
    int, typer.Option("--most-rows", min=1, metavar="N", help="Rate only N rows, chosen by a stable hash.")
]
_Attention = Annotated[
    float, typer.Option("--attention", min=0, max=0.5, help="Attention checks as a share of the items.")
]
_Instructions = Annotated[
    Path | None,
    typer.Option("--instructions", metavar="FILE", help="Your own instructions for the raters, as plain text."),
]
_Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of the random orders.", show_default="random, and stored")
]
_AllowLeakage = Annotated[bool, typer.Option("--allow-leakage", help="Allow rows that a run was trained on.")]
_Kind = Annotated[KindChoice, typer.Option("--kind", help="Which of two answers is better, or 1 to 5 for each answer.")]
_Raters = Annotated[
    str, typer.Option("--raters", metavar="N", help="Number of raters, or their names separated by commas.")
]
_Data = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Rows for the systems to answer.")]
_Name = Annotated[str, typer.Option("--name", help="The name of the panel.", show_default="the systems")]
_MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Maximum tokens of an answer.")]


def create(
    systems: _Systems = None,
    data: _Data = None,
    evaluation: _Evaluation = None,
    kind: _Kind = KindChoice.PAIRWISE,
    raters: _Raters = "3",
    most_rows: _MostRows = 40,
    attention: _Attention = 0.1,
    instructions: _Instructions = None,
    name: _Name = "",
    seed: _Seed = None,
    mapping: MappingOption = None,
    max_new_tokens: _MaxNewTokens = RATED_TOKENS,
    allow_leakage: _AllowLeakage = False,
    url: LinksUrlOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have systems answer rows and people rate the answers, without knowing which system wrote them. Prints one link
    per rater."""
    from luthier.features.human_eval import service as rating_panels
    from luthier.platform.auth.public_address import link_root

    given = None if url is None else checked_url(url)
    words = _read_text(instructions) if instructions is not None else ""
    with open_context(home) as context:
        caller = caller_of(context, project)
        names = [one.strip() for one in (systems or "").split(",") if one.strip()]
        # Both or neither.
        if (data is None) == (evaluation is None):
            raise _neither_or_both(data is None)
        if evaluation is not None:
            answered = _from_evaluation(context, caller, evaluation, names, most_rows)
        else:
            from luthier.features.human_eval.items import answer_rows
            from luthier.platform.cli.command import parse_mapping

            assert data is not None
            answered = answer_rows(
                context,
                names,
                data,
                mapping=parse_mapping(mapping or ()) or None,
                most_rows=most_rows,
                max_new_tokens=max_new_tokens,
                allow_leakage=allow_leakage,
            )
        root = given or link_root(context, caller.project_id, DEFAULT_URL)
        made = rating_panels.create_panel(
            context,
            caller,
            answered,
            kind=kind.value,
            raters=int(raters) if raters.strip().isdecimal() else [one.strip() for one in raters.split(",")],
            attention=attention,
            instructions=words,
            name=name,
            seed=seed,
        )
    links = [link_document(link, root) for link in made.links]
    document = {**made.panel.model_dump(mode="json"), "links": links}
    return Answer(as_json, document, lambda console: _show(console, made.panel, project, links))


def _from_evaluation(
    context: Context, caller: Caller, evaluation_id: str, names: list[str], most_rows: int
) -> AnsweredRows:
    from luthier.features.human_eval.items import answers_of
    from luthier.features.runs.views import read_evaluation

    found = read_evaluation(context, caller.project_id, evaluation_id)
    return answers_of(found, names or None, most_rows=most_rows)


def _neither_or_both(is_none: bool) -> Exception:
    from luthier.core.errors import RequestError

    return RequestError(
        "neither --data nor --evaluation" if is_none else "--data and --evaluation",
        expected="rows to be answered, or an evaluation with answers",
        do="give one of the two",
    )


def _read_text(path: Path) -> str:
    from luthier.core.errors import RequestError

    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text", expected="plain text", do="save it as UTF-8") from error


def _show(console: Console, panel: RatingPanel, project: str, links: list[dict[str, str]]) -> None:
    from luthier.core.access import project_option
    from luthier.platform.cli.console import visible

    parts = f"{counted(panel.num_items, 'item')} to rate, {counted(panel.num_checks, 'attention check')} among them"
    console.print(f"{panel.panel_id}: {visible(panel.name)}, {parts}", soft_wrap=True)
    if panel.num_same:
        console.print(
            f"{counted(panel.num_same, 'pair is', 'pairs are')} not shown: both answers are the same text",
            soft_wrap=True,
        )
    if panel.num_left_out:
        console.print(
            f"{counted(panel.num_left_out, 'row was', 'rows were')} too long for one of the systems", soft_wrap=True
        )
    if panel.num_forgotten:
        console.print(
            f"{counted(panel.num_forgotten, 'row was', 'rows were')} left out: the texts were forgotten",
            soft_wrap=True,
        )
    for one in links:
        console.print(f"{visible(one['rater'])}: {one['url']}", soft_wrap=True)
    command = in_home(f"luthier human-eval status {panel.panel_id}{project_option(project)}")
    console.print(f"Keep the links, they are not shown again. Status: {command}", soft_wrap=True)


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
    """Show how much and how well each rater has rated, how far raters agree, and the result."""
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
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke a rater's link; their ratings stay.")] = False,
    url: LinksUrlOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Print a new link for a rater (the old one stops working), add a rater, or revoke a link."""
    from luthier.core.errors import NotFoundError
    from luthier.features.human_eval import service as rating_links
    from luthier.platform.auth.public_address import link_root

    given = None if url is None else checked_url(url)
    with open_context(home) as context:
        caller = caller_of(context, project)
        root = given or link_root(context, caller.project_id, DEFAULT_URL)
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
    """Close a panel: it takes no more ratings."""
    from luthier.features.human_eval import service as rating_panels

    with open_context(home) as context:
        found = rating_panels.close_panel(context, caller_of(context, project), panel)
    document = found.model_dump(mode="json")
    return Answer(as_json, document, lambda console: console.print(f"closed {found.panel_id}", soft_wrap=True))


def _show_all(console: Console, found: Sequence[PanelCounts]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print(in_home("no panels yet: make one with `luthier human-eval create`"))
        return
    table = make_table(["panel", "name", "kind", "state", "raters", "items", "ratings"], num_text_columns=4)
    for one in found:
        panel = one.panel
        state = "open" if panel.closed_at is None else "closed"
        figures: list[Any] = [one.num_raters, panel.num_items, one.num_ratings]
        table.add_row(panel.panel_id, visible(panel.name), panel.kind, state, *map(str, figures))
    console.print(table)


def export(
    panel: PanelArgument,
    output: OutputOption,
    project: ProjectOption = "default",
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write all ratings: .csv, .parquet, or .json with tasks for Label Studio."""
    from luthier.features.human_eval.files import export_panel, format_of
    from luthier.ml.data.rows.outputs import check_free, write_output

    file_format = format_of(output)
    check_free([output], force=force)
    with open_context(home) as context:
        content = export_panel(context, caller_of(context, project).project_id, panel, file_format)
        num_ratings = len(context.rating_panels.ratings(panel))
    write_output(output, content, force=force)
    words = f"wrote {counted(num_ratings, 'rating')} to {output}"
    document = {"panel_id": panel, "file": str(output), "format": file_format, "num_ratings": num_ratings}
    return Answer(as_json, document, lambda console: console.print(words, soft_wrap=True))


def import_label_studio(
    panel: PanelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export (JSON) of Label Studio.")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Import ratings that were given in Label Studio, on tasks that `luthier human-eval export` wrote."""
    from luthier.features.human_eval.files import import_label_studio as take_in

    content = read_bytes(file)
    with open_context(home) as context:
        found = take_in(context, caller_of(context, project), panel, content, str(file))
    words = f"imported {counted(found.num_ratings, 'rating')} by {', '.join(found.raters)}"
    words += (
        f"; {counted(found.num_skipped, 'cancelled one was', 'cancelled ones were')} skipped"
        if found.num_skipped
        else ""
    )
    document = {"num_ratings": found.num_ratings, "raters": found.raters, "num_skipped": found.num_skipped}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        console.print(visible(words), soft_wrap=True)

    return Answer(as_json, document, tell)


def pairs(
    panel: PanelArgument,
    output: OutputOption,
    force: ForceOption = False,
    with_caught: Annotated[
        bool,
        typer.Option(
            "--with-caught", help="Include raters who seem not to read the answers; by default they are left out."
        ),
    ] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write preference pairs to train on (DPO and similar), as JSON Lines."""

    from luthier.core.errors import RequestError
    from luthier.features.human_eval.files import preference_pairs
    from luthier.ml.data.rows.outputs import check_free, write_output

    if output.suffix != ".jsonl":
        raise RequestError(f"the file {output.name}", expected="a name that ends in .jsonl", do="choose such a name")
    check_free([output], force=force)
    with open_context(home) as context:
        found = preference_pairs(context, caller_of(context, project), panel, with_caught=with_caught)
    if not found.rows:
        raise RequestError(
            f"no pair on which people agreed: {_reasons(found) or 'nothing is rated yet'}",
            expected="at least one item where most raters prefer one answer",
            do="wait for more ratings, or add raters",
        )
    lines = b"".join(json_utf8(row) + b"\n" for row in found.rows)
    write_output(output, lines, force=force)
    document = {"file": str(output), "num_pairs": len(found.rows), "left_out": found.left_out, "caught": found.caught}

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        left_out = _reasons(found) or "none"
        console.print(f"wrote {counted(len(found.rows), 'pair')} to {output}; left out: {left_out}", soft_wrap=True)
        if found.caught:
            names = visible(", ".join(found.caught))
            console.print(f"without {names}, who seem not to read (--with-caught includes them)", soft_wrap=True)

    return Answer(as_json, document, tell)


def _reasons(found: Pairs) -> str:
    return ", ".join(f"{number} ({reason})" for reason, number in found.left_out.items())
