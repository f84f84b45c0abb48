"""Whatever a model does with its attention and its logits, its loss is that of transformers; fast pieces are proved."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from tests.ml.training.architectures import ARCHITECTURES, VOCABULARY, make
from tests.vacuous import nonempty
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.plan import MethodPlan
from luthier.ml.inference.models.architecture import causal_model, language_model
from luthier.ml.inference.models.attention_proof import use_attention
from luthier.ml.inference.models.forward import text_inputs
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.training import attention
from luthier.ml.training.equivalence import why_not_packed
from luthier.ml.training.forward_proof import prove_forward
from luthier.ml.training.methods.full import Full
from luthier.ml.training.methods.lora import Lora
from luthier.ml.training.model import MicroBatch, TrainableModel, collate

# What each is computed by. Nothing in src knows these names: the proof finds the path.
NOT_FAST = {
    "gemma2, caps": ("model", "product"),
    "llama4 as published": ("model", "product"),
    "llama4 text, chunks": ("model", "product"),
    "granite, dropout": ("model", "product"),
    "falcon, alibi": ("eager", "product"),
    "bloom": ("model", "product"),
    "mpt": ("model", "product"),
    "gpt2": ("model", "product"),
    "gptj": ("fast", "head"),
    "phi": ("fast", "head"),
    "deepseek v3": ("model", "product"),
    "gpt oss": ("model", "product"),
}
LENGTHS = (150, 37, 20)
"""Longer than a block of attention, than windows and than chunks; padded to the longest."""

FULL = MethodPlan(name="full", rank=0, alpha=0.0, dropout=0.0, targets=(), num_trainable_parameters=1)


def rows() -> list[TokenisedExample]:
    draw = torch.Generator().manual_seed(3)
    found = []
    for length in LENGTHS:
        ids = array("i", torch.randint(3, VOCABULARY, (length,), generator=draw).tolist())
        found.append(TokenisedExample(str(length), ids, bytes(int(i >= length // 2) for i in range(length))))
    return found


def matrices(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the language model's matrices, but for routers and for what PEFT takes for experts where there are some.

    `out_proj` of a state-space layer is read by its kernel as a weight, and no adapter on it would be seen.
    """
    inside = {id(module) for module in language_model(model).modules()}
    has_experts = any("experts" in name for name, _ in model.named_modules())
    skipped = ("gate", "router", "out_proj", *(("gate_proj", "up_proj", "down_proj") if has_experts else ()))
    return tuple(
        name
        for name, module in model.named_modules()
        if id(module) in inside and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        if not name.endswith(skipped) and "router" not in name
    )


def both(name: str) -> tuple[TrainableModel, PeftModel]:
    """The same adapter, past its start, over the same model: ours, and as PEFT and transformers have it."""
    base, other = make(name), make(name)
    plan = MethodPlan(name="lora", rank=2, alpha=4.0, dropout=0.0, targets=matrices(base), num_trainable_parameters=1)
    method = Lora(plan)
    model = TrainableModel(base, method, seed=0)
    torch.manual_seed(0)
    with quiet_peft():
        plain: PeftModel = get_peft_model(other, method.config(), autocast_adapter_dtype=False)
    use_attention(language_model(other), "eager")
    ours, draw = dict(model.module.named_parameters()), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
            if parameter.requires_grad:
                ours[key].copy_(parameter)
    model.module.eval()
    other.eval()
    return model, plain


