"""The dropout of a base model itself: off where it is only noise, drawn otherwise, and kept in what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import random_examples
from transformers import AutoConfig, FalconConfig, GPT2Config, MixtralConfig, OPTConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from luthier.core.plan import Plan
from luthier.ml.training.adapter_session import SharedBase
from luthier.ml.training.methods.base_dropout import published_dropout, switch_off_dropout
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objectives.rules import rules_of

GPT2 = GPT2Config(
    vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=0
)
NOISY: list[PreTrainedConfig] = [
    GPT2,
    OPTConfig(
        vocab_size=300,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        dropout=0.1,
        attention_dropout=0.1,
        layerdrop=0.1,
        pad_token_id=1,
    ),
    # reads its config at each call
    FalconConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout=0.2,
        attention_dropout=0.1,
    ),
    # noise on what its routers read
    MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.3,
        attention_dropout=0.1,
    ),
]


def in_training(model: torch.nn.Module, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        logits: torch.Tensor = model.train()(input_ids=ids).logits
    return logits


@pytest.mark.parametrize("config", NOISY, ids=lambda config: config.model_type)
def test_a_model_in_training_computes_what_it_computes_in_evaluation(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(config)).float()
    assert not torch.equal(in_training(model, 1), in_training(model, 2)), "nothing is drawn here"
    switch_off_dropout(model)
    drawn = in_training(model, 1)
    assert torch.equal(drawn, in_training(model, 2))
    torch.testing.assert_close(drawn, in_training(model.eval(), 3))


@pytest.mark.parametrize("config", NOISY, ids=lambda config: config.model_type)
def test_what_is_written_has_the_published_values(config: PreTrainedConfig) -> None:
    model, untouched = (AutoModelForCausalLM.from_config(deepcopy(config)) for _ in range(2))
    before = model.config.to_dict()
    switch_off_dropout(model)
    assert model.config.to_dict() != before
    with published_dropout(model):
        assert model.config.to_dict() == before
    assert model.config.to_dict() != before
    with published_dropout(untouched):
        assert untouched.config.to_dict() == before


@pytest.fixture
def gpt2(tiny_model: Path, tmp_path: Path) -> Path:
    """A GPT-2 with dropout 0.1 everywhere, in a folder."""
    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deepcopy(GPT2)).save_pretrained(str(folder))
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def planned(make_plan: Callable[..., Plan], folder: Path, objective: str, method: str) -> Plan:
    plan = make_plan("full" if method == "full" else "lora", settings={"targets": ("q_proj",)})
    base = plan.base_model.model_copy(update={"path": str(folder)})
    changed = {"base_model": base, "objective": plan.objective.model_copy(update={"name": objective})}
    if method == "lora":
        changed["method"] = plan.method.model_copy(update={"targets": ("c_attn",)})
    return plan.model_copy(update=changed)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("objective", "is_off"), [("dpo", True), ("kto", True), ("grpo", True), ("sft", False)])
def test_it_is_off_where_log_probabilities_are_compared(
    make_plan: Callable[..., Plan], gpt2: Path, objective: str, is_off: bool, method: str
) -> None:
    model = TrainableModel.load(
        planned(make_plan, gpt2, objective, method), base_dropout=not rules_of(objective).dropout_is_noise
    )
    batch = collate(random_examples(4, seed=1), model.pad_id, "cpu")
    found = []
    for is_training in (True, False):
        torch.manual_seed(7)
        model.module.train(is_training)
        with torch.no_grad():
            found.append(model.log_probabilities(batch))
    assert torch.allclose(found[0], found[1], atol=1e-5) is is_off


def test_a_model_that_was_trained_in_full_keeps_its_dropout(
    make_plan: Callable[..., Plan], gpt2: Path, tmp_path: Path
) -> None:
    plan = planned(make_plan, gpt2, "dpo", "full")
    model = TrainableModel.load(plan, base_dropout=False)
    (tmp_path / "out").mkdir()
    model.method.save(model.module, gpt2, tmp_path / "out")
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: written[name] for name in names} == dict.fromkeys(names, 0.1)
    assert AutoConfig.from_pretrained(str(tmp_path / "out")).resid_pdrop == 0.1


def test_clients_that_train_call_by_call_draw_none(gpt2: Path) -> None:
    modules = SharedBase(str(gpt2), "float32", "cpu").modules()
    assert torch.equal(in_training(modules, 1), in_training(modules, 2))
