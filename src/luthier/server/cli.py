"""`luthier server start` (or `luthier up`), the server with its workers, and `luthier serve`, models alone.

`luthier serve` puts some models behind OpenAI's API: no jobs, no files, no workers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import ANY_MODEL, Answer, EngineOption, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.server.prepare import Prepared
    from luthier.server.service import Started
    from luthier.server.standalone import StandaloneServer


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help="The database; the same as LUTHIER_DATABASE.", show_default="in the home"
    ),
]
ArtifactsOption = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="URL",
        help="The store of artifacts; the same as LUTHIER_ARTIFACTS.",
        show_default="in the home",
    ),
]


def start(
    host: Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port to listen on; 0 for any free one.")
    ] = 8520,
    num_workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=0, max=64, help="Number of worker processes; 0: none here.")
    ] = 1,
    database: DatabaseOption = None,
    artifacts: ArtifactsOption = None,
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(
            "--log-format", help="The format of log lines; the same as LUTHIER_LOG_FORMAT.", show_default="text"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON on stdout once the server answers: url, pid, key.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Serve the pages and the APIs, with workers that run jobs.

    Ctrl-C or SIGTERM shuts it down cleanly: trainings write a checkpoint and continue with the next start; a second
    Ctrl-C ends it immediately. The first start creates a key. It is printed on a terminal or with --json; otherwise it
    is in the file admin-key of the home.
    """
    from luthier.platform.auth.first_key import take_given_key
    from luthier.platform.home.logs import teller
    from luthier.platform.home.permissions import private_files
    from luthier.platform.processes.stop_signals import AGAIN, stop_signals
    from luthier.server.service import ServerRequest, serve

    take_given_key()  # it is for `prepare` alone
    # The processes of the server learn of these by the environment, as this one does.
    given = {"LUTHIER_DATABASE": database, "LUTHIER_ARTIFACTS": artifacts, "LUTHIER_LOG_FORMAT": log_format}
    os.environ.update({name: value for name, value in given.items() if value is not None})

    def show(started: Started) -> None:
        if as_json:
            _print_line(json.dumps(started.as_json()))
        else:
            _show(started)

    def notice() -> str:
        return (
            "active requests are answered; a training ends its step, writes a checkpoint and continues with the next "
            f"start (at most a minute). {AGAIN}"
        )

    # The umask first, so that all that is made from here on, by children too, is private.
    with private_files(), stop_signals(notice) as stop_requested, open_context(home, holds_models=False) as context:
        serve(
            context,
            ServerRequest(host=host, port=port, num_workers=num_workers, shows_key=as_json or _is_read_by_a_person()),
            stop_requested=stop_requested,
            tell=teller(context.settings.log_format, "up"),
            started=show,
        )


def _is_read_by_a_person() -> bool:
    """Whether stdout is a terminal, and not a journal, a log or a pipe."""
    return sys.stdout.isatty()


def _print_line(line: str) -> None:
    from luthier.platform.cli.streams import discard

    stdout = sys.__stdout__ or sys.stdout  # under --json, sys.stdout is stderr until a command has ended
    try:
        stdout.write(f"{line}\n")
        stdout.flush()
    except BrokenPipeError:
        discard(stdout)  # who started the server has read its first line, and reads no more: it continues


def _show(started: Started) -> None:
    from luthier.platform.cli.console import facts, stdout_console

    rows = [
        ("server", f"{started.url}/v1"),
        ("home", str(started.home)),
        ("database", started.database),
        ("workers", ", ".join(started.workers) or "none here"),
    ]
    if started.link is not None:
        rows.insert(0, ("pages", f"{started.link}  (signs you in, once, within 15 minutes)"))
    elif started.is_loopback:
        rows.insert(0, ("pages", in_home(f"{started.url}  (signs you in: luthier users link --url {started.url})")))
    if started.key is not None:
        rows.append(("admin key", f"{started.key}  (shown only once: store it now)"))
    if started.key_file is not None:
        rows.append(("admin key", _in_file(str(started.key_file))))
    console = stdout_console()
    facts(console, rows)
    if not started.is_loopback:
        console.print(
            "Others can reach this address, and it speaks plain HTTP: put a reverse proxy with TLS before it.",
            soft_wrap=True,
        )
    console.print("Ctrl-C ends it; trainings continue with the next start.", soft_wrap=True)


def _in_file(place: str) -> str:
    return f"in {place}  (readable by its owner alone: copy the key and delete the file)"


