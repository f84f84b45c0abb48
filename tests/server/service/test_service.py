"""`luthier up` as real processes: it answers, trains, ends in good order, and goes on where it stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.clock import wait_until
from tests.fixtures.forked_children import SessionForkServer

from luthier.core.errors import ConflictError, RequestError
from luthier.features.recipes.service import load_recipe
from luthier.features.training import jobs
from luthier.features.training.service import train
from luthier.platform.home.context import Context
from luthier.platform.http.socket import Listener, listen
from luthier.platform.processes.supervisor import Program
from luthier.server import service as server
from luthier.server.service import ServerRequest, Started, api_program, serve, worker_names
from luthier.testing.servers import running_server

MakeRecipe = Callable[..., Path]
Up = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Starts `luthier up`, waits for its line, and sees to it that none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, fails: bool = False) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        command = [sys.executable, "-m", "luthier", "up", "--json", "--port", "0", "--home", str(tmp_path / "home")]
        with (tmp_path / "up.log").open("a") as log:
            process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True)
        started.append(process)
        assert process.stdout is not None
        document = json.loads(process.stdout.read() if fails else process.stdout.readline())
        return process, document

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def get(url: str, path: str, *, timeout_seconds: float = 120.0) -> tuple[int, Any]:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def children(pid: int) -> list[tuple[int, str]]:
    """The processes that this one has started: id and command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if parent == pid:
            found.append((int(folder.name), words))
    return found


@pytest.mark.drill
def test_stopped_in_the_middle_of_a_job_it_goes_on_with_the_next_start(
    context: Context, make_recipe: MakeRecipe, up: Up
) -> None:
    training = {"max_steps": 300, "global_batch_size": 8, "learning_rate": 0.01, "num_threads": 1}
    recipe = make_recipe(data={"train": "train.jsonl"}, training=training | {"checkpoint_every_steps": 5})
    plain = train(context, load_recipe(recipe), base_dir=recipe.parent).as_json()
    job = jobs.submit(context, load_recipe(recipe), base_dir=recipe.parent)

    def step() -> int:
        found = [record.step for record in context.runs.list() if record.run_id == job.run_id]
        return found[0] if found else 0

    process, first = up("--log-format", "json")
    assert first["pid"] == process.pid
    assert first["key"].startswith("sk-luthier-")
    assert get(first["url"], "/readyz")[0] == 200
    wait_until(lambda: step() >= 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    between = context.jobs.get(job.job_id)
    assert (between.status, between.num_crashes) == ("queued", 0)
    assert 3 <= step() < 300

    process, second = up()
    assert "key" not in second, "the first key is told once"
    wait_until(lambda: context.jobs.get(job.job_id).status == "succeeded")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    result = context.runs.get(job.run_id).result
    assert result is not None
    assert result.adapter_sha256 == plain["adapter_sha256"]
    log = (context.home.parent / "up.log").read_text().splitlines()
    assert {json.loads(line)["process"] for line in log if line.startswith("{")} >= {"up", "up-1"}


def test_what_crashes_comes_back_and_what_is_orphaned_dies(context: Context, up: Up) -> None:
    process, line = up()
    (api,) = [pid for pid, words in children(process.pid) if "luthier.server.home" in words]
    os.kill(api, signal.SIGKILL)
    assert get(line["url"], "/healthz") == (200, {"status": "ok"}), "the socket stays: no one is turned away meanwhile"
    ids = [pid for pid, _ in children(process.pid)]
    assert len(ids) == 2
    assert api not in ids
    _, refused = up(fails=True)
    assert "as a server is in use" in refused["error"]["came"]
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ids))


def test_a_server_behind_a_proxy_on_this_machine_calls_no_private_network(
    tmp_path: Path, fork_server: SessionForkServer
) -> None:
    """Its socket is of this machine alone, as the docs set it up; who asks is not."""
    answers = []
    with running_server(tmp_path / "home", num_workers=0, popen=fork_server.popen_text) as running:
        host, port = running.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        headers = {"authorization": f"Bearer {running.key}", "content-type": "application/json"}
        for address in ("127.0.0.1", "2130706433", "0x7f.1", "10.0.0.1", "[::ffff:127.0.0.1]", "169.254.169.254"):
            connection.request("POST", "/api/v1/webhooks", json.dumps({"url": f"http://{address}:9/"}), headers)
            answer = connection.getresponse()
            answers.append((answer.status, "leads to" in answer.read().decode()))
        connection.close()
    assert answers == [(400, True)] * 6


