"""An adapter answers once it differs from its base in vLLM, and a proof, where there is one, has passed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import RequestError, WorkError
from luthier.ml.inference.vllm.adapters import VllmAdapters
from luthier.ml.inference.vllm.answers import Complete


class _Vllm:
    """Answers as vLLM does. inert: adapters change nothing; fails: paths that it answers with HTTP 500."""

    def __init__(self, *, inert: bool = False, fails: tuple[str, ...] = ()) -> None:
        self.inert, self.fails = inert, fails
        self.loaded: list[str] = []
        self.requests: list[str] = []

    def ask(self, _method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        assert body is not None
        self.requests.append(path)
        if path in self.fails:
            return httpx2.Response(500, text="no such thing")
        if path == "load_lora_adapter":
            self.loaded.append(body["lora_name"])
        elif path == "unload_lora_adapter":
            self.loaded = [name for name in self.loaded if name != body["lora_name"]]
        else:
            return httpx2.Response(200, json={"choices": [self._choice(body)]})
        return httpx2.Response(200, text="Success")

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        nats = -1.0 if body["model"] == "base" or self.inert else -1.25
        row = {"5": {"logprob": nats}}
        return {
            "prompt_logprobs": [None, *[row] * (len(body["prompt"]) - 1)],
            "logprobs": {"top_logprobs": [{"token_id:5": nats}]},
        }


class _Proof:
    """Ready after some calls; fault: what it finds."""

    def __init__(self, num_waits: int = 0, fault: str = "") -> None:
        self.num_waits, self.fault, self.checked = num_waits, fault, list[str]()

    def prepare(self, path: str) -> bool:
        self.num_waits -= 1
        return self.num_waits < 0

    def check(self, name: str, path: str, complete: Complete) -> None:
        self.checked.append(name)
        if self.fault:
            raise RequestError(self.fault, expected="the source", do="merge it")


def _adapters(vllm: _Vllm, proof: _Proof | None = None) -> VllmAdapters:
    return VllmAdapters(vllm.ask, "base", [1, 2, 3], 64, proof)


def _written(folder: Path, value: float) -> str:
    folder.mkdir()
    save_file(
        {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.full((3, 2), value)},
        folder / "adapter_model.safetensors",
    )
    return str(folder)


def test_an_adapter_that_loads_and_does_nothing_is_refused_and_unloaded(tmp_path: Path) -> None:
    vllm = _Vllm(inert=True)
    with pytest.raises(RequestError, match=r"'a' at .* changes nothing in vLLM: after 3 tokens") as caught:
        _adapters(vllm).load("a", _written(tmp_path / "a", 0.5))
    assert "--to merged" in caught.value.do
    assert vllm.loaded == []
    assert vllm.requests[-1] == "unload_lora_adapter"


def test_an_adapter_that_was_not_trained_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vllm = _Vllm(inert=True)
    with caplog.at_level(logging.WARNING):
        _adapters(vllm).load("a", _written(tmp_path / "a", 0.0))
    assert vllm.loaded == ["a"]
    assert "all its matrices B are zero" in caplog.text


def test_the_base_is_asked_once_for_all_adapters_until_the_child_starts_again() -> None:
    vllm = _Vllm()
    adapters = _adapters(vllm)
    adapters.load("a", "/a")
    adapters.load("b", "/b")
    assert vllm.loaded == ["a", "b"]
    assert vllm.requests.count("completions") == 3
    adapters.start_again()
    adapters.load("a", "/a")
    assert vllm.requests.count("completions") == 5


def test_an_adapter_waits_for_its_proof() -> None:
    vllm, proof = _Vllm(), _Proof(num_waits=2)
    adapters = _adapters(vllm, proof)
    adapters.load("a", "/a")
    assert [adapters.is_proved("a", "/a") for _ in range(3)] == [False, True, True]
    assert proof.checked == ["a"]
    adapters.load("a", "/a")  # in a child that has started again
    assert proof.checked == ["a", "a"]


def test_an_adapter_whose_proof_fails_is_unloaded() -> None:
    vllm = _Vllm()
    with pytest.raises(RequestError, match="other answers"):
        _adapters(vllm, _Proof(fault="other answers")).load("a", "/a")
    assert vllm.loaded == []
    late = _Proof(num_waits=1, fault="other answers")
    adapters = _adapters(vllm, late)
    adapters.load("a", "/a")
    with pytest.raises(RequestError, match="other answers"):
        adapters.is_proved("a", "/a")
    assert vllm.loaded == []


def test_an_unloaded_adapter_is_proved_again() -> None:
    vllm, proof = _Vllm(), _Proof()
    adapters = _adapters(vllm, proof)
    adapters.load("a", "/a")
    adapters.unload("a")
    assert vllm.loaded == []
    adapters.load("a", "/a")
    assert proof.checked == ["a", "a"]


def test_errors_of_vllm_are_passed_on() -> None:
    with pytest.raises(RequestError, match="refuses the adapter 'a' at /a: no such thing"):
        _adapters(_Vllm(fails=("load_lora_adapter",))).load("a", "/a")
    with pytest.raises(WorkError, match="HTTP 500: no such thing"):
        _adapters(_Vllm(fails=("completions",))).load("a", "/a")


def test_an_adapter_with_modules_in_whole_is_refused_before_vllm_sees_it(tmp_path: Path) -> None:
    vllm = _Vllm()
    (tmp_path / "adapter_config.json").write_text('{"modules_to_save": ["embed_tokens", "lm_head"]}')
    with pytest.raises(RequestError, match=r"has embed_tokens, lm_head trained in whole[\s\S]*--to merged"):
        _adapters(vllm).load("a", str(tmp_path))
    assert vllm.requests == []
