"""The process that answers HTTP for a home: the API, and the pages where the API has no route; `luthier up` starts it.

    python -m luthier.server.home SOCKET      SOCKET: to listen on, as `lend` of `platform/http/socket.py` writes it

The home and the rest of the settings are in the environment. On SIGTERM it is no longer ready, answers for another
moment, so that load balancers notice, then finishes the active requests within a bounded time.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import Final

from fastapi import FastAPI

from luthier.core.system.facilities import write_stacks_on_request
from luthier.core.system.process_setup import follow_starter, lower_session_priority, run_to_end, start_daemon
from luthier.features.monitoring.loop import MonitorThreads
from luthier.features.serving.engine_lending import EngineLending
from luthier.platform.home.context import Context
from luthier.platform.home.logs import set_up_logging
from luthier.platform.http.server import make_server
from luthier.platform.http.socket import lent
from luthier.platform.notifications.webhooks import WebhookSender
from luthier.platform.processes.analysis import persistent_processes
from luthier.server.api import create_app
from luthier.server.pages import create_pages

_PRELOADED: Final = (
    # Schemas of evals and of answers.
    "jsonschema",
    "referencing.jsonschema",
    "luthier.ml.evaluation.metrics.structured_output",
    # Graders: BLEU.
    "sacrebleu.tokenizers.tokenizer_13a",
    "luthier.ml.evaluation.graders",
)
"""What requests import when they need it, 0.1 to 0.5 s each; the most frequent first. A thread loads it just before the
server listens. A request that comes sooner waits for it, as it would have waited for its own import."""
_log: Final = logging.getLogger("luthier.api")


def create_home_app(context: Context) -> FastAPI:
    """API and pages of an open home in one app."""
    return create_app(context, pages=create_pages(context))


def main(argument: str) -> None:
    """Serve the home of the environment on a socket until SIGTERM."""
    follow_starter()
    # First of all: threads and children that start later inherit the weight of the session.
    lower_session_priority()
    with Context.open() as context, lent(argument) as listening:
        # The supervisor requests the stacks of a process that hangs before it ends it.
        write_stacks_on_request()
        set_up_logging(context.settings.log_format, "api")
        _ = context.database  # made and brought up to date before the first request
        app = create_home_app(context)
        start_daemon(preload, "preload")
        # Ended before the context closes the database that they use.
        with WebhookSender(context), MonitorThreads(context), EngineLending(context), persistent_processes():
            asyncio.run(make_server(app, context, app.state.readiness).serve(sockets=[listening]))


def preload() -> None:
    """Import what `_PRELOADED` names. A library that is missing is named by the request that needs it."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            _log.warning("%s cannot be loaded: %s", name, error)


if __name__ == "__main__":
    # Taking down what is in memory takes a second of processor time, and on a busy machine, where the session of this
    # process has a ninth of the usual weight, longer than the grace that it has to end.
    run_to_end(lambda: main(sys.argv[1]))
