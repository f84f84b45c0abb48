"""The families of the zoo are models: each loads in transformers, and has a finite loss on its template's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.zoo.families import FAMILIES, make_family
from tests.zoo.makers import MAKERS, shared_folder
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from luthier.ml.inference.models.quiet import quiet_transformers

TURNS = [{"role": "user", "content": "Which wood?"}, {"role": "assistant", "content": "Spruce."}]


def test_there_are_at_least_sixty_architectures() -> None:
    assert len({family.model_type for family in FAMILIES.values()}) >= 60
    assert all(family.maker in MAKERS for family in FAMILIES.values())
    assert sum(family.is_image_text for family in FAMILIES.values()) >= 8


def test_every_shared_template_is_some_family_s() -> None:
    folder = shared_folder() / "chat_templates"
    if not folder.is_dir():
        pytest.skip("no public data beside the project; set LUTHIER_SHARED_DATA")
    used = {MAKERS[family.maker].template for family in FAMILIES.values()}
    published = {file.name for file in folder.glob("*.jinja")}
    assert published
    assert published == used - {None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_loads_in_transformers(name: str, tmp_path: Path) -> None:
    folder = make_family(name, tmp_path / "model")
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        kind = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
        model, report = kind.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # a language model out of a folder with a vision tower leaves the tower's weights
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert [key for key in report["unexpected_keys"] if "vision" not in key and "multi_modal" not in key] == []
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert "Spruce" in text
    assert int(ids.max()) < len(tokenizer)
    with torch.no_grad():
        loss = model.eval()(input_ids=ids, labels=ids).loss
    assert torch.isfinite(loss)
    stops = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokenizer.eos_token_id in stops or MAKERS[FAMILIES[name].maker].stops


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (make_family("gpt_oss", tmp_path / part) for part in ("first", "second"))
    names = sorted(file.name for file in first.iterdir())
    assert "model.safetensors" in names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    stops = json.loads((first / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert len(stops) == 3
