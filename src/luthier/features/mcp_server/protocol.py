"""The server of the Model Context Protocol: the tools and resources in the types of the official library.

One server serves all callers: who calls comes with each request (`Identify`), so no session holds anybody's rights.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from anyio import to_thread
from mcp import types
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotAllowedError, NotFoundError
from luthier.core.recipe import Recipe
from luthier.features.mcp_server.records import Call, Tool, ToolResult
from luthier.features.mcp_server.service import INSTRUCTIONS, Toolbox, error_document
from luthier.features.models.result_files import has_report
from luthier.features.runs import views as project_runs
from luthier.platform.home.context import Context
from luthier.platform.http.errors import ApiError

RequestContext = ServerRequestContext[Any, Any]
Identify = Callable[[RequestContext], Awaitable[Caller]]
"""The caller of a request. Raises LuthierError or ApiError where there is none."""
_MAX_TEXT_CHARACTERS: Final = 60_000
"""Of the JSON beside the summary, for clients that show a model the text alone; the structured result is whole."""


class _Handlers:
    """What answers the requests of the protocol."""

    def __init__(self, context: Context, toolbox: Toolbox, identify: Identify) -> None:
        self._context, self._toolbox, self._identify = context, toolbox, identify

    async def list_tools(self, ctx: RequestContext, _: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        """The tools of the caller's scopes."""
        caller = await _caller(ctx, self._identify)
        return types.ListToolsResult(tools=[_listed(tool) for tool in self._toolbox.allowed(caller)])

    async def call_tool(self, ctx: RequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        """The result of a tool; a failure is a result, too. Raises MCPError for a tool that is not there."""
        caller = await _caller(ctx, self._identify)
        try:
            tool = self._toolbox.find(params.name)
        except LuthierError as error:
            raise _protocol_error(error, types.INVALID_PARAMS) from None
        call = Call(self._context, caller, ctx.session.report_progress)
        try:
            return _result(await self._toolbox.call(call, tool, params.arguments or {}))
        except Exception as error:  # noqa: BLE001 - the last place that can report it: as a result that a model reads
            return _failed(error, tool.name)

    async def list_resources(
        self, ctx: RequestContext, _: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """The schema of recipes and the newest reports."""
        caller = await _caller(ctx, self._identify)
        found = await to_thread.run_sync(list_resources, self._context, caller)
        listed = [
            types.Resource(uri=one.uri, name=one.name, description=one.description, mime_type=one.mime_type)
            for one in found
        ]
        return types.ListResourcesResult(resources=listed)

    async def list_templates(
        self, ctx: RequestContext, _: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        """The parts of any run."""
        await _caller(ctx, self._identify)
        listed = [
            types.ResourceTemplate(
                uri_template=one.template,
                name=one.part,
                title=one.title,
                description=one.description,
                mime_type=one.mime_type,
            )
            for one in PARTS
        ]
        return types.ListResourceTemplatesResult(resource_templates=listed)

    async def read_resource(
        self, ctx: RequestContext, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """The text of a resource. Raises MCPError where there is none, or the scope is missing."""
        caller = await _caller(ctx, self._identify)
        try:
            found = await to_thread.run_sync(read_resource, self._context, caller, str(params.uri))
        except LuthierError as error:
            code = types.INVALID_PARAMS if isinstance(error, NotFoundError) else types.INVALID_REQUEST
            raise _protocol_error(error, code) from None
        content = types.TextResourceContents(uri=found.uri, mime_type=found.mime_type, text=found.text)
        return types.ReadResourceResult(contents=[content])


def make_server(context: Context, toolbox: Toolbox, identify: Identify) -> Server[Any]:
    """The server.

    Args:
        context: The open home.
        toolbox: Its tools.
        identify: Finds the caller of a request.
    """
    # One line for each of its requests is the log of the server already.
    logging.getLogger("mcp").setLevel(logging.WARNING)
    handlers = _Handlers(context, toolbox, identify)
    return Server(
        "luthier",
        version=version("luthier"),
        title="Luthier",
        instructions=INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
    )


async def _caller(ctx: RequestContext, identify: Identify) -> Caller:
    try:
        return await identify(ctx)
    except (LuthierError, ApiError) as error:
        raise _protocol_error(error, types.INVALID_REQUEST) from None


def _protocol_error(error: LuthierError | ApiError, code: int) -> MCPError:
    text, document = error_document(error, "")
    return MCPError(code=code, message=text, data=document["error"])


def _listed(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.arguments.model_json_schema(),
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.is_read_only,
            destructive_hint=tool.is_destructive,
            idempotent_hint=tool.is_idempotent or tool.is_read_only,
            # All of them work on the home alone.
            open_world_hint=False,
        ),
    )


def _result(found: ToolResult) -> types.CallToolResult:
    text = json.dumps(found.document, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _MAX_TEXT_CHARACTERS:
        text = f"The result has {len(text):,} characters of JSON: see the structured content, or ask for less."
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=one) for one in (found.summary, text)]
    return types.CallToolResult(content=content, structured_content=found.document)


def _failed(error: Exception, tool: str) -> types.CallToolResult:
    text, document = error_document(error, tool)
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
    return types.CallToolResult(content=content, structured_content=document, is_error=True)


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
        if has_report(context, run_id):
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
