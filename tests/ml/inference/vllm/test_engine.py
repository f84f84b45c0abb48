import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psutil
import pytest
from tests.fixtures.forked_vllm import quick_stubs

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ConflictError, ModelSourceError, NotFoundError, OverlongError, RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.stream import EngineSettings, Served, SpeculativeConfig, TextRequest
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.stream_registry import open_stream_engine
from luthier.ml.inference.vllm import engine as vllm_engine
from luthier.ml.inference.vllm import process as vllm_process
from luthier.ml.inference.vllm.engine import VllmEngine, settings_arguments
from luthier.ml.inference.vllm.process import vllm_command
from luthier.testing.engine_contract import GenerationContract
from luthier.testing.stream_contract import Heard, StreamEngineContract, listen, question, write_all

STUB = [sys.executable, "-m", "luthier.testing.vllm_stub"]


@pytest.fixture(autouse=True, scope="module")
def quick(fork_server):
    """Its children are forked, and looked at more often than users need it."""
    with quick_stubs(fork_server):
        yield


@pytest.fixture
def settings(monkeypatch):
    def set_stub(**values):
        monkeypatch.setenv("LUTHIER_VLLM_STUB", json.dumps(values))
        monkeypatch.setenv("LUTHIER_VLLM_COMMAND", shlex.join(STUB))

    set_stub()
    return set_stub


@pytest.fixture(scope="module")
def shared(tiny):
    opened = VllmEngine(str(tiny), command=STUB)
    yield opened
    opened.close()


@pytest.fixture
def engine(shared):
    return shared


class TestGeneration(GenerationContract):
    """As every engine."""


class TestStream(StreamEngineContract):
    @pytest.fixture
    def stream_engine(self, tiny):
        opened = VllmEngine(str(tiny), command=STUB)
        yield opened
        opened.close()

    @pytest.fixture
    def adapters(self, peft_adapters):
        return [str(folder) for folder in peft_adapters]


def test_it_is_started_as_its_documentation_says(tiny, settings):
    settings(start_seconds=0.3)
    engine = open_stream_engine(Served(engine="vllm", path=str(tiny), sha256="", precision="bfloat16"))
    (line,) = (line for line in engine._process.tail() if line.startswith("INFO: the stub starts"))
    engine.close()
    assert (
        f"serve {tiny} --served-model-name base --dtype bfloat16 --enable-lora --max-loras 8 --max-cpu-loras 32 "
        "--max-lora-rank 64 --max-logprobs 64 --uds" in line
    )


def test_a_prefix_language_model_is_refused_before_vllm_starts(tmp_path, settings):
    settings(start_seconds=0.3)
    (tmp_path / "config.json").write_text('{"model_type": "hrm_text", "architectures": ["HrmTextForCausalLM"]}')
    with pytest.raises(ModelSourceError, match="in both directions"):
        open_stream_engine(Served(engine="vllm", path=str(tmp_path), sha256=""))


def test_only_its_own_user_reaches_it(tiny, settings, monkeypatch):
    monkeypatch.setattr(vllm_process, "subprocess", subprocess)  # a forked one shows the environment of its parent
    engine = VllmEngine(str(tiny))
    place, child = engine._process.socket_path, psutil.Process(engine._process._process.pid)
    assert (stat.S_IMODE(place.parent.stat().st_mode), list(place.parent.iterdir())) == (0o700, [place])
    # vLLM asks for no key there, so that nobody else may get there: it listens on no port.
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(place))) as client:
        assert client.get("http://vllm/metrics").status_code == 200
        assert client.get("http://vllm/v1/models").status_code == 401
    assert child.net_connections("inet") == []
    assert child.net_connections("unix"), "it does listen"
    assert child.environ()["VLLM_HOST_IP"] == "127.0.0.1"
    engine.close()
    assert not place.parent.exists()


