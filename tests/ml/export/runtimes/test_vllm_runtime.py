"""An export for vLLM is proved over HTTP, against a program that speaks vLLM's API and computes with transformers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.forked_vllm import quick_stubs
from tests.ml.export.conftest import MakeSource

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import TemplateError, WorkError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import registry
from luthier.ml.export.parity import compare
from luthier.ml.export.runtimes.vllm_runtime import VllmRuntime
from luthier.ml.export.source_side import observe_source


@pytest.fixture(scope="module")
def folder(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter merged into the tiny model, as an export for vLLM in float32."""
    target = tmp_path_factory.mktemp("vllm") / "export"
    target.mkdir()
    registry.write("vllm", make_source(), target, "float32", SilentProgress(), target.parent)
    return target


@pytest.fixture(scope="module")
def runtime(folder: Path, make_source: MakeSource, fork_server: SessionForkServer) -> Iterator[VllmRuntime]:
    with quick_stubs(fork_server), pytest.MonkeyPatch.context() as patched:
        patched.setenv("LUTHIER_VLLM_COMMAND", shlex.join([sys.executable, "-m", "luthier.testing.vllm_stub"]))
        patched.setenv("LUTHIER_VLLM_STUB", json.dumps({"computes": True}))
        opened = registry.open_export("vllm", folder, make_source())
    assert isinstance(opened, VllmRuntime)
    with closing(opened):
        yield opened


def test_an_export_is_proved_equal(runtime: VllmRuntime, make_source: MakeSource, examples: list[Example]) -> None:
    observed = observe_source(make_source(), examples, SilentProgress())
    report = compare(observed, runtime, "vllm", "float32", SilentProgress())
    assert report.passed, report.reasons
    assert report.num_prompts_same_tokens == report.num_texts_equal == len(examples)
    assert (report.runtime, report.runtime_version) == ("vllm", "0.0.0+stub")
    assert report.max_difference_nats < 1e-4


def test_another_model_is_not(runtime: VllmRuntime, make_source: MakeSource, examples: list[Example]) -> None:
    base = observe_source(make_source(adapter_path=None), examples, SilentProgress())
    report = compare(base, runtime, "vllm", "float32", SilentProgress())
    assert not report.passed
    assert "Log-probabilities differ" in report.reasons[0]


def test_it_is_opened_in_the_type_of_its_files(runtime: VllmRuntime, folder: Path) -> None:
    (line,) = (line for line in runtime._process.tail() if line.startswith("INFO: the stub starts"))
    assert f"serve {folder} --served-model-name export --dtype float32 --max-logprobs 64 --max-model-len 512" in line


def test_a_prompt_that_it_cannot_write_is_named(runtime: VllmRuntime) -> None:
    asked = Conversation(messages=(Message(role="user", content="Why?"),))
    runtime._template = "{{ raise_exception('one system turn alone') }}"
    try:
        with pytest.raises(TemplateError, match=r"vLLM cannot write a prompt: .* HTTP 400: .*one system turn alone"):
            runtime.prompt_tokens(asked)
    finally:
        runtime._template = None


def test_a_server_that_has_ended_shows_its_last_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fork_server: SessionForkServer
) -> None:
    monkeypatch.setenv("LUTHIER_VLLM_STUB", json.dumps({"die_on": 2}))
    stub = [sys.executable, "-m", "luthier.testing.vllm_stub"]
    with (
        quick_stubs(fork_server),
        closing(VllmRuntime(folder, command=stub)) as opened,
        pytest.raises(WorkError, match=r"memory access"),
    ):
        opened.greedy([1, 2], 4)
