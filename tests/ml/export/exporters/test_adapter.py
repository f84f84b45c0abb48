"""An adapter alone: PEFT files that say what they belong to, and GGUF where it can be."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import adapter as adapter_exporter
from luthier.ml.export.parity import prove
from luthier.ml.inference.models import catalog


def test_it_is_proved_equal_and_stands_in_both_forms(write, make_source, examples):
    folder, warnings = write("adapter", "float32", make_source())
    assert warnings == []
    assert (folder / "adapter.gguf").is_file()
    text = (folder / "Modelfile").read_text()
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    report = prove(make_source(), folder, "adapter", "float32", examples[:1], SilentProgress())
    assert report.passed, report.reasons


def test_the_base_is_named_as_others_know_it(write, make_source, tiny_model):
    folder, _ = write("adapter", "bfloat16", make_source(base_name="hub:org/name@abc"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "abc")
    assert str(tiny_model) not in (folder / "adapter_config.json").read_text()
    assert {tensor.dtype for tensor in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert (folder / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()


def test_what_cannot_be_gguf_is_told(write, make_source, adapter, tmp_path):
    changed = tmp_path / "dora"
    changed.mkdir()
    for file in adapter.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_dora": True}
    (changed / "adapter_config.json").write_text(json.dumps(config))
    folder, warnings = write("adapter", "float32", make_source(adapter_path=str(changed)))
    assert len(warnings) == 1
    assert "DoRA" in warnings[0]
    assert "--to gguf" in warnings[0]
    assert not (folder / "adapter.gguf").exists()
    assert not (folder / "Modelfile").exists()


def test_a_whole_model_has_no_adapter(write, make_source):
    with pytest.raises(RequestError, match="has no adapter") as caught:
        write("adapter", "float32", make_source(adapter_path=None))
    assert "--to merged" in caught.value.do


def test_a_base_of_the_catalogue_is_named_by_its_repository(write, make_source, monkeypatch):
    entry = next(one for one in catalog.built_in() if one.hub is not None)
    monkeypatch.setattr(
        adapter_exporter, "entries", lambda: {"short": entry.model_copy(update={"hub": "maker/long@0123abc"})}
    )
    folder, _ = write("adapter", "float32", make_source(base_name="short"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("maker/long", "0123abc")


def test_what_its_base_was_in_training_is_said(write, make_source):
    _, warnings = write("adapter", "float32", make_source(quantisation="int8"))
    assert len(warnings) == 1
    assert "over a base packed as int8" in warnings[0]
    assert "--to merged" in warnings[0]


def test_the_plain_layout_over_a_base_with_a_template_is_said(write, make_source):
    _, warnings = write("adapter", "bfloat16", make_source(template="plain"))
    assert len(warnings) == 1
    assert "chat_template.jinja" in warnings[0]
