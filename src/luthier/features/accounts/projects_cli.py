"""`luthier projects`: what keys, files, jobs and models belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Project


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The project's name; it must be unique.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Create a project; create keys for it with `luthier keys create --project NAME`."""
    from luthier.platform.auth import service as access
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        made = access.create_project(context, name)
    text = f"created {made.project_id} {visible(made.name)}"
    return Answer(as_json, _document(made), lambda console: console.print(text, soft_wrap=True))


def list_projects(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the projects, oldest first, with the space that their files take."""
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        found, used = access.list_projects(context), context.files.used_bytes()
    documents = [_document(project) | {"file_bytes": used.get(project.project_id, 0)} for project in found]
    return Answer(as_json, documents, lambda console: _show_all(console, found, used))


def rename(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The project's name; it must be unique.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Rename a project; its id stays the same."""
    from luthier.core.access import Caller
    from luthier.platform.auth import service as access
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        changed = access.rename_project(context, Caller(), project, name)
    text = f"{changed.project_id} is called {visible(changed.name)}"
    return Answer(as_json, _document(changed), lambda console: console.print(text, soft_wrap=True))


def quota(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id of the project.")],
    limit: Annotated[
        str | None,
        typer.Argument(
            metavar="SIZE",
            help="The limit, such as 20GiB or 500MB; none: no limit. Leave it out to see the current one.",
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show or set how many bytes the files of a project may take: uploads, datasets and results of jobs."""
    from luthier.core.access import Caller
    from luthier.core.text.byte_sizes import bytes_of
    from luthier.platform.auth import service as access
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        found = context.access.project(project)
        if limit is not None:
            most = None if limit.strip().lower() == "none" else bytes_of(limit)
            found = access.set_file_quota(context, Caller(), found.project_id, most)
        used = context.files.used_bytes().get(found.project_id, 0)
    text = f"{visible(found.name)} {_room(found, used)}"
    return Answer(as_json, _document(found) | {"file_bytes": used}, lambda console: console.print(text, soft_wrap=True))


def _room(project: Project, used: int) -> str:
    """`uses 3.1 GiB of 20 GiB for files`."""
    from luthier.platform.cli.figures import size

    most = "" if project.max_file_bytes is None else f" of {size(project.max_file_bytes)}"
    return f"uses {size(used)}{most} for files"


def _document(project: Project) -> dict[str, object]:
    return {"id": project.project_id, **project.model_dump(mode="json", exclude={"project_id"})}


def _show_all(console: Console, found: list[Project], used: Mapping[str, int]) -> None:
    from luthier.platform.cli.console import make_table, visible
    from luthier.platform.cli.figures import size

    table = make_table(["project", "name", "files", "file quota"], num_text_columns=2)
    for project in found:
        most = "none" if project.max_file_bytes is None else size(project.max_file_bytes)
        table.add_row(project.project_id, visible(project.name), size(used.get(project.project_id, 0)), most)
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "create": create, "list": list_projects, "rename": rename, "quota": quota,
}  # fmt: skip
