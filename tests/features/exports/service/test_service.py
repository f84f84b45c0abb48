"""From a run to a folder that is proved equal to it, and every reason why there is none."""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import ConflictError, NotFoundError, ParityError, RequestError, StorageFullError
from luthier.core.ports import SilentProgress
from luthier.features.exports.service import export, find_source
from luthier.features.models.store import TunedModel
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.export import parity
from luthier.ml.export.bundle import verify
from luthier.ml.export.exporters import registry, rehearsal
from luthier.ml.export.parity import compare
from luthier.ml.export.runtimes.transformers_runtime import TransformersRuntime
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, make_plan, make_record, make_result


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A home with a run that trained an adapter, and its id; never written to."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "train.jsonl", [chat_row(n) for n in range(16)])
    write_rows(folder / "test.jsonl", [chat_row(n) for n in range(100, 103)])
    recipe = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl", "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 4, "dropout": 0.0},
        "training": {
            "epochs": 1,
            "global_batch_size": 8,
            "learning_rate": 0.01,
            "precision": "float32",
            "num_threads": 1,
        },
        "evaluation": {"few_shot": 0, "max_new_tokens": 4, "metrics": ["perplexity"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with Context.open(folder / "home") as context:
        outcome = train(context, load_recipe(folder / "recipe.yaml"), base_dir=folder)
        assert outcome.record.status == "succeeded"
        yield context, outcome.record.run_id


def kept(context, **changed):
    """A run of which only the record is there."""
    result = make_result().model_copy(update=changed.pop("result")) if "result" in changed else None
    record = make_record(status=changed.pop("status", "succeeded"), result=result)
    context.runs.create(record.model_copy(update=changed), make_plan())
    return RUN_ID


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Exports a run to a format; returns what was made and the folder around it. Each is made once, tests read it."""
    context, run_id = trained

    @functools.cache
    def to(format):
        folder = tmp_path_factory.mktemp(format)
        return export(context, run_id, to=format, output=folder / "out"), folder

    return to


@pytest.mark.parametrize("to", ["merged", "adapter"])
def test_an_export_is_proved_and_bundled(exported, to):
    made, folder = exported(to)
    assert made.parity is not None
    assert made.parity.passed
    assert made.parity.num_prompts == 3  # the held-out rows of the run
    assert verify(folder / "out").is_whole
    assert {"README.md", "tokenizer.json", "chat_template.jinja"} < set(made.files)
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert made.folder == str(folder / "out")


def test_the_file_for_llama_cpp_is_proved_beside_the_adapter(exported):
    pytest.importorskip("xllamacpp")
    made, folder = exported("adapter")
    if any("cannot be obtained" in warning for warning in made.warnings):
        pytest.skip("no index to fetch the converter from")
    assert made.gguf_parity is not None
    assert (made.gguf_parity.runtime, made.gguf_parity.passed) == ("llama.cpp", True)
    assert json.loads((folder / "out" / "parity-gguf.json").read_text())["passed"] is True
    assert "`adapter.gguf` over the base in float16 in llama.cpp" in (folder / "out" / "README.md").read_text()


def test_without_llama_cpp_it_is_said_that_nobody_ran_the_file(trained, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "xllamacpp" else found(name))
    made = export(trained[0], trained[1], to="adapter", output=tmp_path / "out", num_prompts=1)
    assert made.gguf_parity is None
    assert any("adapter.gguf was not run: xllamacpp is not installed" in warning for warning in made.warnings)


def test_a_file_for_llama_cpp_whose_proof_fails_is_left_out_of_the_adapter(trained, tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")

    def fail(source, file, observed, *_):
        runtime = TransformersRuntime(Path(source.base_path))
        report = compare(observed, runtime, "gguf", "float16", SilentProgress())
        return report.model_copy(update={"passed": False, "reasons": ("The tokens of 1 prompts differ.",)})

    monkeypatch.setattr(parity, "prove_gguf_adapter", fail)
    made = export(trained[0], trained[1], to="adapter", output=tmp_path / "out", num_prompts=1)
    assert made.gguf_parity is None
    assert "adapter.gguf" not in made.files
    assert not (tmp_path / "out" / "adapter.gguf").exists()
    assert not (tmp_path / "out" / "Modelfile").exists(), "it would apply a file that is not there"
    assert any("there is no adapter.gguf for llama.cpp, since its proof has failed" in one for one in made.warnings)


def test_prompts_that_the_runtime_writes_otherwise_are_refused_before_anything_is_merged(
    trained, tmp_path, monkeypatch
):
    def write(*_):
        raise AssertionError("merged")

    def without_newlines(source, target):
        turns = write_companions(source, target)
        file = target / "chat_template.jinja"
        file.write_text(file.read_text().replace("assistant\\n", "assistant"))
        return turns

    write_companions = rehearsal.write_companions
    monkeypatch.setattr(registry, "write", write)
    monkeypatch.setattr(rehearsal, "write_companions", without_newlines)
    with pytest.raises(RequestError, match="another chat template"):
        export(trained[0], trained[1], to="merged", output=tmp_path / "out", num_prompts=2)
    assert list(tmp_path.iterdir()) == []


def test_a_source_says_what_it_is(trained, tiny_model):
    context, run_id = trained
    source = find_source(context, run_id)
    assert (source.base_path, source.precision, source.method) == (str(tiny_model), "float32", "lora")
    assert Path(source.adapter_path) == context.settings.run_folder(run_id) / "adapter"
    assert source.trained_tokens == context.runs.plan(run_id).data.train.max_tokens
    base = find_source(context, str(tiny_model))
    assert (base.run_id, base.adapter_path, base.trained_tokens) == (None, None, None)


def test_a_model_of_the_api_is_named_as_clients_know_it(trained):
    context, run_id = trained
    name = "ft:tiny:default::0123456789"
    made = TunedModel(
        model_id=name, project_id="default", job_id="ftjob-1", run_id=run_id, base_model="tiny", adapter_path="unused"
    )
    context.tuned_models.add(made)
    after_an_epoch = made.model_copy(update={"model_id": f"{name}:ckpt-step-2", "step": 2, "checkpoint_id": "c-1"})
    context.tuned_models.add(after_an_epoch)
    assert find_source(context, name) == find_source(context, run_id)
    with pytest.raises(ConflictError, match="after step 2") as caught:
        find_source(context, after_an_epoch.model_id)
    assert name in caught.value.do
    for unknown in ("ft:tiny:default::nothing", "ft:"):
        with pytest.raises(NotFoundError):
            find_source(context, unknown)


def test_a_base_model_is_proved_on_built_in_prompts(trained, tiny_model, tmp_path):
    made = export(trained[0], str(tiny_model), to="merged", quantise="float32", output=tmp_path / "out", num_prompts=2)
    assert made.parity is not None
    assert made.parity.num_prompts == 2


def test_rows_of_a_file_can_prove_it(trained, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [chat_row(7)])
    made = export(trained[0], trained[1], to="merged", output=tmp_path / "out", held_out=rows)
    assert made.parity is not None
    assert made.parity.num_prompts == 1


def test_rows_that_are_gone_are_told_of(tiny_model, tmp_path, trained):
    context, run_id = trained
    rows = Path(context.runs.plan(run_id).data.held_out.file)
    rows.rename(rows.with_suffix(".away"))
    try:
        made = export(context, run_id, to="merged", output=tmp_path / "out", num_prompts=1)
    finally:
        rows.with_suffix(".away").rename(rows)
    assert "proved on built-in prompts" in made.warnings[0]


@pytest.mark.parametrize(
    ("status", "words", "do"),
    [
        ("running", "is running, at step 0 of 10", "train --resume"),
        ("planned", "is planned", "train --resume"),
        ("paused", "is paused", "train --resume"),
        ("failed", "has failed: the loss is nan at step 7", "runs show"),
    ],
)
def test_a_run_that_has_not_ended_well_is_refused(context, tmp_path, status, words, do):
    because = "the loss is nan at step 7" if status == "failed" else None
    kept(context, status=status, stopped_because=because)
    with pytest.raises(ConflictError, match=words) as caught:
        export(context, RUN_ID, to="merged", output=tmp_path / "out")
    assert do in caught.value.do
    assert not (tmp_path / "out").exists()


def test_a_run_whose_loss_diverged_is_refused(trained, tiny_model, tmp_path):
    """The weights of its last good state are there; they are not let out."""
    context, run_id = trained
    result = context.runs.get(run_id).result.model_copy(update={"status": "failed"})
    record = make_record(status="failed", result=result).model_copy(update={"stopped_because": "the loss became NaN"})
    context.runs.create(record, context.runs.plan(run_id))
    with pytest.raises(ConflictError, match="has failed: the loss became NaN"):
        export(context, RUN_ID, to="adapter", output=tmp_path / "out")
    context.runs.delete(RUN_ID)


def test_a_run_that_is_not_there_and_files_that_are_gone(context, tmp_path):
    with pytest.raises(NotFoundError, match="no run"):
        export(context, "run-20261125-093000-bbbbbb", to="merged", output=tmp_path / "out")
    kept(context, result={"adapter_path": str(tmp_path / "gone"), "adapter_sha256": "1" * 64})
    with pytest.raises(NotFoundError, match=r"are no longer in .*gone"):
        export(context, RUN_ID, to="merged", output=tmp_path / "out")


@pytest.fixture
def changed_run(trained, tmp_path):
    """A second run over a copy of the first one's adapter, with a plan and files to be changed."""
    context, run_id = trained
    folder = shutil.copytree(context.settings.run_folder(run_id) / "adapter", tmp_path / "adapter")

    def make(**base):
        result = context.runs.get(run_id).result.model_copy(update={"adapter_path": str(folder)})
        plan = context.runs.plan(run_id)
        plan = plan.model_copy(update={"base_model": plan.base_model.model_copy(update=base)})
        context.runs.create(make_record(status="succeeded", result=result), plan)
        return RUN_ID, folder

    yield make
    context.runs.delete(RUN_ID)


def test_an_adapter_for_another_base_is_refused(trained, changed_run, tmp_path):
    changed_run(sha256="9" * 64)
    with pytest.raises(ConflictError, match="is another one") as caught:
        export(trained[0], RUN_ID, to="merged", output=tmp_path / "out")
    assert "digest 999999999999" in caught.value.expected


def test_an_adapter_that_was_changed_is_refused(trained, changed_run, tmp_path):
    _, folder = changed_run()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: x + 1 for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ConflictError, match="are not those of run"):
        export(trained[0], RUN_ID, to="merged", output=tmp_path / "out")


def test_a_pair_of_format_and_precision_that_is_not_there(trained, tmp_path):
    with pytest.raises(RequestError, match="--quantise int4 for the format merged"):
        export(trained[0], trained[1], to="merged", quantise="int4", output=tmp_path / "out")


def test_a_folder_with_files_in_it_is_not_touched(trained, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(ConflictError, match="already exists"):
        export(trained[0], trained[1], to="merged", output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_runtime_is_told_before_any_work(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="--to gguf needs xllamacpp, llama_cpp_py_sync") as caught:
        export(trained[0], trained[1], to="gguf", output=tmp_path / "out")
    assert "luthier[gguf]" in caught.value.do


def test_a_disk_that_runs_full_half_way_leaves_nothing(trained, tmp_path, monkeypatch):
    def write(to, source, target, precision, progress, tools):
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(registry, "write", write)
    with pytest.raises(StorageFullError, match="merged in float32"):
        export(trained[0], trained[1], to="merged", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_not_its_source_is_not_let_out(trained, tmp_path, monkeypatch):
    real = registry.write

    def write(to, source, target, precision, progress, tools):
        warnings = real(to, source, target, precision, progress, tools)
        tensors = load_file(target / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.5
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return warnings

    monkeypatch.setattr(registry, "write", write)
    with pytest.raises(ParityError, match="is not equal to its source:\n    ") as caught:
        export(trained[0], trained[1], to="merged", output=tmp_path / "out")
    assert "nats" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_document_is_plain_json(trained, tmp_path):
    made = export(trained[0], trained[1], to="adapter", output=tmp_path / "out", num_prompts=1)
    assert json.loads(made.model_dump_json())["files"] == made.files


def test_an_export_killed_half_way_leaves_nothing_once_the_next_has_begun(trained, tmp_path, fork_server):
    context, run_id = trained
    code = """
import sys, time
from pathlib import Path
from luthier.ml.export.exporters import registry
from luthier.platform.home.context import Context
from luthier.features.exports.service import export
write = registry.write
def paused(*given):
    found = write(*given)
    print("written", flush=True)
    time.sleep(600)
    return found
registry.write = paused
with Context.open(Path(sys.argv[1])) as context:
    export(context, sys.argv[2], to="merged", output=Path(sys.argv[3]))
"""
    place = tmp_path / "killed" / "out"
    with fork_server.script(code, context.home, run_id, place) as process:
        assert process.stdout.readline() == "written\n"
        process.kill()
        process.wait()
    assert any(file.suffix == ".safetensors" for file in place.parent.rglob("*")), "weights were left"
    export(context, run_id, to="adapter", output=tmp_path / "next")
    assert list(place.parent.iterdir()) == []
