"""`luthier serve`: some models behind OpenAI's API, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import EngineOption, HomeOption

if TYPE_CHECKING:
    from luthier.server.standalone import StandaloneServer


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs, base models, GGUF files, folders of exports; NAME=MODEL to have it asked by another name.",
        ),
    ],
    engine: EngineOption = "auto",
    host: Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 8521,
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key", metavar="FILE", help="Keys that let in, one a line, besides those of the home."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line on stdout once it answers, and one once a model is loaded.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Serve models by OpenAI's API: chat, completions, embeddings; adapters of one base share it in memory.

    Nobody needs a key on an address that this machine alone reaches; on others a key is needed. Ctrl-C ends it in good
    order. For jobs, files, projects and deployments there is `luthier up`.
    """
    from luthier.platform.home.logs import teller
    from luthier.platform.processes.stop_signals import AGAIN, stop_signals
    from luthier.server.standalone import StandaloneRequest, serve_models

    def started(server: StandaloneServer) -> None:
        if as_json:
            _print_line(json.dumps(server.as_json()))
        else:
            _show(server)

    def loaded(model: str, seconds: float) -> None:
        _print_line(
            json.dumps({"ready": model, "seconds": round(seconds, 3)}) if as_json else f"ready: {model} answers"
        )

    def notice() -> str:
        return f"answers under way are finished, then the server ends. {AGAIN}"

    with stop_signals(notice) as stop_requested, open_context(home) as context:
        serve_models(
            context,
            StandaloneRequest(tuple(models), engine=engine, host=host, port=port, key_file=key_file),
            stop_requested=stop_requested,
            tell=teller(context.settings.log_format, "serve"),
            started=started,
            loaded=loaded,
        )


def _print_line(line: str) -> None:
    stdout = sys.__stdout__ or sys.stdout  # under --json, sys.stdout is stderr until a command has ended
    stdout.write(f"{line}\n")
    stdout.flush()


def _show(server: StandaloneServer) -> None:
    from luthier.platform.cli.console import facts, make_table, stdout_console, visible

    console = stdout_console()
    keys = "not needed on this machine" if server.is_open else "Authorization: Bearer KEY"
    facts(console, [("server", f"{server.url}/v1"), ("key", keys)])
    table = make_table(["model", "engine", "weights"], num_text_columns=3)
    for name, served in server.models.items():
        weights = served.path if served.adapter_path is None else f"{served.path} + {served.adapter_path}"
        table.add_row(visible(name), served.engine, visible(weights))
    console.print(table)
    header = "" if server.is_open else ' -H "Authorization: Bearer $KEY"'
    body = json.dumps({"model": next(iter(server.models)), "messages": [{"role": "user", "content": "Hello"}]})
    quoted = body.replace("'", "'\\''")
    console.print(
        f"curl {server.url}/v1/chat/completions{header} -H 'Content-Type: application/json' \\", soft_wrap=True
    )
    console.print(f"  -d '{quoted}'", soft_wrap=True)
    if not server.is_loopback:
        console.print(
            "Others can reach this address, and it speaks plain HTTP: put a reverse proxy with TLS before it.",
            soft_wrap=True,
        )
    console.print(f"loading {next(iter(server.models))} ... (Ctrl-C ends the server)", soft_wrap=True)