def prepare(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Migrate the database, check database, artifacts and disk, and create the first key if there is none.

    For containers and clusters, before server and workers start; it opens no port. The first key comes from
    LUTHIER_ADMIN_KEY, or is created. It is printed once on a terminal or with --json; otherwise it is in the file
    admin-key of the home, so that no journal contains it.
    """
    from luthier.platform.auth.first_key import take_given_key
    from luthier.platform.home.permissions import private_files
    from luthier.server.prepare import prepare_home

    given, is_shown = take_given_key(), as_json or _is_read_by_a_person()
    with private_files(), open_context(home) as context:
        prepared = prepare_home(context, given, is_shown=is_shown)
    return Answer(as_json, prepared.as_json(), lambda console: _show_prepared(console, prepared))


def _show_prepared(console: Console, prepared: Prepared) -> None:
    from luthier.platform.cli.console import facts

    shown = f"{prepared.key}  (shown only once: store it now)"
    key = {
        "made": shown if prepared.key_file is None else _in_file(prepared.key_file),
        "given": "the first key is that of LUTHIER_ADMIN_KEY",
        "there": "there is one already",
    }[prepared.key_is]
    rows = [("database", f"{prepared.database}, schema {prepared.schema}"), ("artifacts", prepared.artifacts)]
    facts(console, [*rows, ("admin key", key)])


COMMANDS: dict[str, Callable[..., Any]] = {"start": start, "prepare": prepare}

# How requests share an engine, by the names of vLLM.
MaxNumSeqsOption = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs", metavar="N", min=1, help="Maximum number of answers that an engine writes in parallel."
    ),
]
MaxNumBatchedTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens",
        metavar="N",
        min=32,
        help="Maximum tokens of one step; longer prompts are read in parts, between the steps of other answers.",
    ),
]
PrefixCachingOption = Annotated[
    bool | None,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        help="Reuse what is in memory for a prompt that begins like an earlier one.",
    ),
]
SpeculativeConfigOption = Annotated[
    str | None,
    typer.Option(
        "--speculative-config",
        metavar="JSON",
        help='How tokens are drafted: \'{"method": "ngram", "num_speculative_tokens": 8}\'.',
    ),
]
QuantizationOption = Annotated[
    Literal["auto", "float16", "q8_0"] | None,
    typer.Option(
        "--quantization", help="Precision of GGUF copies; auto: q8_0 if it is as close to the model as float16."
    ),
]


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help=f"Each {ANY_MODEL}; NAME=MODEL serves it under another name.",
        ),
    ],
    engine: EngineOption = "auto",
    host: Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port to listen on; 0 for any free one.")
    ] = 8521,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key", metavar="FILE", help="A file with accepted keys, one a line, in addition to those of the home."
        ),
    ] = None,
    max_num_seqs: MaxNumSeqsOption = None,
    max_num_batched_tokens: MaxNumBatchedTokensOption = None,
    enable_prefix_caching: PrefixCachingOption = None,
    speculative_config: SpeculativeConfigOption = None,
    quantization: QuantizationOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a line of JSON on stdout once the server answers, and one once a model is loaded."
        ),
    ] = False,
    home: HomeOption = None,
) -> None:
    """Serve models with OpenAI's API: chat, completions, embeddings, classes; adapters of one base share it in memory.

    No key is needed on an address that only this machine reaches; on others a key is needed. Ctrl-C shuts it down
    cleanly. For jobs, files, projects and deployments there is `luthier up`.
    """
    from luthier.platform.auth.first_key import take_given_key
    from luthier.platform.home.logs import teller
    from luthier.platform.processes.stop_signals import AGAIN, stop_signals
    from luthier.server.standalone import StandaloneRequest, read_engine_settings, serve_models

    take_given_key()
    settings = read_engine_settings(max_num_seqs, max_num_batched_tokens, enable_prefix_caching, speculative_config)

    def started(server: StandaloneServer) -> None:
        if as_json:
            _print_line(json.dumps(server.as_json()))
        else:
            _show_models(server)

    def loaded(model: str, seconds: float) -> None:
        _print_line(
            json.dumps({"ready": model, "seconds": round(seconds, 3)}) if as_json else f"ready: {model} answers"
        )

    def notice() -> str:
        return f"active answers are finished, then the server ends. {AGAIN}"

    with stop_signals(notice) as stop_requested, open_context(home) as context:
        serve_models(
            context,
            StandaloneRequest(tuple(models), engine, host, port, key_file, settings, quantization),
            stop_requested=stop_requested,
            tell=teller(context.settings.log_format, "serve"),
            started=started,
            loaded=loaded,
        )


def _show_models(server: StandaloneServer) -> None:
    from luthier.features.serving.head_answers import example_request
    from luthier.features.serving.models import head_of
    from luthier.platform.cli.console import facts, make_table, stdout_console, visible

    console = stdout_console()
    keys = "not needed on this machine" if server.is_open else "Authorization: Bearer KEY"
    facts(console, [("server", f"{server.url}/v1"), ("key", keys)])
    table = make_table(["model", "engine", "weights"], num_text_columns=3)
    for name, decision in server.models.items():
        served = decision.served
        weights = served.path if served.adapter_path is None else f"{served.path} + {served.adapter_path}"
        table.add_row(visible(name), served.engine, visible(weights))
    console.print(table)
    for name, decision in server.models.items():
        words = f"engine of {name}: {decision.served.engine} ({decision.reason})"
        console.print(visible(words), soft_wrap=True)
    header = "" if server.is_open else ' -H "Authorization: Bearer $KEY"'
    first = next(iter(server.models))
    route, body = example_request(first, head_of(server.models[first].served))
    quoted = json.dumps(body).replace("'", "'\\''")
    console.print(f"curl {server.url}{route}{header} -H 'Content-Type: application/json' \\", soft_wrap=True)
    console.print(f"  -d '{quoted}'", soft_wrap=True)
    if not server.is_loopback:
        console.print(
            "Others can reach this address, and it speaks plain HTTP: put a reverse proxy with TLS before it.",
            soft_wrap=True,
        )
    console.print(f"loading {next(iter(server.models))} ... (Ctrl-C ends the server)", soft_wrap=True)
