"""What is proved is what the model itself gives; what only looks alike is not."""

import pytest
import torch
from tests.zoo.families import make_family

from luthier.core.errors import DivergedError, RequestError
from luthier.ml.inference import decoding_proof
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.decoding_proof import (
    NUM_STEPS,
    apart,
    own_logits,
    prove,
    short_probe,
    text_part,
    tolerance,
)
from luthier.ml.inference.models.loading import load_model


@pytest.fixture
def model(tiny, monkeypatch):
    monkeypatch.setattr(decoding_proof, "_proved", {})
    return load_model(tiny, dtype="float32", attention="sdpa")


def right(model, probe):
    """A trial that gives the model's own logits."""
    return [own_logits(model, row)[-NUM_STEPS - 1 :] for row in probe.rows]


def test_the_first_trial_that_gives_the_models_own_logits_is_taken(model):
    probe = short_probe(model, None, is_recurrent=False)

    def wrong(probe):
        return [logits * 1.001 for logits in right(model, probe)]

    def raises(probe):
        raise KeyError("no such layer")

    found = prove(model, probe, [("batched", wrong), ("by_row", lambda probe: right(model, probe))])
    assert found.kind == "by_row"
    assert "batches: logits differ by 0.001" in found.reason
    decoding_proof._proved.clear()
    found = prove(model, probe, [("batched", raises), ("by_row", wrong)])
    assert found.kind == "uncached"
    assert "KeyError: 'no such layer'" in found.reason
    assert "a model's own cache" not in found.describe()
    assert found.reason in found.describe()


def test_a_proof_counts_for_models_of_one_config_alone(model):
    probe, asked = short_probe(model, None, is_recurrent=False), []

    def trial(probe):
        asked.append(probe)
        return right(model, probe)

    for _ in range(2):
        assert prove(model, probe, [("batched", trial)]).kind == "batched"
    assert len(asked) == 1
    model.config.rms_norm_eps *= 2
    prove(model, probe, [("batched", trial)])
    assert len(asked) == 2


def test_rows_of_a_probe_begin_alike_and_hold_no_special_token(model):
    probe = short_probe(model, None, is_recurrent=False)
    first, other = probe.rows
    assert len(first) > len(other) > NUM_STEPS + probe.num_shared
    assert first[: probe.num_shared] == other[: probe.num_shared]
    assert first[probe.num_shared] != other[probe.num_shared]
    special = {model.config.eos_token_id, model.config.pad_token_id}
    assert special.isdisjoint({*first, *other})
    assert max(map(len, short_probe(model, 5, is_recurrent=False).rows)) == 5


def test_a_recurrent_model_is_proved_over_more_than_one_chunk(tmp_path):
    model = load_model(make_family("mamba2", tmp_path), dtype="float32", attention="sdpa")
    assert len(short_probe(model, None, is_recurrent=True).rows[0]) > model.config.chunk_size


def test_a_model_that_looks_ahead_is_refused(tmp_path, monkeypatch):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ahead = BertLMHeadModel(BertConfig(vocab_size=64, initializer_range=0.5, is_decoder=False, **sizes)).eval()
    with pytest.raises(RequestError, match="later tokens change its earlier logits"):
        Decoder(ahead, end_ids=(), pad_id=0)


def test_a_model_whose_forward_pass_fails_is_refused_in_words(model, monkeypatch):
    def fail(**_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RequestError, match=r"LlamaForCausalLM fails on 10 tokens: IndexError: list index") as caught:
        Decoder(model, end_ids=(), pad_id=0)
    assert caught.value.do


def test_a_cache_that_raises_costs_speed_and_nothing_else(model, monkeypatch):
    forward = model.forward

    def no_cache(input_ids=None, use_cache=None, past_key_values=None, cache=None, **others):
        if use_cache:
            raise NotImplementedError("this cache is not for me")
        return forward(input_ids=input_ids, use_cache=False, **others)

    requests = [Request((5, 6, 7), 4), Request((9, 8, 7, 6, 5, 4), 4)]
    fast = Decoder(model, end_ids=(), pad_id=0).run(requests, None, lambda _: None)
    monkeypatch.setattr(decoding_proof, "_proved", {})
    monkeypatch.setattr(model, "forward", no_cache)
    decoder = Decoder(model, end_ids=(), pad_id=0)
    assert decoder.path.kind == "uncached"
    assert "NotImplementedError: this cache is not for me" in decoder.path.reason
    slow = decoder.run(requests, None, lambda _: None)
    assert [one.ids for one in slow] == [one.ids for one in fast]


def test_weights_that_are_not_numbers_prove_nothing(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    decoder = Decoder(model, end_ids=(), pad_id=0)
    assert decoder.path.kind == "batched"
    assert not decoding_proof._proved
    with pytest.raises(DivergedError, match="not numbers"):
        decoder.run([Request((5, 6), 3)], None, lambda _: None)


def test_noise_is_allowed_for_in_bfloat16_alone(tiny):
    probes = {}
    for dtype in ("float32", "bfloat16"):
        model = load_model(tiny, dtype=dtype, attention="sdpa")
        probe = short_probe(model, None, is_recurrent=False)
        expected = right(model, probe)
        probes[dtype] = tolerance(model, probe, expected, 0.5)
        assert Decoder(model, end_ids=(), pad_id=0).path.kind == "batched"
    assert probes["float32"] == 1e-4
    assert 2**-5 <= probes["bfloat16"] <= 0.25


def test_distance_is_a_share_of_the_largest():
    assert apart(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])) == pytest.approx(0.125)
    assert apart(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0])) == float("inf")
    assert apart(torch.tensor([1.0]), torch.tensor([1.0, 1.0])) == float("inf")


def test_the_causal_model_inside_writes_where_the_whole_fails_on_text(tmp_path):
    whole = load_model(make_family("llama4", tmp_path / "llama4"), dtype="float32", attention="sdpa")
    try:
        own_logits_of_whole = whole(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    except AttributeError:
        own_logits_of_whole = None
    part = text_part(whole)
    assert (part is whole) == (own_logits_of_whole is not None)
    assert own_logits(part, (5, 6, 7)).shape == (3, whole.config.text_config.vocab_size)
    gemma = load_model(make_family("gemma3", tmp_path / "gemma3"), dtype="float32", attention="sdpa")
    assert text_part(gemma) is gemma
