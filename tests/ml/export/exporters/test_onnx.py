"""ONNX by the builder of ONNX Runtime GenAI: built offline from a merged model, and proved in its runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.ml.export.conftest import MakeSource

from luthier.core.dataset import Example
from luthier.core.errors import ModelSourceError, NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportSource
from luthier.ml.export.exporters.onnx import write
from luthier.ml.export.parity import prove
from luthier.ml.export.runtimes.onnx_runtime import OnnxRuntime
from luthier.ml.export.source_side import ObservedSource, observe_source
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def source(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """A whole model with wider heads than the tiny one's: the kernels of ONNX Runtime want 16 and more."""
    base = make_tiny_model(tmp_path_factory.mktemp("wide") / "base", hidden=64)
    return make_source(base_path=str(base), adapter_path=None, adapter_sha256=None)


@pytest.fixture(scope="module")
def export(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "export"
    folder.mkdir()
    assert write(source, folder, "float32", SilentProgress(), folder) == []
    return folder


@pytest.fixture(scope="module")
def observed(source: ExportSource, examples: list[Example]) -> ObservedSource:
    return observe_source(source, examples, SilentProgress())


def test_it_is_proved_equal(export: Path, observed: ObservedSource, examples: list[Example]) -> None:
    report = prove(observed.source, export, "onnx", "float32", examples, SilentProgress(), observed=observed)
    assert report.passed, report.reasons
    assert report.runtime == "onnxruntime-genai"
    assert report.num_prompts_same_tokens == report.num_texts_equal == len(examples)
    assert report.max_difference_nats < 1e-3


def test_nothing_else_is_left_behind(export: Path, source: ExportSource) -> None:
    assert [path.name for path in export.parent.iterdir()] == ["export"]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (export / name).read_bytes() == (Path(source.base_path) / name).read_bytes()
    assert json.loads((export / "generation_config.json").read_text())["eos_token_id"] == 2


def test_fewer_bits_are_judged_by_quality(tmp_path: Path, observed: ObservedSource, examples: list[Example]) -> None:
    folder = tmp_path / "int4"
    folder.mkdir()
    write(observed.source, folder, "int4", SilentProgress(), folder)
    report = prove(observed.source, folder, "onnx", "int4", examples, SilentProgress(), observed=observed)
    assert report.bound_nats is None
    assert report.num_prompts_same_tokens == len(examples)
    assert report.max_difference_nats > 0.01
    low, high = report.nll_increase_nats.low, report.nll_increase_nats.high
    assert low <= report.nll_increase_nats.value <= high


def test_a_lost_stop_token_is_found(
    export: Path, tmp_path: Path, observed: ObservedSource, examples: list[Example]
) -> None:
    folder = Path(shutil.copytree(export, tmp_path / "tampered"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = 0
    (folder / "genai_config.json").write_text(json.dumps(config))
    report = prove(observed.source, folder, "onnx", "float32", examples, SilentProgress(), observed=observed)
    assert "does not end an answer at '<|im_end|>'" in report.reasons[0]


def test_an_architecture_that_the_builder_does_not_know_is_refused(
    tiny_model: Path, tmp_path: Path, make_source: MakeSource
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=384, n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model / name, folder / name)
    (tmp_path / "export").mkdir()
    unknown = make_source(base_path=str(folder), adapter_path=None, adapter_sha256=None)
    with pytest.raises(RequestError, match="not currently supported"):
        write(unknown, tmp_path / "export", "float32", SilentProgress(), tmp_path)


def test_heads_that_its_kernels_cannot_run_are_refused(make_source: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="heads of width 8"):
        write(make_source(), tmp_path, "float32", SilentProgress(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_export_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no genai_config\.json"):
        OnnxRuntime(tmp_path)
    (tmp_path / "genai_config.json").write_text('{"model": {"eos_token_id": 1}}')
    with pytest.raises(ModelSourceError, match="cannot load"):
        OnnxRuntime(tmp_path)