def plain_loss_sum(plain: nn.Module, batch: MicroBatch, examples: list[TokenisedExample]) -> Tensor:
    """The summed loss as transformers has it, of rows padded on the right under an attention mask."""
    mask, labels = torch.zeros_like(batch.input_ids), torch.full_like(batch.input_ids, -100)
    for number, row in enumerate(examples):
        mask[number, : row.num_tokens] = 1
        learned = torch.tensor(list(row.loss_mask), dtype=torch.bool)
        labels[number, : row.num_tokens][learned] = batch.input_ids[number, : row.num_tokens][learned]
    causal = causal_model(plain.get_base_model() if isinstance(plain, PeftModel) else plain)  # type: ignore[arg-type]
    logits = causal(input_ids=batch.input_ids, attention_mask=mask, **text_inputs(causal, batch.input_ids)).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_transformers_and_peft(name: str) -> None:
    model, plain = both(name)
    assert (model.path.attention, model.path.logits) == NOT_FAST.get(name, ("fast", "product"))
    examples = rows()
    batch = collate(examples, model.pad_id, "cpu")
    ours, theirs = model.loss_sum(batch)[0], plain_loss_sum(plain, batch, examples)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    ours.backward()  # type: ignore[no-untyped-call]
    theirs.backward()  # type: ignore[no-untyped-call]
    found = dict(model.module.named_parameters())
    compared = 0
    for key, parameter in nonempty(plain.named_parameters()):
        if parameter.requires_grad and parameter.grad is not None and float(parameter.grad.norm()) > 0:
            gradient = found[key].grad
            assert gradient is not None, key
            assert float((gradient - parameter.grad).norm() / parameter.grad.norm()) < 1e-5, key
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", ["gemma2, caps", "phi", "falcon h1", "llama"])
def test_what_preferences_and_drawn_answers_are_learned_from_is_of_the_same_logits(name: str) -> None:
    """Log-probabilities at a temperature, entropies and the smoothed loss: what other objectives than SFT ask for."""
    model, plain = both(name)
    batch = collate(rows(), model.pad_id, "cpu")
    causal = causal_model(plain.get_base_model())
    with torch.no_grad():
        logits = causal(input_ids=batch.input_ids, **text_inputs(causal, batch.input_ids)).logits
        wanted = (logits.flatten(0, 1)[batch.rows] / 0.7).log_softmax(1)
        found = model.logit_rows(batch)
        chosen = wanted.gather(1, batch.targets[:, None])[:, 0]
        torch.testing.assert_close(model.log_probabilities(batch, 0.7), chosen, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.entropy_sum(0.7), -(wanted.exp() * wanted).sum(), rtol=1e-5, atol=1e-5)
        plainly = logits.flatten(0, 1)[batch.rows]
        smoothed = F.cross_entropy(plainly, batch.targets, reduction="sum", label_smoothing=0.1)
        torch.testing.assert_close(model.smoothed_loss_sum(batch, 0.1)[0], smoothed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["granite, dropout", "gpt2"])
def test_attention_dropout_is_drawn_as_transformers_draws_it(name: str) -> None:
    """With one random number generator both draw the same: nothing is left out in training, and nothing added."""
    model, plain = both(name)
    examples = rows()
    batch = collate(examples, model.pad_id, "cpu")
    causal = causal_model(plain.get_base_model())
    use_attention(language_model(causal), model.own_attention)
    still = float(model.loss_sum(batch)[0].detach())
    model.module.train()
    plain.train()
    torch.manual_seed(1)
    ours = float(model.loss_sum(batch)[0].detach())
    torch.manual_seed(1)
    logits = causal(input_ids=batch.input_ids, use_cache=False).logits
    theirs = float(F.cross_entropy(logits.detach().flatten(0, 1)[batch.rows], batch.targets, reduction="sum"))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours != pytest.approx(still, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "scale", "cap"),
    [
        ("llama", 1.0, None),
        ("gemma2, caps", 1.0, 2.0),
        ("cohere", 0.25, None),
        ("granite hybrid", None, None),
        ("falcon h1", None, None),
    ],
)
def test_scale_and_cap_of_a_head_are_measured(name: str, scale: float | None, cap: float | None) -> None:
    base = make(name)
    if scale is None:
        config = base.config
        scale = getattr(config, "lm_head_multiplier", None) or 1 / config.logits_scaling
        assert scale != 1.0
    path = prove_forward(base)
    assert (path.logits, path.logit_scale, path.logit_cap) == ("product", scale, cap)


