from dataclasses import replace

import pytest
import torch
from tests.vacuous import nonempty
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationMixin, Phi3Config, Phi3ForCausalLM

from luthier.core.errors import DivergedError
from luthier.ml.inference import decode, decoding_proof
from luthier.ml.inference.batch_generate import batch_generate
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.models.loading import load_model


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, dtype="float32", attention="sdpa")


def sliding_model(window):
    """A tiny Gemma 3: some of its layers see the last tokens only."""
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=window,
        sliding_window_pattern=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def sliding():
    return sliding_model(16)


def plain(model, request, end_ids) -> list[int]:
    """The definition: the whole text through the model for every new token."""
    ids = list(request.ids)
    for _ in range(request.max_new_tokens):
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in end_ids:
            break
        ids.append(token)
    return ids[len(request.ids) :]


def requests_of(lengths, *, prefix=(), limits=None, vocabulary=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    limits = limits or [12] * len(lengths)
    return [
        Request([*prefix, *torch.randint(3, vocabulary, (length,), generator=generator).tolist()], limit)
        for length, limit in zip(lengths, limits, strict=True)
    ]


def run(decoder, requests, prefix=None):
    done = []
    written = decoder.run(requests, prefix, done.append)
    assert sorted(done) == list(range(len(requests)))
    return written


@pytest.mark.parametrize("part_tokens", [2048, 40])
def test_batches_write_what_the_definition_writes(model, monkeypatch, part_tokens):
    monkeypatch.setattr(decode, "PREFILL_TOKENS", part_tokens)
    requests = requests_of([30, 3, 17, 18, 1], limits=[12, 3, 20, 1, 9], vocabulary=384)
    first = plain(model, requests[0], ())
    end_ids = {first[5]}
    written = run(Decoder(model, end_ids=end_ids, pad_id=0), requests)
    for request, found in zip(requests, written, strict=True):
        assert found.ids == plain(model, request, end_ids)
        assert found.stopped == (len(found.ids) < request.max_new_tokens)
    assert written[0].stopped


@pytest.mark.parametrize("part_tokens", [2048, 40])
def test_a_shared_prefix_changes_no_token_and_hardly_a_logit(model, monkeypatch, part_tokens):
    monkeypatch.setattr(decode, "PREFILL_TOKENS", part_tokens)
    prefix = requests_of([40], vocabulary=384, seed=1)[0].ids
    requests = requests_of([9, 1, 30, 12], prefix=prefix, limits=[10, 3, 12, 6], vocabulary=384)
    decoder = Decoder(model, end_ids=(), pad_id=0)
    shared = decoder.prefill(prefix)
    expected = [plain(model, request, ()) for request in requests]
    assert [w.ids for w in run(decoder, requests, shared)] == expected
    # The prefix is untouched, so that the next batch may start from it.
    assert [w.ids for w in run(decoder, requests, shared)] == expected
    batch, logits = decoder._start(requests, shared)
    for place, row in enumerate(batch.rows):
        with torch.inference_mode():
            whole = model(input_ids=torch.tensor([list(requests[row].ids)])).logits[0, -1]
        torch.testing.assert_close(logits[place], whole, atol=1e-4, rtol=0)


def test_sliding_windows_are_kept_where_rows_outgrow_them(sliding):
    decoder = Decoder(sliding, end_ids=(), pad_id=0)
    requests = requests_of([30, 3, 14], limits=[12, 20, 9])
    assert not decoder.fits_windows(17)
    assert [w.ids for w in run(decoder, requests)] == [plain(sliding, request, ()) for request in requests]


def test_sliding_windows_allow_a_shared_prefix_where_rows_fit(sliding):
    decoder = Decoder(sliding, end_ids=(), pad_id=0)
    prefix = requests_of([6], seed=2)[0].ids
    requests = requests_of([4, 1], prefix=prefix, limits=[5, 6])
    assert decoder.fits_windows(16)
    written = run(decoder, requests, decoder.prefill(prefix))
    assert [w.ids for w in written] == [plain(sliding, request, ()) for request in requests]


def test_a_beginning_is_not_shared_where_the_longest_prompt_and_the_longest_answer_outgrow_a_window():
    model = sliding_model(48)
    decoder = Decoder(model, end_ids=(), pad_id=0)
    prefix = requests_of([32], seed=2)[0].ids
    # Each fits, with 46 tokens. Padded together they take 44 + 12: behind padding the window would end too early.
    asked = requests_of([12, 2], prefix=prefix, limits=[2, 12])
    requests = [replace(request, temperature=1.0, seed=seed) for seed, request in enumerate(asked)]
    assert decoder.fits_windows(46)
    found = batch_generate(decoder, requests, lambda _: None)
    assert [len(one.ids) for one in found] == [2, 12]
    for request, one in zip(requests, found, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*request.ids, *one.ids]])).logits[0]
        places = range(len(request.ids) - 1, len(request.ids) + len(one.ids) - 1)
        wanted = torch.log_softmax(logits, -1)[places, one.ids]
        torch.testing.assert_close(torch.tensor(one.log_probabilities), wanted, rtol=0, atol=1e-4)


