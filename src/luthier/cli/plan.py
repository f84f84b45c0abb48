"""`luthier plan`: what a recipe comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.answer import Answer
from luthier.cli.opening import open_context
from luthier.cli.options import HomeOption, JsonOption, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.plan import Plan


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML or JSON.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Read and check all rows, and print the complete plan: every value, where it comes from, and why."""
    from luthier.service.plans import make_plan
    from luthier.service.recipes import load_recipe

    asked = load_recipe(recipe, overrides or ())
    with open_context(home) as context:
        made = make_plan(context, asked, base_dir=recipe.absolute().parent)
    document = {"hash": made.hash, "values": made.values(), "plan": made.model_dump(mode="json")}
    return Answer(as_json, document, lambda console: _show(console, made))


def _show(console: Console, made: Plan) -> None:
    from luthier.cli import figures
    from luthier.cli.console import make_table, visible

    table = make_table(["name", "value", "source", "why"], num_text_columns=4)
    for row in made.values():
        table.add_row(row["name"], visible(figures.plain(row["value"])), row["source"], visible(row["why"]))
    console.print(table)
    console.print(f"plan {made.hash}", soft_wrap=True)
