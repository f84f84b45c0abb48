"""Use case: call a tool by its name: scope, arguments, the call itself, and errors as documents."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from anyio import to_thread
from pydantic import ValidationError

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotAllowedError, RequestError, WorkError, library_words_hidden
from luthier.core.json_limits import MAX_REQUEST_VALUES, fault_of
from luthier.features.mcp_server import data_tools, deployment_tools, evaluation_tools, model_tools, run_tools, watching
from luthier.features.mcp_server.records import Call, Tool, ToolResult
from luthier.platform.http.errors import ApiError, as_api_error, invalid_request

TOOLS: Final[tuple[Tool, ...]] = (
    *data_tools.TOOLS,
    *run_tools.TOOLS,
    *watching.TOOLS,
    *evaluation_tools.TOOLS,
    *model_tools.TOOLS,
    *deployment_tools.TOOLS,
)
"""All tools, in the order of a project: rows, runs, evaluations, models, deployments."""
INSTRUCTIONS: Final = (
    "Luthier fine-tunes language models and measures with intervals whether the result is better. The usual order: "
    "create_dataset or list_datasets, list_base_models, plan_run, start_run, watch until is_settled is true, "
    "get_verdict, worth, deploy, ask. Long work is a job: start_run and evaluate return an id immediately, and watch "
    "follows it. Do not deploy a model whose verdict is not 'better' unless a person asks for it. Errors state what "
    "came, what was expected and what to do."
)
log = logging.getLogger("luthier.mcp")


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one server.

    Attributes:
        is_read_only: Whether only tools that change nothing are there.
        max_bytes: The largest arguments of a call.
    """

    is_read_only: bool
    max_bytes: int

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools that are there at all."""
        return [tool for tool in TOOLS if tool.is_read_only or not self.is_read_only]

    def allowed(self, caller: Caller) -> Sequence[Tool]:
        """Those that the caller has a scope for."""
        return [tool for tool in self.tools if tool.is_allowed(caller)]

    def find(self, name: str) -> Tool:
        """A tool by its name.

        Raises:
            RequestError: It is not there.
        """
        found = next((tool for tool in self.tools if tool.name == name), None)
        if found is not None:
            return found
        if any(tool.name == name for tool in TOOLS):
            raise RequestError(
                f"the tool {name} changes something, and this server is read-only",
                expected=f"one of: {', '.join(tool.name for tool in self.tools)}",
                do="start `luthier mcp` without --read-only",
            )
        raise RequestError(
            f"no tool {name[:100]!r}",
            expected=f"one of: {', '.join(tool.name for tool in self.tools)}",
            do="list the tools",
        )

    async def call(self, call: Call, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool.

        Raises:
            NotAllowedError: The caller lacks the scope.
            ApiError: The arguments do not fit.
            LuthierError: The tool cannot do it.
        """
        if not tool.is_allowed(call.caller):
            raise NotAllowedError(
                f"the key {call.caller.name!r} has the scopes {', '.join(call.caller.scopes)}",
                expected=f"the scope {' or '.join(tool.scopes)} for the tool {tool.name}",
                do="use or make a key that has it",
            )
        asked = self._checked(tool, arguments)
        # Callers elsewhere get no words of libraries, which may quote paths and data of this machine.
        with nullcontext() if call.caller.is_local else library_words_hidden():
            if tool.waits is not None:
                return await tool.waits(call, asked)
            assert tool.handler is not None, "a tool has one of the two"
            return await to_thread.run_sync(tool.handler, call, asked)

    def _checked(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        plain = dict(arguments)
        # Over HTTP both were checked before anything was read; over stdio here is the first place.
        if (num_bytes := len(json.dumps(plain))) > self.max_bytes:
            raise RequestError(
                f"arguments of {num_bytes:,} bytes",
                expected=f"at most {self.max_bytes:,} bytes",
                do="send fewer rows, or upload large files and name them by their id",
            )
        if (fault := fault_of(plain, max_values=MAX_REQUEST_VALUES)) is not None:
            raise RequestError(
                f"{fault.came} at {fault.place!r}" if fault.place else fault.came,
                expected=fault.expected,
                do="send smaller and flatter arguments",
            )
        try:
            return tool.arguments.model_validate(plain)
        except ValidationError as error:
            problems = [(("body", *one["loc"]), str(one["msg"])) for one in error.errors(include_url=False)]
            known = ", ".join(tool.arguments.model_fields) or "none"
            refused = invalid_request(problems, plain)
            raise RequestError(
                f"arguments of {tool.name}: {refused.message}", expected=f"arguments: {known}", do="correct the call"
            ) from error


def error_document(error: Exception, tool: str) -> tuple[str, dict[str, Any]]:
    """An error of a call as text and as a document; a fault of our own is logged, and shown without its words."""
    if isinstance(error, LuthierError):
        api = as_api_error(error)
        is_passing = isinstance(error, WorkError) and error.retry_helps
        document = error.as_json() | {"code": api.code, "retry_helps": is_passing}
        return f"{error.came}\nExpected: {error.expected}\nWhat to do: {error.do}", {"error": document}
    if isinstance(error, ApiError):
        return error.message, {"error": {"type": error.type, "code": error.code, "message": error.message}}
    log.exception("unexpected error in the tool %s", tool, exc_info=error)
    came = f"the tool {tool} failed by a fault of the server"
    do = "see the log of the server; if it happens again, report it"
    document = {"type": "DefectError", "came": came, "expected": "a result", "do": do, "code": "internal_error"}
    return f"{came}\nExpected: a result\nWhat to do: {do}", {"error": document}