def test_draws_follow_the_softmax(model):
    ids = requests_of([5], vocabulary=384)[0].ids
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    expected = torch.softmax(logits / 0.5, -1)
    requests = [Request(ids, 1, temperature=0.5, seed=seed) for seed in range(600)]
    drawn = torch.tensor([w.ids[0] for w in run(Decoder(model, end_ids=(), pad_id=0), requests)])
    found = torch.bincount(drawn, minlength=384) / len(requests)
    # The total variation distance of 600 draws from their own law stays well under 0.3 here; uniform is above 0.5.
    assert float((found - expected).abs().sum() / 2) < 0.3


def test_rows_that_finish_leave_the_batch(model, monkeypatch):
    sizes = []
    forward = Decoder._forward
    monkeypatch.setattr(
        Decoder, "_forward", lambda self, tokens, *rest: (sizes.append(len(tokens)), forward(self, tokens, *rest))[1]
    )
    run(Decoder(model, end_ids=(), pad_id=0), requests_of([5, 6, 7], limits=[1, 2, 4], vocabulary=384))
    assert sizes == [3, 2, 1, 1]


def test_weights_that_are_not_numbers_are_an_error(tiny):
    broken = load_model(tiny, dtype="float32", attention="sdpa")
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(DivergedError, match="not numbers"):
        run(Decoder(broken, end_ids=(), pad_id=0), requests_of([5], vocabulary=384))


def test_equal_prompts_go_through_the_model_once_and_write_what_they_write_apart(model, monkeypatch):
    ids = requests_of([9, 5], vocabulary=384)
    requests = [Request(ids[i].ids, 10, temperature=1.0, seed=seed) for i, seed in ((0, 1), (1, 2), (0, 3), (0, 1))]
    decoder = Decoder(model, end_ids={7}, pad_id=0)
    apart = [run(decoder, [request])[0] for request in requests]
    seen = []
    forward = decoder._forward
    monkeypatch.setattr(
        decoder, "_forward", lambda tokens, *rest: seen.append(tuple(tokens.shape)) or forward(tokens, *rest)
    )
    together = run(decoder, requests)
    assert sum(rows * width for rows, width in seen if width > 1) == 9 + 9  # two prompts, the shorter one padded
    assert [one.ids for one in together] == [one.ids for one in apart]
    assert together[0].ids == together[3].ids != together[2].ids


@pytest.mark.parametrize("limits", [(2, 9, 5), (9, 2, 5), (2, 5, 9)])
def test_equal_prompts_with_unlike_limits_are_each_written_to_their_own(model, limits):
    (one,) = requests_of([9], vocabulary=384)
    requests = [Request(one.ids, limit) for limit in limits]
    written = run(Decoder(model, end_ids=(), pad_id=0), requests)
    assert [found.ids for found in written] == [plain(model, request, ()) for request in requests]
    assert [len(found.ids) for found in written] == list(limits)


def test_drawn_tokens_come_with_the_probability_they_were_drawn_with(model):
    requests = [Request(r.ids, 8, temperature=0.7, seed=i) for i, r in enumerate(requests_of([6, 6], vocabulary=384))]
    end_ids = range(100)
    for request, found in nonempty(
        zip(requests, run(Decoder(model, end_ids=end_ids, pad_id=0), requests), strict=True)
    ):
        new = [*found.ids, *(() if found.end_id is None else (found.end_id,))]
        assert found.stopped == (found.end_id in end_ids)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*request.ids, *new]])).logits[0] / 0.7
        wanted = torch.log_softmax(logits, -1)[range(len(request.ids) - 1, len(request.ids) + len(new) - 1), new]
        torch.testing.assert_close(torch.tensor(found.log_probabilities), wanted, rtol=0, atol=1e-5)


def test_nothing_is_drawn_at_temperature_zero(model):
    assert run(Decoder(model, end_ids=(), pad_id=0), requests_of([4], vocabulary=384))[0].log_probabilities == []


@pytest.fixture(scope="module")
def stretched():
    """A tiny Phi 3 whose positions change their meaning over 24 tokens, as in the versions with a long context."""
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=24,
        rope_parameters=rope | {"original_max_position_embeddings": 24},
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Phi3ForCausalLM(config).eval()


def test_positions_that_change_their_meaning_are_computed_again(stretched):
    decoder = Decoder(stretched, end_ids=(), pad_id=0)
    assert decoder.path.kind == "batched"
    assert decoder.path_of(24) is decoder.path
    assert decoder.fits_windows(24)
    assert not decoder.fits_windows(25)
    requests = requests_of([10, 20, 23, 24, 25, 40], limits=[10] * 6)
    for batch in ([0], [0, 1, 2], [3, 4, 5], [0, 5]):
        for found, request in zip(
            run(decoder, [requests[i] for i in batch]), (requests[i] for i in batch), strict=True
        ):
            assert found.ids == plain(stretched, request, ())
    assert decoder.path_of(25).kind == "grouped"
    assert "change their meaning" in decoder.path_of(25).reason
    assert len(decoder.paths) == 2


def test_where_no_cache_survives_that_the_text_goes_through_the_model_anew(stretched, monkeypatch):
    monkeypatch.setattr(decoding_proof, "_proved", {})
    # a model that has the same positions and does not drop its cache
    monkeypatch.setattr(type(stretched), "prepare_inputs_for_generation", GenerationMixin.prepare_inputs_for_generation)
    decoder = Decoder(stretched, end_ids=(), pad_id=0)
    (request,) = requests_of([20], limits=[10])
    (found,) = run(decoder, [request])
    assert decoder.path_of(30).kind == "uncached"
    assert found.ids == plain(stretched, request, ())