@pytest.mark.parametrize("name", ["gemma2, caps", "cohere"])
def test_a_trained_head_behind_scale_and_cap_gets_the_gradients_of_transformers(name: str) -> None:
    base, plain = make(name), make(name)
    model = TrainableModel(base, Full(FULL), seed=0)
    model.module.eval()
    use_attention(language_model(plain), "eager")
    examples = rows()
    batch = collate(examples, model.pad_id, "cpu")
    model.loss_sum(batch)[0].backward()  # type: ignore[no-untyped-call]
    plain_loss_sum(plain, batch, examples).backward()  # type: ignore[no-untyped-call]
    ours, theirs = base.get_output_embeddings().weight.grad, plain.get_output_embeddings().weight.grad
    assert float(theirs.norm()) > 0
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2, caps"])
def test_a_proof_leaves_model_and_random_numbers_as_they_were(name: str, dtype: torch.dtype) -> None:
    found = make(name, dtype).train()
    before = {key: value.clone() for key, value in found.state_dict().items()}
    attention, numbers, layers = found.config._attn_implementation, torch.get_rng_state(), len(found.model.layers)
    prove_forward(found)
    assert found.training
    assert found.config._attn_implementation == attention
    assert len(found.model.layers) == layers
    assert torch.equal(torch.get_rng_state(), numbers)
    for key, value in nonempty(found.state_dict().items()):
        assert value.dtype == before[key].dtype
        assert torch.equal(before[key], value)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral, windows", "mixtral", "gemma3 text"])
def test_what_is_plain_is_proved_fast_in_half_precision_too(name: str) -> None:
    assert prove_forward(make(name, torch.bfloat16)).is_fast


@pytest.mark.parametrize("name", ["gemma2, caps", "phi", "gpt oss", "llama4 text, chunks"])
def test_half_precision_hides_nothing(name: str) -> None:
    path = prove_forward(make(name, torch.bfloat16))
    assert (path.attention, path.logits) == NOT_FAST[name]
    assert path.reasons


