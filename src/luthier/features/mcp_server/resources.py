"""Resources: the report, the recipe and the verdict of a run, and the schema of recipes. All need the scope `read`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import NotAllowedError, NotFoundError
from luthier.core.recipe import Recipe
from luthier.features.runs import views as project_runs
from luthier.platform.home.context import Context

RECIPE_SCHEMA: Final = "luthier://recipe-schema"
_NUM_LISTED: Final = 20
_URI: Final = re.compile(r"luthier://runs/(?P<run_id>[A-Za-z0-9-]{1,64})/(?P<part>report|verdict|run)")


@dataclass(frozen=True, slots=True)
class RunPart:
    """A part of a run that clients read by its address.

    Attributes:
        part: The last part of the address.
        title: For people.
        description: For the model that chooses.
        mime_type: Of the text.
        read: The text.
    """

    part: str
    title: str
    description: str
    mime_type: str
    read: Callable[[Context, str, str], str]

    @property
    def template(self) -> str:
        """The address with the place of the id."""
        return f"luthier://runs/{{run_id}}/{self.part}"


@dataclass(frozen=True, slots=True)
class ResourceText:
    """A resource that was read."""

    uri: str
    mime_type: str
    text: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A resource of the list."""

    uri: str
    name: str
    description: str
    mime_type: str


def _verdict(context: Context, project_id: str, run_id: str) -> str:
    return _json(project_runs.run_verdict(context, project_id, run_id))


def _run(context: Context, project_id: str, run_id: str) -> str:
    return _json(project_runs.show_run(context, project_id, run_id))


def _json(document: object) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False)


PARTS: Final[tuple[RunPart, ...]] = (
    RunPart(
        "report",
        "Report of a run",
        "The report of a run that has ended or is paused: verdict, charts and samples.",
        "text/html",
        project_runs.report_of,
    ),
    RunPart("verdict", "Verdict of a run", "The verdict with its intervals.", "application/json", _verdict),
    RunPart("run", "Run", "Plan, cost and results of a run.", "application/json", _run),
)
_BY_PART: Final = {one.part: one for one in PARTS}


def list_resources(context: Context, caller: Caller) -> list[Listed]:
    """The schema of recipes, and the newest runs of the project with a report."""
    listed = [
        Listed(
            RECIPE_SCHEMA, "Schema of recipes", "JSON Schema of what plan_run and start_run take.", "application/json"
        )
    ]
    if not caller.may("read"):
        return listed
    found = project_runs.list_runs(context, caller.project_id, after=None, limit=_NUM_LISTED).runs
    for run in found:
        run_id = str(run["run_id"])
        if (context.settings.run_folder(run_id) / "report.html").is_file():
            name = f"Report of {run.get('name') or run_id}"
            listed.append(Listed(f"luthier://runs/{run_id}/report", name, f"Run {run_id}", "text/html"))
    return listed


def read_resource(context: Context, caller: Caller, uri: str) -> ResourceText:
    """The text at an address.

    Raises:
        NotFoundError: There is no such resource, also where it belongs to another project.
        NotAllowedError: The caller lacks the scope `read`.
    """
    if uri == RECIPE_SCHEMA:
        return ResourceText(uri, "application/json", _json(Recipe.model_json_schema()))
    match = _URI.fullmatch(uri)
    if match is None:
        raise NotFoundError(
            f"no resource {uri[:200]!r}",
            expected=", ".join([RECIPE_SCHEMA, *(one.template for one in PARTS)]),
            do="use one of these addresses",
        )
    if not caller.may("read"):
        raise NotAllowedError(
            f"the key {caller.name!r} has the scopes {', '.join(caller.scopes)}",
            expected="the scope read",
            do="use or make a key that has it",
        )
    part = _BY_PART[match["part"]]
    return ResourceText(uri, part.mime_type, part.read(context, caller.project_id, match["run_id"]))
