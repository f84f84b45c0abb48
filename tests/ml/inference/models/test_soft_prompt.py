"""A trained prompt as tokens behind the vocabulary: PEFT's own logits, likelihoods and answers."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import OverlongError, RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.models.merging import virtual_tokens
from luthier.ml.inference.transformers_engine import TransformersEngine

NUM = 5


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = PromptTuningConfig(num_virtual_tokens=NUM, prompt_tuning_init="SAMPLE_VOCAB", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_()
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def peft(tiny_model: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(adapter)).eval()


@torch.no_grad()
def test_virtual_tokens_give_pefts_logits(tiny_model: Path, adapter: Path) -> None:
    ids = torch.arange(12)[None]
    expected = peft(tiny_model, adapter)(ids).logits
    model = peft(tiny_model, adapter)
    virtual = virtual_tokens(model)
    assert virtual == tuple(range(384, 384 + NUM))
    assert virtual_tokens(model) == virtual, "asking again adds nothing"
    logits = model.get_base_model()(torch.cat([torch.tensor([virtual]), ids], 1)).logits
    assert logits.shape[-1] == 384
    torch.testing.assert_close(logits, expected)


def test_a_model_without_a_prompt_has_no_virtual_tokens(tiny_model: Path) -> None:
    assert virtual_tokens(AutoModelForCausalLM.from_pretrained(tiny_model)) == ()


@torch.no_grad()
def test_the_engine_scores_and_writes_behind_the_prompt(tiny_model: Path, adapter: Path) -> None:
    engine = TransformersEngine.open(str(tiny_model), adapter_path=str(adapter), dtype="float32")
    theirs = peft(tiny_model, adapter)
    ids = list(range(20, 34))
    example = TokenisedExample("row", array("i", ids), bytes([0] * 8 + [1] * 6))
    (score,) = engine.score([example], SilentProgress())
    log_probabilities = torch.log_softmax(theirs(torch.tensor([ids])).logits[0, NUM:], -1)
    expected = -sum(float(log_probabilities[i - 1, ids[i]]) for i in range(8, 14))
    assert score.nll_nats == pytest.approx(expected, rel=1e-5)
    assert score.num_tokens == 6

    prompts = [Prompt(text=text, max_new_tokens=6) for text in ("A violin", "The front of a violin", "Glue")]
    for prompt, written in zip(prompts, engine.generate(prompts, SilentProgress()), strict=True):
        seen, _ = engine.template.encode(prompt.text or "")
        new: list[int] = []
        while len(new) < 6:
            token = int(theirs(torch.tensor([[*seen, *new]])).logits[0, -1].argmax())
            if token in engine.template.end_of_turn_ids:
                break
            new.append(token)
        assert written.text == engine.template.tokenizer.decode(new, skip_special_tokens=True)
        assert written.num_prompt_tokens == len(seen), "the trained prompt is not counted"


def test_the_context_is_shorter_by_the_prompt(tiny_model: Path, adapter: Path) -> None:
    engine = TransformersEngine.open(str(tiny_model), adapter_path=str(adapter), dtype="float32")
    row = TokenisedExample("row", array("i", [1] * (512 - NUM + 1)), bytes(512 - NUM) + b"\x01")
    with pytest.raises(RequestError, match=r"1 to 507 tokens"):
        engine.score([row], SilentProgress())
    with pytest.raises(OverlongError, match=r"at most 507"):
        engine.generate([Prompt(text="x" * 400, max_new_tokens=200)], SilentProgress())
    virtual = TokenisedExample("row", array("i", [384, 1]), b"\x00\x01")
    with pytest.raises(RequestError, match=r"ids of this model's own tokenizer, 0 to 383"):
        engine.score([virtual], SilentProgress())
