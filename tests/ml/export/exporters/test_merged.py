"""A merged folder stands alone: weights, tokenizer, template and stop tokens."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.export.parity import prove
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model


def test_it_is_proved_equal(write, make_source, examples):
    folder, warnings = write("merged", "float32", make_source())
    assert warnings == []
    report = prove(make_source(), folder, "merged", "float32", examples[:1], SilentProgress())
    assert report.passed, report.reasons


def test_it_brings_all_that_the_base_had(write, make_source, tiny_model):
    folder, _ = write("merged", "bfloat16", make_source())
    assert load_model(folder, dtype="bfloat16", attention="sdpa").dtype == torch.bfloat16
    ours, base = ChatTemplate.load(folder), ChatTemplate.load(tiny_model)
    assert (ours.sha256, ours.end_of_turn_ids) == (base.sha256, base.end_of_turn_ids)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert str(tiny_model) not in (folder / "config.json").read_text()


def test_a_whole_model_is_only_rounded(write, make_source, tiny_model):
    folder, _ = write("merged", "float16", make_source(adapter_path=None, base_path=str(tiny_model)))
    before, after = load_file(tiny_model / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name].half()) for name in before)


def test_weights_that_float16_cannot_hold_are_refused(write, make_source, tmp_path):
    base = make_tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"model\.norm\.weight holds a weight of 1e\+05") as caught:
        write("merged", "float16", make_source(adapter_path=None, base_path=str(base)))
    assert "bfloat16" in caught.value.do


def test_a_trained_prompt_cannot_be_merged(write, make_source, tiny_model, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(RequestError, match="holds a trained prompt"):
        write("merged", "float32", make_source(adapter_path=str(tmp_path / "prompt")))


def test_what_packing_has_rounded_is_part_of_what_was_trained(write, make_source, examples):
    source = make_source(quantisation="int8")
    folder, _ = write("merged", "float32", source)
    report = prove(source, folder, "merged", "float32", examples[:1], SilentProgress())
    assert report.passed, report.reasons
    assert not prove(make_source(), folder, "merged", "float32", examples[:1], SilentProgress()).passed


@pytest.mark.parametrize(("to", "precision"), [("merged", "float16"), ("vllm", "fp8")])
def test_what_makes_inputs_of_images_is_brought_along(to, precision, write, make_source, tmp_path):
    base = make_tiny_model(tmp_path / "base", hidden=64)
    settings = {"image_mean": [0.5], "image_processor_type": "SiglipImageProcessor"}
    (base / "preprocessor_config.json").write_text(json.dumps(settings))
    (base / "processor_config.json").write_text(json.dumps({"image_seq_length": 256, "chat_template": "another"}))
    folder, _ = write(to, precision, make_source(adapter_path=None, base_path=str(base)))
    assert json.loads((folder / "preprocessor_config.json").read_text()) == settings
    # Its template would be read in the place of that of training.
    assert json.loads((folder / "processor_config.json").read_text()) == {"image_seq_length": 256}
    assert not (folder / "video_preprocessor_config.json").exists()
