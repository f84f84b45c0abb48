"""`luthier serve` as real processes, and what it refuses before it starts any."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked_children import SessionForkServer
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, RequestError
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.http.socket import listen
from luthier.platform.processes.stop_signals import stop_signals
from luthier.server import standalone
from luthier.server.standalone import StandaloneRequest, read_engine_settings, read_keys, serve_models

KEY = "a-key-of-sixteen-or-more"


def ask(url: str, model: str, key: str | None = None) -> tuple[int, Any]:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3})
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def refused(context: Context, **wishes: Any) -> None:
    serve_models(
        context,
        StandaloneRequest(("unknown",), **({"port": 0} | wishes)),
        stop_requested=lambda: "at once",
        tell=lambda words: None,
        started=lambda server: None,
        loaded=lambda model, seconds: None,
    )


def test_one_interrupt_ends_what_comes_before_the_server(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of models take minutes to make; nobody waits for an answer yet."""

    def choose(*_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal was only noted")

    monkeypatch.setattr(standalone, "choose_models", choose)
    with stop_signals(), pytest.raises(KeyboardInterrupt):
        refused(context)


@pytest.mark.parametrize(("wishes", "found"), [({}, "auto"), ({"quantization": "q8_0"}, "q8_0")])
def test_the_weights_of_copies_can_be_chosen(
    context: Context, monkeypatch: pytest.MonkeyPatch, wishes: dict[str, Any], found: str
) -> None:
    def choose(context: Context, *_: Any) -> dict[str, Any]:
        raise RequestError(context.settings.serving_quantization, expected="", do="")

    monkeypatch.setattr(standalone, "choose_models", choose)
    with pytest.raises(RequestError) as caught:
        refused(context, **wishes)
    assert caught.value.came == found


def test_it_answers_for_its_models_alone_and_ends_in_good_order(
    tmp_path: Path, tiny_model: Path, fork_server: SessionForkServer
) -> None:
    (tmp_path / "keys").write_text(f"# who may come in\n\n{KEY}\n", encoding="utf-8")
    home = tmp_path / "home"
    with Context.open(home) as context:
        _, of_the_home = create_key(context, "k", scopes=("infer",))
        hardware_of(context)  # measured by this process already; those of the server would do so again
    command = [sys.executable, "-m", "luthier", "serve", f"named={tiny_model}", "--json", "--port", "0"]
    command += ["--engine", "transformers"]  # how an engine is chosen: tests/features/serving/service
    command += ["--home", str(home), "--api-key", str(tmp_path / "keys")]
    with (
        (tmp_path / "log").open("w") as log,
        fork_server.popen_text(command, stderr=log, env=os.environ | {"LUTHIER_SERVING_THREADS": "1"}) as process,
    ):
        try:
            started = json.loads(process.stdout.readline())
            assert (started["needs_key"], list(started["models"])) == (True, ["named"])
            assert json.loads(process.stdout.readline())["ready"] == "named"
            for key, status in ((None, 401), ("wrong", 401), (KEY, 200), (of_the_home, 200)):
                assert ask(started["url"], "named", key)[0] == status
            status, answer = ask(started["url"], "tiny", KEY)
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    with Context.open(home) as context:
        assert sum(row.num_requests for row in context.usage.list("default")) >= 2


def test_settings_of_engines_reach_the_process_that_answers(
    tmp_path: Path, tiny_model: Path, fork_server: SessionForkServer
) -> None:
    """They are said again where an engine does not use them, so that nobody believes they hold."""
    command = [sys.executable, "-m", "luthier", "serve", str(tiny_model), "--json", "--port", "0"]
    command += ["--home", str(tmp_path / "home"), "--engine", "transformers", "--max-num-seqs", "2"]
    command += ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}']
    with (
        (tmp_path / "log").open("w") as log,
        fork_server.popen_text(command, stderr=log, env=os.environ | {"LUTHIER_SERVING_THREADS": "1"}) as process,
    ):
        try:
            (model,) = json.loads(process.stdout.readline())["models"].values()
            assert (model["engine"], model["reason"]) == ("transformers", "as --engine says")
            assert "ready" in json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "does not use speculative_config" in (tmp_path / "log").read_text()


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    """A PEFT folder over the tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "wood")
    return tmp_path / "wood"


def test_a_base_and_an_adapter_are_served_by_proved_copies(
    tmp_path: Path, tiny_model: Path, adapter: Path, fork_server: SessionForkServer
) -> None:
    pytest.importorskip("xllamacpp")
    from tests.test_tutorials import fetch_converter

    from luthier.core.ports import SilentProgress
    from luthier.ml.inference.models import sources

    home = tmp_path / "home"
    Context.open(home).close()
    sources.pull(str(tiny_model), home, SilentProgress())
    fetch_converter(home)
    found = {}
    for engine in ("auto", "llama_cpp"):
        # The base by its folder, the adapter's base by its record: one model all the same, and one copy.
        command = [sys.executable, "-m", "luthier", "serve", f"base={tiny_model}", str(adapter), "--json"]
        command += ["--port", "0", "--home", str(home), "--engine", engine]
        with (
            (tmp_path / "log").open("a") as log,
            fork_server.popen_text(command, stderr=log, env=os.environ | {"LUTHIER_SERVING_THREADS": "1"}) as process,
        ):
            try:
                started = json.loads(process.stdout.readline())
                assert "ready" in json.loads(process.stdout.readline())
                assert [ask(started["url"], name)[0] for name in ("base", "wood")] == [200, 200]
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
            finally:
                process.kill()
        found[engine] = started["models"]
    # Both are proved; which of them is faster is the machine's affair.
    assert all("proved" in one["reason"] for one in nonempty(found["auto"].values()))
    assert {one["engine"] for one in found["llama_cpp"].values()} == {"llama_cpp"}
    (folder,) = (home / "cache" / "serving").glob("*/model.gguf")
    assert {one["path"] for one in found["llama_cpp"].values()} == {str(folder)}
    assert (
        len(list(folder.parent.glob("adapters/*/adapter.gguf"))) == len(list(folder.parent.glob("speed-*.json"))) == 1
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((64, 32, None, None), "a step has a token of each answer"),
        ((None, None, None, "{"), "JSON"),
        ((None, None, None, '{"method": "medusa", "num_speculative_tokens": 4}'), "method"),
        ((None, None, None, '{"method": "ngram", "num_speculative_tokens": 4, "model": "x"}'), "model"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_engine_settings(*given)


def test_nobody_else_may_reach_it_without_a_key(context: Context, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no key"):
        refused(context, host="0.0.0.0")
    with pytest.raises(RequestError, match="the model 'unknown' does not exist"):
        refused(context)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConflictError, match="in use"):
        refused(context, port=taken.port)


def test_keys_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(RequestError, match="cannot be read"):
        read_keys(file)
    for text, words in (("", "no key"), ("# only words\n", "no key"), ("short\n", "too short")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(RequestError, match=words):
            read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read"):
        read_keys(file)
