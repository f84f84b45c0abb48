"""`luthier projects`: what keys, files, jobs and models belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Project


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that no other project has.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Make a project; keys are made for it with `luthier keys create --project NAME`."""
    from luthier.platform.auth import service as access
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        made = access.create_project(context, name)
    text = f"made {made.project_id} {visible(made.name)}"
    return Answer(as_json, _document(made), lambda console: console.print(text, soft_wrap=True))


def list_projects(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the projects, oldest first."""
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        found = access.list_projects(context)
    return Answer(as_json, [_document(project) for project in found], lambda console: _show_all(console, found))


def rename(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its name or id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that no other project has.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Give a project another name; its id stays."""
    from luthier.core.access import Caller
    from luthier.platform.auth import service as access
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        changed = access.rename_project(context, Caller(), project, name)
    text = f"{changed.project_id} is called {visible(changed.name)}"
    return Answer(as_json, _document(changed), lambda console: console.print(text, soft_wrap=True))


def _document(project: Project) -> dict[str, object]:
    return {"id": project.project_id, **project.model_dump(mode="json", exclude={"project_id"})}


def _show_all(console: Console, found: list[Project]) -> None:
    from luthier.platform.cli.console import make_table, visible

    table = make_table(["project", "name"], num_text_columns=2)
    for project in found:
        table.add_row(project.project_id, visible(project.name))
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {"create": create, "list": list_projects, "rename": rename}