def test_one_layer_of_each_kind_is_enough_for_a_proof() -> None:
    """A window in the fourth layer alone is seen, whatever the first ones are."""
    config = AutoConfig.for_model(
        "llama4_text",
        **ARCHITECTURES["llama4 text, chunks"][1]
        | {"num_hidden_layers": 6, "no_rope_layers": [1] * 6}
        | {"layer_types": ["full_attention"] * 3 + ["chunked_attention"] + ["full_attention"] * 2},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    assert prove_forward(model.eval()).attention == "model"


@pytest.mark.parametrize("name", ["mistral, windows", "llama4 text, chunks"])
def test_a_window_longer_than_any_row_of_a_proof_is_looked_at_all_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, entries = ARCHITECTURES[name]
    long = {key: 4096 if key in ("sliding_window", "attention_chunk_size") else value for key, value in entries.items()}
    monkeypatch.setitem(ARCHITECTURES, name, (kind, long))
    assert prove_forward(make(name)).attention == ("fast" if kind == "mistral" else "model")
    monkeypatch.setattr(attention, "_causal_mask", lambda num, _, *rest: attention_mask(num, None, *rest))
    monkeypatch.setattr(attention, "_kept_causal_mask", lambda num, _, *rest: attention_mask(num, None, *rest))
    assert prove_forward(make(name)).attention == "model"  # an attention without windows is caught


attention_mask = attention._causal_mask


def test_a_bias_of_zeros_is_no_product_since_it_may_be_trained() -> None:
    biased = make("phi")
    with torch.no_grad():
        biased.lm_head.bias.zero_()
    path = prove_forward(biased)
    assert path.logits == "head"
    assert "bias" in path.reasons[-1]


def test_full_fine_tuning_trains_the_bias_of_a_head() -> None:
    model = TrainableModel(make("phi"), Full(FULL), seed=0)
    model.loss_sum(collate(rows(), 0, "cpu"))[0].backward()  # type: ignore[no-untyped-call]
    bias = dict(model.module.named_parameters())["lm_head.bias"]
    assert bias.grad is not None
    assert float(bias.grad.norm()) > 0


class ScaledTokens(nn.Linear):
    """A head with a trained scale for each token, as Dory's has: each is 1 where a model begins."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False)
        self.weight = plain.weight
        self.logit_scale = nn.Parameter(torch.ones(plain.out_features))

    def forward(self, states: Tensor) -> Tensor:
        """Scaled logits."""
        return super().forward(states) * self.logit_scale


def test_scales_of_one_in_a_head_are_no_product_since_they_may_be_trained() -> None:
    base = make("llama")
    base.lm_head = ScaledTokens(base.lm_head)
    model = TrainableModel(base, Full(FULL), seed=0)
    assert model.path.logits == "head"
    assert "logit_scale" in model.path.reasons[-1]
    model.loss_sum(collate(rows(), 0, "cpu"))[0].backward()  # type: ignore[no-untyped-call]
    scale = dict(model.module.named_parameters())["lm_head.logit_scale"]
    assert scale.grad is not None
    assert float(scale.grad.norm()) > 0


def test_towers_are_not_trained() -> None:
    model = TrainableModel(make("gemma3 as published"), Full(FULL), 0)
    trained = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert trained
    assert not any("vision_tower" in name or "multi_modal" in name for name in trained)
    assert any("vision_tower" in name for name, _ in model.module.named_parameters())


class Fading(LlamaForCausalLM):
    """Scales its logits by their position, which no head could know of."""

    def forward(self, input_ids: Tensor, use_cache: bool | None = None) -> CausalLMOutputWithPast:
        """Logits of later positions are larger."""
        states = self.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        logits = self.lm_head(states) * torch.linspace(0.5, 1.5, 64)[: states.shape[1], None].clamp(max=1.0)
        return CausalLMOutputWithPast(logits=logits)


def test_logits_that_do_not_follow_from_hidden_states_are_computed_by_the_whole_model() -> None:
    torch.manual_seed(0)
    base = Fading(AutoConfig.for_model("llama", **ARCHITECTURES["llama"][1] | {"max_position_embeddings": 64})).eval()
    model = TrainableModel(base, Full(FULL), seed=0)
    assert model.path.logits == "model"
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (40,), generator=draw)
    row = TokenisedExample("row", array("i", ids.tolist()), b"\0" + b"\1" * 39)
    model.module.eval()
    loss = model.loss_sum(collate([row], 0, "cpu"))[0]
    expected = F.cross_entropy(base(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert not model.can_share_prefix()


class ByRow(LlamaModel):
    """Looks up the positions of a row by its number, as the indexer of Qwen4-Exp does."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Raises IndexError where there are fewer rows of positions than of tokens."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        if position_ids is not None:
            position_ids = torch.stack([position_ids[row] for row in range(len(given))])
        return super().forward(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds, **more)


def test_a_model_that_looks_up_positions_by_row_gets_a_row_of_them_for_each() -> None:
    base, plain = make("llama"), make("llama")
    base.model = ByRow(base.config)
    base.model.load_state_dict(plain.model.state_dict())
    found = []
    for model in (TrainableModel(base.eval(), Full(FULL), 0), TrainableModel(plain, Full(FULL), 0)):
        model.module.eval()
        found.append((model.path.positions, float(model.loss_sum(collate(rows(), 0, "cpu"))[0].detach())))
    assert [positions for positions, _ in found] == ["by_row", "shared"]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model.config, "is_causal", False), "earlier tokens see later ones"),
        (lambda model: model.lm_head.weight.data.fill_(float("nan")), "not finite"),
        (lambda model: setattr(model, "lm_head", None), "no output head"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(change: Callable[[Any], None], words: str) -> None:
    broken = make("llama")
    change(broken)
    with pytest.raises(RequestError, match=words) as caught:
        prove_forward(broken)
    assert caught.value.do


def test_a_model_that_reads_prompts_in_both_directions_is_refused_and_a_causal_copy_is_not() -> None:
    """HRM-Text: as it is called here, without a word on which tokens are the prompt, it looks like a causal model."""
    sizes = ARCHITECTURES["llama"][1] | {"num_hidden_layers": 1, "head_dim": 8}
    for is_prefix in (True, False):
        torch.manual_seed(0)
        config = AutoConfig.for_model("hrm_text", **sizes, prefix_lm=is_prefix)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        if not is_prefix:
            assert prove_forward(model).logits == "product"
            continue
        with pytest.raises(RequestError, match="in both directions") as refused:
            prove_forward(model)
        assert "prefix_lm" in refused.value.do


def test_an_encoder_is_refused_before_it_is_trained() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    encoder = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bert", **sizes, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(RequestError, match="earlier tokens see later ones"):
        prove_forward(encoder)


@pytest.mark.parametrize("name", ["deepseek v3", "mamba2", "bloom"])
def test_rows_that_share_a_beginning_are_refused_without_a_crash(name: str) -> None:
    """These take no layout: the answer is no, and never an exception of a library."""
    model, _ = both(name)
    assert model.can_share_prefix() is False
    assert why_not_packed(model)
