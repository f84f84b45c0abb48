"""Adapters in vLLM are compared with transformers; vLLM is played by transformers itself, rightly and wrongly."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from tests.ml.export.conftest import MakeSource

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError, WorkError
from luthier.core.stream import Served
from luthier.ml.export.vllm_adapter_proof import TransformersProof, observe
from luthier.testing.vllm_stub import ComputedModel

Complete = Callable[[dict[str, Any]], dict[str, Any]]
_CHANNEL = cast("Channel", None)  # it is not used
MakeProof = Callable[..., TransformersProof]


@pytest.fixture(scope="module")
def side(make_source: MakeSource) -> dict[str, Any]:
    """The side of transformers, computed once, as a child process gives it."""
    found: dict[str, Any] = json.loads(json.dumps(observe({"source": make_source().model_dump(mode="json")}, _CHANNEL)))
    return found


class Remembered(ComputedModel):
    """What plays vLLM; an answer to the same request is computed once, and is a new document each time."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._known: dict[tuple[str | None, str], str] = {}

    def choice(self, adapter: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        request = adapter, json.dumps(body, sort_keys=True)
        if request not in self._known:
            self._known[request] = json.dumps(super().choice(adapter, body))
        found: dict[str, Any] = json.loads(self._known[request])
        return found


@pytest.fixture(scope="module")
def computed(tiny_model: Path) -> ComputedModel:
    return Remembered(str(tiny_model))


@pytest.fixture
def make_proof(tiny_model: Path, side: dict[str, Any], tmp_path: Path) -> MakeProof:
    """A proof over the tiny model that has its side of transformers at once, and counts how often it is computed."""

    def make(run: Callable[..., Any] | None = None, **changed: Any) -> TransformersProof:
        served = Served(engine="vllm", path=str(tiny_model), sha256="", precision=changed.pop("precision", "float32"))
        needs = {"memory_bytes": 2, "needed_bytes": 1} | changed
        return TransformersProof(served, tmp_path / "proofs", run=run or (lambda *_, **__: side), **needs)

    return make


def _ready(proof: TransformersProof, path: str) -> TransformersProof:
    proof.prepare(path)
    for made in proof._is_made.values():
        assert made.wait(120)
    assert proof.prepare(path)
    return proof


def _vllm(computed: ComputedModel, adapter: str | None) -> Complete:
    return lambda body: {"choices": [computed.choice(adapter, body)]}


def test_an_adapter_that_answers_as_in_transformers_passes(
    make_proof: MakeProof, computed: ComputedModel, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _ready(make_proof(), str(adapter)).check("a", str(adapter), _vllm(computed, str(adapter)))
    assert "is proved in vLLM: 8 of 8 greedy texts equal" in caplog.text


def test_an_adapter_that_changes_nothing_is_refused(
    make_proof: MakeProof, computed: ComputedModel, adapter: Path
) -> None:
    for precision in ("float32", "bfloat16"):
        proof = _ready(make_proof(precision=precision), str(adapter))
        with pytest.raises(RequestError, match="nearer to the base without the adapter") as caught:
            proof.check("a", str(adapter), _vllm(computed, None))
        assert "--to merged" in caught.value.do


def test_an_adapter_of_another_scale_is_refused(
    make_proof: MakeProof, computed: ComputedModel, adapter: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 2}))
    with pytest.raises(RequestError, match=r"other answers in vLLM than in transformers: Log-probabilities differ"):
        _ready(make_proof(), str(adapter)).check("a", str(adapter), _vllm(computed, str(other)))


def _shifted(complete: Complete, nats: float) -> Complete:
    """vLLM with one of twelve positions further from transformers than rounding explains."""

    def changed(body: dict[str, Any]) -> dict[str, Any]:
        document = complete(body)
        if len(body["prompt"]) % 12 == 0 and "return_tokens_as_token_ids" in body:
            row = document["choices"][0]["logprobs"]["top_logprobs"][0]
            row |= {token: of_token - nats for token, of_token in row.items()}
        return document

    return changed


def test_in_16_bits_the_mean_decides_where_single_positions_differ(
    make_proof: MakeProof, computed: ComputedModel, adapter: Path
) -> None:
    right = _vllm(computed, str(adapter))
    proof = _ready(make_proof(precision="bfloat16"), str(adapter))
    proof.check("a", str(adapter), _shifted(right, 1.05))
    with pytest.raises(RequestError, match="Log-probabilities differ"):
        proof.check("a", str(adapter), _shifted(right, 50.0))
    with pytest.raises(RequestError, match="Log-probabilities differ"):
        _ready(make_proof(), str(adapter)).check("a", str(adapter), _shifted(right, 1.05))


def test_the_side_of_transformers_is_computed_beside_the_engine_and_once(
    make_proof: MakeProof, side: dict[str, Any], computed: ComputedModel, adapter: Path
) -> None:
    may_end, runs = threading.Event(), list[str]()

    def run(function: str, document: dict[str, Any], **_: Any) -> dict[str, Any]:
        assert may_end.wait(120)
        runs.append(document["source"]["adapter_path"])
        assert function == "luthier.ml.export.vllm_adapter_proof:observe"
        return side

    proof = make_proof(run)
    assert not proof.prepare(str(adapter))
    assert not proof.prepare(str(adapter))
    may_end.set()
    _ready(proof, str(adapter)).check("a", str(adapter), _vllm(computed, str(adapter)))
    assert runs == [str(adapter)]
    later = make_proof(run)
    assert later.prepare(str(adapter))  # at once: it was kept
    later.check("a", str(adapter), _vllm(computed, str(adapter)))
    assert runs == [str(adapter)]


def test_what_was_kept_and_cannot_be_read_is_computed_again(
    make_proof: MakeProof, side: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    _ready(make_proof(), str(adapter))
    (file,) = (tmp_path / "proofs").iterdir()
    file.write_text('{"answers": []}')
    may_end = threading.Event()
    again = make_proof(lambda *_, **__: side if may_end.wait(120) else None)
    assert not again.prepare(str(adapter))
    may_end.set()
    _ready(again, str(adapter))


def test_an_adapter_that_is_written_again_is_another_one(
    make_proof: MakeProof, side: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    runs = list[str]()

    def run(*_: Any, title: str) -> dict[str, Any]:
        runs.append(title)
        return side

    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    proof = _ready(_ready(make_proof(run), str(copy)), str(copy))
    assert len(runs) == 1
    (copy / "adapter_config.json").write_text((copy / "adapter_config.json").read_text() + "\n")
    _ready(proof, str(copy))
    assert len(runs) == 2


def test_what_cannot_be_compared_is_served_and_said(
    make_proof: MakeProof, adapter: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def never(_: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError

    def fails(*_: Any, **__: Any) -> Any:
        raise WorkError("no memory", expected="memory", do="free some")

    packed = Path(shutil.copytree(tiny_model, tmp_path / "packed"))
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    of_packed = TransformersProof(
        Served(path=str(packed), sha256=""), tmp_path, memory_bytes=2, needed_bytes=1, run=fails
    )
    with caplog.at_level(logging.WARNING):
        for proof in (make_proof(needed_bytes=5_000_000_000), make_proof(fails), of_packed):
            _ready(proof, str(adapter)).check("a", str(adapter), never)
    assert caplog.text.count("served without a proof") == 3
    assert "it takes 5.0 GB of memory" in caplog.text
    assert "could not be computed" in caplog.text
    assert "packed" in caplog.text
