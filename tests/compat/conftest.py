"""One server for the tests of all clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home import hardware_benchmark
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.testing.servers import running_server
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.held import HELD

VERSIONS: Final = ("oldest", "newest")
"""Of the `openai` package."""


def _prefer_float32(context: Context) -> None:
    """Have the home know a machine on which float32 is faster: figures are compared to its last digits, also on AMX."""
    place = hardware_benchmark._place(context.settings.rates_folder)
    found = hardware_benchmark._read_saved(place)
    assert found is not None
    slow = found.rates.model_copy(update={"bfloat16": found.rates.float32 / 10})
    # As a quiet machine, so that it is not measured again.
    hardware_benchmark._keep(place, found.model_copy(update={"rates": slow, "busy_cores": 0.0}))
    assert hardware_of(context).precision == "float32"


@pytest.fixture(scope="package")
def keys_and_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, fork_server: SessionForkServer
) -> Iterator[Any]:
    """A server with two workers, so that the stories of both versions may go on at once."""
    home = tmp_path_factory.mktemp("compat") / "home"
    with Context.open(home) as context:
        pull_model(context, str(tiny_model))
        hardware_of(context)  # measured by this process already; those of the server would do so again
        _prefer_float32(context)
        keys = {
            "admin": create_key(context, "admin", scopes=("admin",))[1],
            "reader": create_key(context, "reader", scopes=("read",))[1],
        }
        for version in VERSIONS:
            keys[version] = create_key(context, version, scopes=("read",), requests_per_minute=1)[1]
            keys[f"crowd {version}"] = create_key(context, f"crowd {version}", scopes=("infer",))[1]
    # What is paused or cancelled in the middle has longer trainings than what comes to its end.
    environment = {"LUTHIER_SERVING_QUEUE_PER_KEY": "3", HELD: json.dumps(["12"])}
    with running_server(home, num_workers=2, environment=environment, popen=fork_server.popen_text) as server:
        yield keys, server
