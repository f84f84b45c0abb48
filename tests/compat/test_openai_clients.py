"""The unmodified `openai` package, oldest and newest, against a real server: the whole way of a fine-tuned model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from luthier.testing.servers import PASSWORD, PostgresqlServer, RunningServer, home_server
from tests.compat.conftest import VERSIONS

STORY = Path(__file__).with_name("story.py")
OLDEST = Path(__file__).parents[2] / "build" / "openai-oldest"
TIMEOUT_SECONDS = 240


@pytest.fixture(scope="module")
def stories(keys_and_server: tuple[dict[str, str], RunningServer]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both stories, begun at once."""
    keys, server = keys_and_server
    begun = {}
    for version in VERSIONS:
        if version == "oldest" and not OLDEST.is_dir():
            continue
        path = {"PYTHONPATH": str(OLDEST)} if version == "oldest" else {}
        begun[version] = subprocess.Popen(
            [sys.executable, "-W", "error", str(STORY), f"{server.url}/v1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | path,
        )
        stdin = begun[version].stdin
        assert stdin is not None
        own = {"slow": keys[version], "crowd": keys[f"crowd {version}"]}
        stdin.write(json.dumps({"admin": keys["admin"], "reader": keys["reader"], **own}))
        stdin.close()
        begun[version].stdin = None  # communicate() would close it again
    yield begun
    for process in begun.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_cannot_tell(
    version: str, stories: dict[str, subprocess.Popen[str]], keys_and_server: tuple[dict[str, str], RunningServer]
) -> None:
    if version not in stories:
        pytest.skip("the oldest openai package is not installed: bash tests/client_packages.sh .venv/bin/python")
    out, errors = stories[version].communicate(timeout=TIMEOUT_SECONDS)
    log = keys_and_server[1].log
    assert stories[version].returncode == 0, f"{errors[-3000:]}\n{log.read_text()[-2000:]}"
    seen = json.loads(out.splitlines()[-1])
    assert seen["version"] == ("1.18.0" if version == "oldest" else openai.__version__)
    assert seen["errors"] == {
        "BadRequestError": [400, "invalid_file"],
        "AuthenticationError": [401, "invalid_api_key"],
        "PermissionDeniedError": [403, "missing_scope"],
        "NotFoundError": [404, "model_not_found"],
        "UnprocessableEntityError": [422, "idempotency_key_reused"],
        "RateLimitError": [429, "rate_limit_exceeded"],
        "ConflictError": [409, "conflict"],
    }


def test_a_database_that_is_away_is_an_error_of_the_server_and_passes(
    tmp_path: Path, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_DATABASE", postgresql.new_database())
    with (
        home_server(tmp_path / "home") as server,
        openai.OpenAI(api_key=server.key, base_url=f"{server.url}/v1", max_retries=0) as client,
    ):
        assert client.fine_tuning.jobs.list().data == []
        postgresql.stop()
        try:
            with pytest.raises(openai.InternalServerError) as caught:
                client.fine_tuning.jobs.list()
        finally:
            postgresql.start()
        assert caught.value.status_code == 503
        assert float(caught.value.response.headers["retry-after"]) > 0
        assert PASSWORD not in str(caught.value)
        assert client.fine_tuning.jobs.list().data == []