def test_a_system_without_such_sockets_gets_a_port_of_the_loopback(tiny, settings, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(vllm_process, "socket", SimpleNamespace())
        assert vllm_process._socket_path(ExitStack()) is None
    monkeypatch.setattr(vllm_process, "_socket_path", lambda _scratch: None)
    engine = VllmEngine(str(tiny))
    connections = psutil.Process(engine._process._process.pid).net_connections("inet")
    assert [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN] == ["127.0.0.1"]
    assert write_all(engine, {"a": question("Why?")}).texts["a", 0]
    engine.close()


def test_a_long_folder_of_temporary_files_leaves_room_for_the_socket(monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "long" * 30)
    with ExitStack() as scratch:
        place = vllm_process._socket_path(scratch)
        assert len(os.fsencode(place)) < 104
        assert place.parent.is_dir()
    assert not place.parent.exists()


def test_the_folder_of_a_killed_process_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(vllm_process, "_MAX_SOCKET_FOLDER_BYTES", 1000)
    abandoned, other = tmp_path / f"luthier-vllm-{'0a' * 8}", tmp_path / "luthier-vllm-mine"
    for folder in (abandoned, other):
        folder.mkdir()
        (folder / "socket").touch()
    with ExitStack() as first, ExitStack() as second:
        held = vllm_process._socket_path(first)
        assert not abandoned.exists()
        assert vllm_process._socket_path(second).parent.is_dir()
        assert held.parent.is_dir(), "one that is in use stays"
    assert list(tmp_path.iterdir()) == [other]


def test_settings_are_given_to_vllm_by_its_own_names():
    drafts = SpeculativeConfig(method="ngram", num_speculative_tokens=4)
    settings = EngineSettings(
        max_num_seqs=8, max_num_batched_tokens=256, enable_prefix_caching=False, speculative_config=drafts
    )
    *given, config = settings_arguments(settings)
    assert given == [
        "--max-num-seqs", "8", "--max-num-batched-tokens", "256", "--no-enable-prefix-caching", "--speculative-config",
    ]  # fmt: skip
    assert json.loads(config) == {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    drafts = SpeculativeConfig(method="draft_model", num_speculative_tokens=4, model="small")
    _, config = settings_arguments(EngineSettings(speculative_config=drafts))
    assert json.loads(config) == {"method": "draft_model", "num_speculative_tokens": 4, "model": "small"}
    assert settings_arguments(EngineSettings(enable_prefix_caching=True)) == ["--enable-prefix-caching"]
    assert settings_arguments(EngineSettings()) == []


def test_two_of_a_card_are_started_with_their_parts_of_its_memory(tiny, settings, monkeypatch):
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", shlex.join(STUB))
    served = Served(path=str(tiny), sha256="", engine="vllm")
    for share, given in ((None, False), (0.45, True)):
        engine = vllm_engine.open_stream_engine(served, None, share)
        (line,) = (line for line in engine._process.tail() if line.startswith("INFO: the stub starts"))
        engine.close()
        assert ("--gpu-memory-utilization 0.45" in line, "--gpu-memory-utilization" in line) == (given, given)


def test_a_missing_vllm_is_said_with_words(monkeypatch, tmp_path):
    with pytest.raises(NotFoundError, match="without vLLM") as caught:
        vllm_command({"PATH": str(tmp_path)})
    assert "LUTHIER_VLLM_COMMAND" in caught.value.expected
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    assert vllm_command({"PATH": str(tmp_path)}) == [str(tmp_path / "vllm")]
    assert vllm_command({"LUTHIER_VLLM_COMMAND": "uv run vllm"}) == ["uv", "run", "vllm"]


def test_a_command_that_is_none_is_said_with_words(tiny):
    with pytest.raises(NotFoundError, match="cannot be started"):
        VllmEngine(str(tiny), command=["/no/such/program"])


def test_a_child_that_ends_at_once_is_an_error_with_its_last_words(tiny, settings):
    settings(exit_code=3)
    with pytest.raises(
        WorkError, match=r"exit code 3: ValueError: no GPU was found; its output:(\n|.)*no GPU"
    ) as caught:
        VllmEngine(str(tiny))
    assert "CUDA_VISIBLE_DEVICES" in caught.value.do


def test_the_cause_is_named_also_where_it_is_far_above_the_end_of_the_log(tiny, settings):
    traceback = "  File 'wrapper.py', line 7, in wait\n    wait_for_engine()\n" * 300
    cause = "(EngineCore pid=7) ERROR 12-03 13:45:01 [core.py:1510] ValueError: Unknown quantization method: w3a3."
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    settings(exit_code=1, log=f"{cause}\nTraceback (most recent call last):\n{traceback}{end}")
    with pytest.raises(WorkError, match=r"exit code 1: ValueError: Unknown quantization method: w3a3\.; its") as caught:
        VllmEngine(str(tiny))
    assert "16 bits" in caught.value.do
    assert "memory" not in caught.value.do


def test_one_that_never_gets_ready_is_given_up(tiny, settings):
    settings(start_seconds=1000)
    with pytest.raises(WorkError, match="not ready after 1 s"):
        VllmEngine(str(tiny), start_seconds=0.6)


def test_waiting_shows_the_log(tiny, settings):
    settings(start_seconds=0.6)
    notes = []

    class Noting(SilentProgress):
        def task(self, *arguments):
            task = super().task(*arguments)
            task.note = notes.append
            return task

    VllmEngine(str(tiny), progress=Noting()).close()
    assert any("the stub starts" in note for note in notes)


def test_a_child_that_dies_is_started_again_with_its_adapters(tiny, settings, peft_adapters):
    settings(die_on=3)
    engine = VllmEngine(str(tiny), first_pause_seconds=0.01)
    engine.load_adapter("first", str(peft_adapters[0]))
    asked = question("Which wood?")
    before = write_all(engine, {"a": asked}, {"a": "first"})
    failed = write_all(engine, {"b": TextRequest(token_ids=(5, 6, 7))})
    assert failed.failures["b"].error["type"] == "WorkError"
    after = write_all(engine, {"a": asked}, {"a": "first"})
    assert after.texts == before.texts
    engine.close()


def test_an_adapter_that_cannot_be_loaded_again_leaves_the_base_and_the_others(tiny, settings, peft_adapters, tmp_path):
    settings(die_on=3)
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in peft_adapters[:2]]
    engine = VllmEngine(str(tiny), first_pause_seconds=0.01)
    for name, folder in zip(("first", "second"), folders, strict=True):
        engine.load_adapter(name, str(folder))
    asked = question("Which wood?")
    before = write_all(engine, {"base": asked, "b": asked}, {"b": "second"})
    config = folders[0] / "adapter_config.json"
    whole = config.read_text()
    config.write_text('{"r": 128}')
    write_all(engine, {"b": TextRequest(token_ids=(5, 6, 7))})
    after = write_all(engine, {"base": asked, "b": asked}, {"b": "second"})
    assert after.texts["base", 0] == before.texts["base", 0]
    assert after.texts["b", 0] != after.texts["base", 0]
    for _ in range(2):
        with pytest.raises(RequestError, match=r"refuses the adapter 'first'.*rank 128"):
            engine.ask("a", asked, "first")
    config.write_text(whole)  # it is tried again each time
    assert write_all(engine, {"a": asked}, {"a": "first"}).texts["a", 0]
    engine.close()


def test_a_child_that_ends_while_it_is_connected_to_is_started_again(tiny, settings, monkeypatch):
    settings(die_on=3)
    engine = VllmEngine(str(tiny), first_pause_seconds=0.01)
    ask_context, failures = engine._ask_context, [WorkError("gone", expected="an answer", do="try again")]

    def failing_once():
        if failures:
            raise failures.pop()
        return ask_context()

    monkeypatch.setattr(engine, "_ask_context", failing_once)
    write_all(engine, {"b": TextRequest(token_ids=(5, 6, 7))})
    assert write_all(engine, {"a": question("Which wood?")}).texts["a", 0]
    assert failures == []
    engine.close()


def test_a_name_never_answers_with_the_weights_of_another_adapter(tiny, settings, peft_adapters):
    settings()
    first, second = (str(folder) for folder in peft_adapters[:2])
    engine, asked = VllmEngine(str(tiny)), question("Which wood?")
    engine.load_adapter("a", first)
    of_first = write_all(engine, {"a": asked}, {"a": "a"}).texts["a", 0]
    with pytest.raises(ConflictError, match="'a'") as caught:
        engine.load_adapter("a", second)
    assert second in caught.value.came
    assert first in caught.value.came
    # vLLM still has the name, as after an unload that it did not hear of.
    engine._adapters.pop("a")
    engine.load_adapter("a", second)
    of_second = write_all(engine, {"a": asked}, {"a": "a"}).texts["a", 0]
    assert of_second != of_first
    engine.close()


def test_the_child_ends_also_where_its_connections_do_not_close(tiny, settings, monkeypatch):
    settings()
    engine = VllmEngine(str(tiny))
    child, close = engine._process._process, engine._stream.close

    def failing():
        close()
        raise TimeoutError

    monkeypatch.setattr(engine._stream, "close", failing)
    with pytest.raises(TimeoutError):
        engine.close()
    assert child.poll() is not None
    assert engine._http.is_closed


def test_one_that_cannot_live_is_given_up_with_words(tiny, settings):
    engine = VllmEngine(str(tiny), command=STUB, first_pause_seconds=0.001)
    settings(exit_code=9)
    engine._process._process.kill()
    heard = Heard()
    with pytest.raises(WorkError, match=r"5 times in a row(.|\n)*no GPU was found"):
        listen(engine, heard, lambda: False)
    engine.close()


def test_who_was_answered_hears_of_an_end_that_the_next_request_has_found(tiny, settings):
    settings(pace_seconds=10)
    engine = VllmEngine(str(tiny))
    assert engine.ask("a", question("Why?"), None)
    engine._num_failed = 4  # one end more, and it is given up
    engine._process._process.kill()
    engine._process._process.wait()
    with pytest.raises(WorkError, match="5 times in a row"):
        engine.ask("b", question("Why?"), None)
    assert engine.keys == {"a"}
    with pytest.raises(WorkError, match="in a row"):
        engine.poll(0)
    engine.close()


def test_asks_end_where_the_context_does(tiny, settings):
    settings(context=20)
    engine = VllmEngine(str(tiny))
    heard = write_all(engine, {"a": TextRequest(token_ids=(5,) * 15, max_new_tokens=100)})
    assert (heard.ends["a", 0].num_new_tokens, heard.ends["a", 0].reason) == (5, "length")
    with pytest.raises(OverlongError, match="20 tokens"):
        engine.ask("b", TextRequest(token_ids=(5,) * 20), None)
    with pytest.raises(RequestError, match="empty"):
        engine.ask("b", TextRequest(text=""), None)
    engine.close()


def test_adapters_that_it_does_not_take_are_refused(shared, peft_adapters, tmp_path):
    with pytest.raises(NotFoundError, match="no adapter"):
        shared.load_adapter("a", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"r": 128}')
    with pytest.raises(RequestError, match="rank 128"):
        shared.load_adapter("a", str(tmp_path))
    with pytest.raises(RequestError, match="'a'"):
        shared.ask("x", question("Why?"), "a")
    with pytest.raises(RequestError, match="likelihoods"):
        shared.score([], SilentProgress())


def test_an_adapter_without_effect_is_refused_and_leaves_the_others(tiny, settings, peft_adapters):
    settings(inert=True)
    engine = VllmEngine(str(tiny))
    with pytest.raises(RequestError, match="changes nothing in vLLM"):
        engine.load_adapter("a", str(peft_adapters[0]))
    with pytest.raises(RequestError, match="none: no adapter is loaded"):
        engine.ask("x", question("Why?"), "a")
    assert write_all(engine, {"base": question("Why?")}).texts["base", 0]
    engine.close()


class _Proof:
    """Ready when it is let; refuses what it is told to."""

    def __init__(self):
        self.is_ready, self.refuses = False, True

    def prepare(self, path):
        return self.is_ready

    def check(self, name, path, complete):
        if self.refuses:
            raise RequestError(f"{name} is another", expected="the same", do="merge it")


def test_requests_for_an_adapter_wait_for_its_proof_and_get_its_error(tiny, settings, peft_adapters):
    proof = _Proof()
    engine, asked = VllmEngine(str(tiny), proof=proof), question("Which wood?")
    engine.load_adapter("a", str(peft_adapters[0]))
    assert not engine.ask("x", asked, "a")
    assert write_all(engine, {"base": asked}).texts["base", 0]
    proof.is_ready = True
    for _ in range(2):
        with pytest.raises(RequestError, match="a is another"):
            engine.ask("x", asked, "a")
    proof.refuses = False
    assert write_all(engine, {"a": asked}, {"a": "a"}).texts["a", 0]
    engine.close()


def test_answers_end_at_every_end_token_of_the_template(tiny, settings):
    settings()
    engine = VllmEngine(str(tiny))
    assert engine._stream._extra["stop_token_ids"] == list(ChatTemplate.load(tiny).end_of_turn_ids)
    engine.close()


def test_a_vllm_of_another_environment_gets_none_of_the_packages_of_this_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/packages")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(vllm_process, "_GPU", tmp_path / "none")
    # As of a container on a larger machine.
    monkeypatch.setattr(vllm_process, "memory_bytes", lambda: (40 << 30, 1 << 30))
    assert vllm_process._inherited([sys.executable])["PYTHONPATH"] == "/packages"
    other = vllm_process._inherited(["/opt/vllm/bin/vllm"])
    assert "PYTHONPATH" not in other
    # A quarter of the memory for keys and values, where nobody has said otherwise.
    assert other["VLLM_CPU_KVCACHE_SPACE"] == "10"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert vllm_process._inherited(["/opt/vllm/bin/vllm"])["VLLM_CPU_KVCACHE_SPACE"] == "3"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.setattr(vllm_process, "_GPU", tmp_path)
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm_process._inherited(["/opt/vllm/bin/vllm"])


def test_the_child_ends_with_its_parent(tiny, tmp_path):
    script = (
        "import sys, time; from luthier.ml.inference.vllm.process import VllmProcess; "
        f"p = VllmProcess({STUB!r}, ['m', '--served-model-name', 'base']); p.start(); "
        "print(p._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 120
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid):
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_calls_in_the_text_are_told_as_calls(tiny, settings):
    settings(say='Well. <call>{"name": "f", "arguments": {"a": 1}}</call>')
    engine = VllmEngine(str(tiny))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    conversation = Conversation(messages=(Message(role="user", content="Why?"),), tools=(tool,))
    heard = write_all(engine, {"a": TextRequest(conversation=conversation)})
    calls = [call for piece in heard.pieces["a", 0] for call in piece.calls]
    assert (heard.texts["a", 0], heard.ends["a", 0].reason) == ("Well.", "tool_calls")
    assert (calls[0].name, "".join(call.arguments for call in calls)) == ("f", '{"a": 1}')
    with pytest.raises(RequestError, match="required"):
        engine.ask("a", TextRequest(conversation=conversation, tool_choice="required"), None)
    engine.close()


def test_requests_of_one_scope_alone_share_what_vllm_keeps_of_prompts(shared):
    asked = TextRequest(text="The front is made of", cache_scope="proj-1")
    assert shared.prepare(asked).extra["cache_salt"] == "proj-1"
    assert "cache_salt" not in shared.prepare(asked.model_copy(update={"cache_scope": None})).extra
