"""`luthier human-eval create`: answers, items, and a link for each rater."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.features.human_eval.cli.arguments import ProjectOption, link_document, read_bytes
from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import DEFAULT_URL, HomeOption, JsonOption, MappingOption, UrlOption, checked_url

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.results.human_eval import RatingPanel
    from luthier.features.human_eval.answers import AnsweredRows
    from luthier.platform.home.context import Context


class KindChoice(StrEnum):
    """What is asked of raters."""

    PAIRWISE = "pairwise"
    LIKERT = "likert"


_Systems = Annotated[
    str | None,
    typer.Option("--systems", metavar="A,B", help="Who answers: base models, runs, or http(s)://host:port/v1#MODEL."),
]
_Evaluation = Annotated[
    str | None,
    typer.Option("--evaluation", metavar="ID", help="Instead of --data: the answers that stand in an evaluation."),
]
_MostRows = Annotated[
    int, typer.Option("--most-rows", min=1, metavar="N", help="Rate only N rows, chosen by a stable hash.")
]
_Attention = Annotated[
    float, typer.Option("--attention", min=0, max=0.5, help="Attention checks as a share of the items.")
]
_Instructions = Annotated[
    Path | None, typer.Option("--instructions", metavar="FILE", help="Your own words to the raters, as plain text.")
]
_Seed = Annotated[int | None, typer.Option("--seed", help="Decides all orders.", show_default="drawn and kept")]
_AllowLeakage = Annotated[
    bool, typer.Option("--allow-leakage", help="Rate answers even to rows that a run was trained on.")
]
_Kind = Annotated[KindChoice, typer.Option("--kind", help="Which of two is better, or 1 to 5 for each answer alone.")]
_Raters = Annotated[str, typer.Option("--raters", metavar="N", help="How many, or their names with commas between.")]
_Data = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Rows to be answered.")]
_Name = Annotated[str, typer.Option("--name", help="What the panel is called.", show_default="the systems")]
_MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where to cut answers off.")]


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
    max_new_tokens: _MaxNewTokens = 256,
    allow_leakage: _AllowLeakage = False,
    url: UrlOption = DEFAULT_URL,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Have systems answer rows and people rate the answers, without knowing whose they are. Prints a link a rater."""
    from luthier.features.human_eval import service as rating_panels

    root = checked_url(url)
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
            from luthier.features.human_eval.answers import answer_rows
            from luthier.platform.cli.options import parse_mapping

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
    return Answer(as_json, document, lambda console: _show(console, made.panel, links))


def _from_evaluation(
    context: Context, caller: Caller, evaluation_id: str, names: list[str], most_rows: int
) -> AnsweredRows:
    from luthier.features.human_eval.answers import answers_of
    from luthier.features.runs.evaluations import read_evaluation

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
        raise RequestError(f"{path} is no UTF-8 text", expected="plain text", do="save it as UTF-8") from error


def _show(console: Console, panel: RatingPanel, links: list[dict[str, str]]) -> None:
    from luthier.platform.cli.console import visible

    parts = f"{panel.num_items} items to rate, {panel.num_checks} attention checks among them"
    console.print(f"{panel.panel_id}: {visible(panel.name)}, {parts}", soft_wrap=True)
    if panel.num_same:
        console.print(f"{panel.num_same} pairs are not shown: both answers are the same text", soft_wrap=True)
    if panel.num_left_out:
        console.print(f"{panel.num_left_out} rows were too long for one of the systems", soft_wrap=True)
    for one in links:
        console.print(f"{visible(one['rater'])}: {one['url']}", soft_wrap=True)
    console.print(
        f"Keep the links, they are not shown again. How it stands: luthier human-eval status {panel.panel_id}",
        soft_wrap=True,
    )
