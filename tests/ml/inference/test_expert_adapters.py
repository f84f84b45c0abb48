"""An adapter on experts is evaluated and served: over a base of its own, beside others, with the text of plain PEFT."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.architectures import SMALL
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.conversation import Conversation, Message
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.recipe import MethodRecipe
from luthier.ml.inference.low_rank import why_not_shared
from luthier.ml.inference.models.expert_product import ExpertProduct
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_method import resolve_method
from luthier.ml.training.methods.protocol import load_method

IDS = torch.arange(30).reshape(2, 15)


@pytest.fixture(scope="module")
def mixture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with the tokenizer and template of the tiny model."""
    folder = tmp_path_factory.mktemp("mixtures") / "mixture"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 384, "max_position_embeddings": 512}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SMALL["qwen3_moe"] | sizes))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    plan = resolve_method(MethodRecipe(name="lora", rank=4), read_structure(str(mixture)), "cpu", Provenance())
    method = load_method(plan)
    model = method.prepare(load_model(mixture, dtype="float32", attention="sdpa"), 0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape) * 0.2)
    method.save(model, mixture, folder)
    return folder


def _plain(mixture: Path, adapter: Path) -> nn.Module:
    with quiet_peft():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixture), str(adapter)).eval()


@torch.no_grad()
def test_it_is_computed_without_copies_and_is_what_plain_peft_computes(mixture: Path, adapter: Path) -> None:
    ours = attach_adapter(load_model(mixture, dtype="float32", attention="sdpa"), adapter)
    assert sum(isinstance(m.__dict__.get("forward"), ExpertProduct) for m in ours.modules()) == 2
    expected = _plain(mixture, adapter)(IDS).logits
    torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    with ours.disable_adapter():
        base = AutoModelForCausalLM.from_pretrained(mixture)(IDS).logits
        torch.testing.assert_close(ours(IDS).logits, base, atol=1e-5, rtol=1e-5)
    assert (expected - base).abs().max() > 1e-2


def test_it_needs_a_base_of_its_own_and_says_why(adapter: Path) -> None:
    reason = why_not_shared(adapter)
    assert reason is not None
    assert "experts.down_proj, experts.gate_up_proj" in reason


@torch.no_grad()
def test_the_engine_writes_what_generate_writes(mixture: Path, adapter: Path) -> None:
    engine = TransformersEngine.open(str(mixture), adapter_path=str(adapter), dtype="float32")
    base = TransformersEngine.open(str(mixture), dtype="float32")
    prompt = Prompt(conversation=Conversation(messages=(Message(role="user", content="Spruce?"),)), max_new_tokens=8)
    (tuned,), (plain,) = engine.generate([prompt], SilentProgress()), base.generate([prompt], SilentProgress())
    assert tuned.text != plain.text
    tokenizer = engine.template.tokenizer
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Spruce?"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = _plain(mixture, adapter).generate(input_ids=ids, max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).startswith(tuned.text)
