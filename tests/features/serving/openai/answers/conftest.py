"""A real server on 127.0.0.1 over a home with a tiny base model, and unmodified OpenAI clients for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import uvicorn

from luthier.core.access import Scope
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app

MakeClient = Callable[..., openai.OpenAI]


class Server(uvicorn.Server):
    """Serves in a thread of the test."""

    def start(self) -> str:
        """Returns the address."""
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not self.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """Waits until it has ended."""
        self.should_exit = True
        self.thread.join(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Context, str]]:
    """An open home and the address at which it is served. No fixture called `context`: others have one of their own."""
    home = tmp_path_factory.mktemp("api") / "home"
    settings = Settings(home=home, serving_threads=1, serving_queue=4)
    home.mkdir(parents=True)
    with Context(settings, SilentProgress()) as context:
        sources.pull(str(tiny_model), home, SilentProgress())
        hardware_of(context)  # this process has measured the machine; the one that answers would do so again
        server = Server(uvicorn.Config(create_app(context), port=0, log_level="warning"))
        address = server.start()
        yield context, address
        server.stop()


@pytest.fixture(scope="module")
def make_client(served: tuple[Context, str]) -> Iterator[MakeClient]:
    """Makes clients, each with a key of its own; without retries, so that what is answered is seen."""
    context, address = served
    made: list[openai.OpenAI] = []

    def make(*scopes: Scope, project: str = "default") -> openai.OpenAI:
        _, key = create_key(context, "test", scopes=scopes or ("admin",), project=project)
        made.append(openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(make_client: MakeClient) -> openai.OpenAI:
    """A client that may do everything."""
    return make_client()
