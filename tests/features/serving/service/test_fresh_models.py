"""`luthier serve` answers with the weights that its files have now, not with those of its start."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError
from luthier.core.ports import SilentProgress
from luthier.core.stream import Served
from luthier.core.system import gpu_device
from luthier.features.serving.engine_choice import adapter_key
from luthier.features.serving.fresh_models import FreshModels
from luthier.features.serving.loaded import choose_model
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path / "none")


def a_folder(place: Path, *files: str) -> Path:
    place.mkdir()
    for file in files:
        (place / file).write_text("{}", encoding="utf-8")
    return place


def write_again(file: Path) -> None:
    """Other content of the same size, at another time."""
    file.write_text("[]", encoding="utf-8")
    os.utime(file, ns=(1, 1))


def test_a_folder_and_a_gguf_file_that_are_written_again_are_other_models(context: Context, tmp_path: Path) -> None:
    merged = a_folder(tmp_path / "merged", "config.json", "model.safetensors")
    exported = a_folder(tmp_path / "gguf", "small.gguf", "tokenizer.json")
    other = a_folder(tmp_path / "unchanged", "config.json", "model.safetensors")
    names = {"merged": merged, "folder": exported, "file": exported / "small.gguf", "other": other}
    chosen = {name: choose_model(context, str(place)) for name, place in names.items()}
    models = FreshModels(context.home, chosen)
    assert {name: models[name] for name in names} == chosen
    for file in (merged / "model.safetensors", exported / "small.gguf"):
        write_again(file)
    again = {name: models[name] for name in names}
    assert [name for name in names if again[name] != chosen[name]] == ["merged", "folder", "file"]
    # All but the stamp is as it was, and the next request finds the same model.
    for name in ("merged", "folder", "file"):
        assert again[name].model_copy(update={"sha256": chosen[name].sha256}) == chosen[name]
        assert models[name] == again[name]
    # As a new start of the server would take it.
    assert again["merged"] == choose_model(context, str(merged))


def test_a_folder_that_is_gone_for_a_while_stays_the_model_that_is_loaded(context: Context, tmp_path: Path) -> None:
    merged = a_folder(tmp_path / "merged", "config.json", "model.safetensors")
    chosen = choose_model(context, str(merged))
    models = FreshModels(context.home, {"merged": chosen})
    shutil.rmtree(merged)
    assert models["merged"] == chosen
    a_folder(tmp_path / "merged", "config.json", "model.safetensors")
    write_again(merged / "model.safetensors")
    assert models["merged"].sha256 not in ("", chosen.sha256)


def test_a_base_model_keeps_its_digest_until_it_is_another_one(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "own"))
    base = sources.pull(str(folder), context.home, SilentProgress())
    own = Served(path=base.path, sha256=base.sha256)
    tuned = own.model_copy(update={"adapter_path": str(tmp_path / "adapter")})
    models = FreshModels(context.home, {"base": own, "tuned": tuned})
    assert (models["base"], models["tuned"]) == (own, tuned)
    sources.remove(str(folder), context.home)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert models["base"].sha256 not in ("", base.sha256)
    # What was trained over the earlier weights must not be added to others.
    with pytest.raises(ConflictError, match="the base model of 'tuned' has other weights"):
        models["tuned"]
    assert [name for name, _ in models.items()] == ["base", "tuned"]


def test_a_copy_of_earlier_files_answers_no_more(context: Context, tmp_path: Path) -> None:
    merged = a_folder(tmp_path / "merged", "config.json", "model.safetensors")
    adapter = a_folder(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    own = choose_model(context, str(merged))
    with_adapter = own.model_copy(update={"adapter_path": str(adapter)})
    made = tmp_path / "copy" / "adapters" / adapter_key(str(adapter)) / "adapter.gguf"
    copy = Served(engine="llama_cpp", path=str(tmp_path / "copy" / "model.gguf"), sha256="copy", fallback=own)
    copies = {
        "merged": copy,
        "tuned": copy.model_copy(update={"adapter_path": str(made), "fallback": with_adapter}),
    }
    models = FreshModels(context.home, copies)
    assert {name: models[name] for name in copies} == copies
    write_again(adapter / "adapter_model.safetensors")
    assert models["merged"] == copies["merged"]
    assert models["tuned"] == with_adapter
    write_again(merged / "model.safetensors")
    assert models["merged"] == choose_model(context, str(merged))
