"""What commands name is found, by the name that it is asked by, with the engine that can run it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.system import gpu_device
from luthier.features.serving import loaded as chosen_models
from luthier.features.serving.engine_choice import choose_engines
from luthier.features.serving.loaded import choose_model, choose_models
from luthier.features.serving.targets import served_export
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.testing.records import add_run


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path / "none")
    monkeypatch.setattr(chosen_models, "_pulled", _no_such_model)


def _no_such_model(context: Context, name: str) -> None:
    if not name.startswith("tiny"):
        raise NotFoundError(f"base model {name!r}", expected="another", do="correct it")


def a_folder(place: Path, *files: str) -> Path:
    place.mkdir()
    for file in files:
        (place / file).write_text("{}", encoding="utf-8")
    return place


def test_each_kind_of_model(context: Context, tmp_path: Path) -> None:
    run = add_run(context, "a")
    merged = a_folder(tmp_path / "merged", "config.json", "model.safetensors")
    gguf = a_folder(tmp_path / "gguf", "small.gguf")
    found = choose_models(context, [run, str(merged), f"named={merged}", str(gguf), str(gguf / "small.gguf")])
    assert {name: served.engine for name, served in found.items()} == {
        run: "transformers",
        "merged": "transformers",
        "named": "transformers",
        "gguf": "llama_cpp",
        "small": "llama_cpp",
    }
    assert found["gguf"].path == found["small"].path == str(gguf / "small.gguf")
    assert found["merged"].path == str(merged)


def test_a_command_takes_a_run_of_any_project(context: Context) -> None:
    project_id = "proj-20261201-080000-abcdef"
    context.access.add_project(project_id, "mails")
    theirs = add_run(context, "c", project_id=project_id)
    assert choose_model(context, theirs).path.startswith(str(context.settings.run_folder(theirs)))


def test_the_folder_of_a_base_model_is_that_model(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    """Adapters over it name it by its record: with another digest it would be loaded, and copied, a second time."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "own"))
    before = choose_model(context, str(folder))
    base = sources.pull(str(folder), context.home, SilentProgress())
    found = choose_model(context, str(folder))
    assert (found.path, found.sha256) == (base.path, base.sha256)
    assert before.sha256 != base.sha256
    # Its files have changed since: it is another model.
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert choose_model(context, str(folder)).sha256 not in (before.sha256, base.sha256)


def test_a_gguf_file_with_an_adapter(context: Context, tmp_path: Path) -> None:
    base = a_folder(tmp_path / "gguf", "base.gguf") / "base.gguf"
    adapter = a_folder(tmp_path / "wood", "adapter.gguf")
    both = f"{base}+{adapter}"
    found = choose_models(context, [both, f"named={both}/adapter.gguf", str(base)])
    assert {name: served.adapter_path for name, served in found.items()} == {
        "wood": str(adapter),
        "named": str(adapter / "adapter.gguf"),
        "base": None,
    }
    assert {served.path for served in found.values()} == {str(base)}
    with pytest.raises(NotFoundError, match="is not there"):
        choose_model(context, f"{base}+{tmp_path}/none")
    with pytest.raises(RequestError, match="leave --engine out"):
        choose_model(context, both, "transformers")


def test_vllm_is_taken_where_there_is_a_gpu_for_it(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = str(a_folder(tmp_path / "merged", "config.json", "model.safetensors"))
    without_vllm(monkeypatch, tmp_path)
    with pytest.raises(RequestError, match="the package vllm, which is not installed"):
        choose_model(context, merged, "vllm")
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path)
    assert choose_model(context, merged).engine == "transformers"
    # In an environment of its own.
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", "/opt/vllm/bin/vllm")
    assert choose_model(context, merged).engine == "vllm"


def without_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LUTHIER_VLLM_COMMAND", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_packed_weights_are_served_by_vllm_alone(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path / "awq", "config.json", "model.safetensors")
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps({"quantization_config": awq}))
    packed = r"packed \(AWQ, 4 bits in groups of 128\)"
    without_vllm(monkeypatch, tmp_path)
    with pytest.raises(RequestError, match=f"the engine vllm for {folder}, whose weights are {packed}, needs"):
        choose_model(context, str(folder))
    with pytest.raises(RequestError, match=f"the engine transformers for .* whose weights are {packed}"):
        choose_model(context, str(folder), "transformers")
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", "/opt/vllm/bin/vllm")
    served = choose_model(context, str(folder))
    assert (served.engine, served.path) == ("vllm", str(folder))
    (decision,) = choose_engines(context, {"a": served}).values()
    assert decision.reason == "its weights are packed (AWQ, 4 bits in groups of 128)"
    assert served_export(context, folder).engine == "vllm"


def test_packed_weights_that_vllm_would_not_recognise_are_refused_with_the_change(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path / "gptq", "config.json", "quantize_config.json")
    (folder / "config.json").write_text("{}")
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128}))
    save_file({"a.qweight": torch.zeros(2)}, folder / "model.safetensors")
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", "/opt/vllm/bin/vllm")
    with pytest.raises(
        RequestError, match=r"packed \(GPTQ, 4 bits in groups of 128\), which its config.json"
    ) as caught:
        choose_model(context, str(folder))
    assert caught.value.do.startswith("add the content of quantize_config.json to config.json as quantization_config")


def test_what_cannot_be_served(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = str(a_folder(tmp_path / "merged", "config.json", "model.safetensors"))
    gguf = str(a_folder(tmp_path / "gguf", "small.gguf"))
    two = str(a_folder(tmp_path / "two", "a.gguf", "b.gguf"))
    onnx = str(a_folder(tmp_path / "onnx", "model.onnx"))
    running = add_run(context, "b", status="running")
    cases: list[tuple[type[LuthierError], str, list[str], str]] = [
        (RequestError, "luthier export", [merged], "llama_cpp"),
        (RequestError, "leave --engine out", [gguf], "transformers"),
        (RequestError, "several GGUF files", [two], "auto"),
        (RequestError, "nothing that can be served", [onnx], "auto"),
        (RequestError, "two models by the name 'merged'", [merged, f"merged={merged}"], "auto"),
        (ConflictError, "is running", [running], "auto"),
        (NotFoundError, "no run", ["run-20261125-093000-000000"], "auto"),
        (NotFoundError, "the model 'unknown' does not exist; there are: ", ["unknown"], "auto"),
        (NotFoundError, "does not exist", ["ft:tiny:default::x"], "auto"),
    ]
    for kind, words, models, engine in cases:
        with pytest.raises(kind, match=words):
            choose_models(context, models, engine)  # type: ignore[arg-type]
    monkeypatch.setattr(chosen_models, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'luthier\[gguf\]'"):
        choose_model(context, gguf)


def test_a_file_with_brackets_in_its_name_is_another_once_it_has_changed(context: Context, tmp_path: Path) -> None:
    file = a_folder(tmp_path / "gguf", "small [q4_k].gguf") / "small [q4_k].gguf"
    before = choose_models(context, [f"named={file}"])["named"].sha256
    file.write_bytes(file.read_bytes() + b"more")
    assert choose_models(context, [f"named={file}"])["named"].sha256 != before