def test_others_come_in_only_with_a_key(context: Context) -> None:
    def never() -> str | None:
        raise AssertionError("it was not refused")

    with pytest.raises(RequestError, match="has no key"):
        serve(
            context, ServerRequest(host="0.0.0.0", port=0),
            stop_requested=never, tell=lambda _: None, started=lambda _: None,
        )  # fmt: skip
    assert context.access.keys() == [], "and none is made that nobody was told"


def test_who_shares_a_database_shares_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Context.open(tmp_path / "a") as alone:
        assert worker_names(alone, 2) == ("up-1", "up-2")
    monkeypatch.setenv("LUTHIER_DATABASE", f"sqlite:///{tmp_path}/shared.db")
    with Context.open(tmp_path / "a") as first, Context.open(tmp_path / "b") as second:
        assert not set(worker_names(first, 3)) & set(worker_names(second, 3))
        assert worker_names(first, 3) == worker_names(first, 3)


def test_a_port_that_is_taken_says_what_to_do() -> None:
    with listen("127.0.0.1", 0) as first:
        assert first.url == f"http://127.0.0.1:{first.port}"
        with pytest.raises(ConflictError, match=f"port {first.port} of 127.0.0.1 is in use") as caught, \
                listen("127.0.0.1", first.port):  # fmt: skip
            pass
        assert "--port" in caught.value.do


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 70])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match="cannot listen"), listen(host, 0):
        pass


@pytest.mark.parametrize("host", ["::", "0.0.0.0"])
def test_every_address_is_not_this_machine_alone(host: str) -> None:
    with listen(host, 0) as opened:
        assert not opened.is_loopback
        assert opened.near_host in ("127.0.0.1", "::1")


def test_a_server_whose_threads_are_gone_is_started_again(
    context: Context, monkeypatch: pytest.MonkeyPatch, fork_server: SessionForkServer
) -> None:
    """Forty requests that keep their threads: every route that needs one hangs until the process is another one."""

    def program(_: str, of: Context, listener: Listener) -> Program:
        whole = api_program("unused", of, listener)
        assert whole.health is not None
        command = (sys.executable, "-m", "tests.fixtures.sticking_server", whole.command[-1])
        health = replace(whole.health, every_seconds=0.1)
        return replace(whole, command=command, health=health, stacks=None, grace_seconds=0.5)

    monkeypatch.setattr(server, "api_program", program)
    context.settings.__dict__["unhealthy_restart_seconds"] = 2.0
    told, urls, stuck = list[str](), list[str](), list[threading.Thread]()

    def started(first: Started) -> None:
        urls.append(first.url)
        for _ in range(40):
            stuck.append(threading.Thread(target=ask, args=("/stick",), daemon=True))
            stuck[-1].start()

    def ask(path: str, *, timeout_seconds: float = 30.0) -> int | None:
        try:
            return get(urls[0], path, timeout_seconds=timeout_seconds)[0]
        except (OSError, http.client.HTTPException):
            return None

    deadline = time.monotonic() + 300

    def is_over() -> str | None:
        assert time.monotonic() < deadline, told
        # Briefly: it is the supervisor that waits here, and it starts no process meanwhile.
        return "seen" if len(told) >= 2 and ask("/readyz", timeout_seconds=1.0) == 200 else None

    request = ServerRequest(port=0, num_workers=0)
    with fork_server.forking_supervised():
        serve(context, request, stop_requested=is_over_after(is_over, urls), tell=told.append, started=started)
    assert told[0].startswith("api is not healthy (status 503")
    assert "no thread was free for" in told[0]
    assert "40 of 40 are busy" in told[0]
    assert told[1].startswith("api has ended (")
    for thread in stuck:
        thread.join(60)


def is_over_after(is_over: Callable[[], str | None], urls: list[str]) -> Callable[[], str | None]:
    """Nothing is over before the server has an address."""
    return lambda: is_over() if urls else None
