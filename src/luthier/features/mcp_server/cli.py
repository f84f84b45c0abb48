"""`luthier mcp`: the home as a server of the Model Context Protocol for an agent on this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from luthier.platform.cli.command import HomeOption


def serve(
    is_read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Offer only tools that change nothing: no start, deploy, pause or cancel."),
    ] = False,
    project: Annotated[
        str, typer.Option("--project", metavar="P", help="The project to work in; a key has its own.")
    ] = "default",
    home: HomeOption = None,
) -> None:
    """Serve this home to an agent through the Model Context Protocol over stdin and stdout; the agent starts this
    command.

    Without LUTHIER_API_KEY the agent has the rights of the user of this machine in the project; with it, those of the
    key. Runs are trained by a worker: start `luthier up` or `luthier worker` beside it. A server offers the same tools
    at /mcp (docs/mcp.md).
    """
    from luthier.core.errors import RequestError
    from luthier.features.mcp_server.stdio import KEY_VARIABLE, KeyIdentity, LocalIdentity, serve_stdio
    from luthier.platform.cli.command import caller_of
    from luthier.platform.home.context import Context
    from luthier.platform.home.logs import set_up_logging
    from luthier.platform.home.permissions import private_files

    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and project != "default":
        raise RequestError(
            f"--project {project} with a key in {KEY_VARIABLE}",
            expected="one of the two: a key belongs to one project",
            do="leave --project out, or unset the variable",
        )
    # Without progress bars, and with logs on stderr: stdout carries the protocol alone.
    with private_files(), Context.open(home) as context:
        set_up_logging(context.settings.log_format, "mcp")
        identity: KeyIdentity | LocalIdentity
        if key:
            identity = KeyIdentity(context, key)
            identity.look_up()  # a wrong key ends the command with an error, and not the first call
        else:
            identity = LocalIdentity(caller_of(context, project))
        serve_stdio(context, identity, is_read_only=is_read_only)
