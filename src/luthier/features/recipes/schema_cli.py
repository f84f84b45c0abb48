"""`luthier recipe`: what editors need to know of recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, ForceOption, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead of to stdout.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,  # noqa: ARG001 - as every command
) -> Answer:
    """Print the JSON Schema of recipes, for checks and completion in editors.

    It contains the plug-ins of this installation. A recipe whose first line is
    `# yaml-language-server: $schema=recipe.schema.json` is checked against the file of that name beside it, in VS Code
    (YAML extension of Red Hat), Neovim, Zed, Helix, Emacs and JetBrains' editors.
    """
    from luthier.features.recipes.schema import recipe_schema, schema_text

    if output is not None:
        from luthier.ml.data.rows.outputs import check_free, write_output

        check_free([output], force=force)
        write_output(output, schema_text().encode(), force=force)

    def tell(console: Console) -> None:
        if output is not None:
            console.print(f"schema: {output}", soft_wrap=True, markup=False)
        else:
            console.print(schema_text(), end="", soft_wrap=True, markup=False, highlight=False)

    return Answer(as_json, recipe_schema(), tell)


COMMANDS: dict[str, Callable[..., Answer]] = {"schema": schema}
