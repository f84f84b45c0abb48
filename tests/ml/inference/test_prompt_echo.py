"""Prompts that come back with the likelihoods of their tokens, against the model's own forward pass and its scores."""

from array import array

import pytest
import torch
from tests.vacuous import nonempty
from transformers import MistralConfig, MistralForCausalLM

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import SilentProgress
from luthier.core.stream import Ended, Failed, Piece, Sampling, Started, TextRequest
from luthier.ml.inference import prompt_echo
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine

TEXT = "The front of a violin is made of spruce, its back of maple."


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture
def streaming(engine):
    return StreamingEngine(engine)


def request(text=TEXT, **wishes):
    defaults = {"max_new_tokens": 4, "sampling": Sampling(temperature=0), "num_top": 2, "echo": "before"}
    return TextRequest(**({"text": text} | defaults | wishes))


def events_of(streaming, requests):
    told = {key: [] for key in requests}
    for key, asked in requests.items():
        assert streaming.ask(key, asked, None)
    while streaming.keys:
        for key, event in streaming.poll(0):
            told[key].append(event)
    return told


def echo_in(events):
    (found,) = (event for event in events if isinstance(event, Piece) and event.of_prompt)
    return found


def expected(engine, ids):
    """[tokens - 1, vocabulary]: what the model itself expects after each token but the last."""
    with torch.inference_mode():
        logits = engine.causal(input_ids=torch.tensor([list(ids)])).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1)


def check(engine, ids, echo, num_top=2):
    """The tokens of a prompt against the model's own forward pass; returns the sum of their log-probabilities."""
    found = expected(engine, ids)
    assert len(echo.tokens) == len(ids)
    for place, token in enumerate(nonempty(echo.tokens[1:])):
        own = float(found[place, ids[place + 1]])
        assert token.chosen.log_probability == pytest.approx(own, abs=2e-4)
        top = found[place].topk(num_top).values.tolist()
        assert [one.log_probability for one in token.top] == pytest.approx(top, abs=2e-4)
    assert (echo.tokens[0].chosen.log_probability, echo.tokens[0].top) == (0.0, ())
    return sum(token.chosen.log_probability for token in echo.tokens)


def test_the_likelihoods_of_a_prompt_are_the_models_own_and_its_score(engine, streaming):
    ids = engine.template.ids(TEXT)
    echo = echo_in(events_of(streaming, {"a": request()})["a"])
    total = check(engine, ids, echo)
    example = TokenisedExample(id="row", input_ids=array("i", ids), loss_mask=bytes([0, *[1] * (len(ids) - 1)]))
    (score,) = engine.score([example], SilentProgress())
    assert total == pytest.approx(-score.nll_nats, abs=1e-3)
    assert echo.text == TEXT
    # Where the tokens begin: their texts make up the prompt.
    places = [token.offset for token in echo.tokens]
    assert places == sorted(places)
    ends = [*places[1:], len(TEXT)]
    texts = [TEXT[start:end] for start, end in zip(places, ends, strict=True)]
    assert [token.chosen.token for token in echo.tokens if len(token.chosen.token) > 1] == [
        text for text in texts if len(text) > 1
    ]


def test_the_answer_behind_a_prompt_is_that_without_echo(streaming):
    asked = {"with": request(), "without": request(echo=None)}
    told = {key: events_of(streaming, {key: one})[key] for key, one in asked.items()}
    answers = {
        key: [event for event in events if isinstance(event, Piece) and not event.of_prompt]
        for key, events in told.items()
    }
    assert "".join(one.text for one in answers["with"]) == "".join(one.text for one in answers["without"])
    likelihoods = {
        key: [token.chosen.log_probability for piece in nonempty(pieces) for token in piece.tokens]
        for key, pieces in answers.items()
    }
    assert likelihoods["with"] == pytest.approx(likelihoods["without"], abs=1e-4)
    assert told["with"][0] == told["without"][0]


def test_a_prompt_alone_is_read_and_nothing_written(engine, streaming):
    (started, echo, end) = events_of(streaming, {"a": request(echo="alone")})["a"]
    assert isinstance(started, Started)
    assert (started.num_prompt_tokens, end) == (len(echo.tokens), Ended(reason="length", num_new_tokens=0))
    check(engine, engine.template.ids(TEXT), echo)


def test_token_ids_come_back_as_they_were_without_an_added_token(engine, streaming):
    ids = engine.template.ids(TEXT)[3:]
    asked = request(text=None, token_ids=tuple(ids), echo="alone")
    echo = echo_in(events_of(streaming, {"a": asked})["a"])
    check(engine, ids, echo)
    assert echo.text == engine.template.tokenizer.decode(ids)


def test_one_token_has_no_likelihood(streaming):
    echo = echo_in(events_of(streaming, {"a": request(text=None, token_ids=(7,), echo="alone")})["a"])
    assert [token.top for token in echo.tokens] == [()]


def test_without_likelihoods_the_text_comes_back_alone(streaming):
    echo = echo_in(events_of(streaming, {"a": request(num_top=None)})["a"])
    assert (echo.text, echo.tokens) == (TEXT, ())


def test_long_prompts_are_read_in_parts_beside_others_and_never_from_memory(engine, streaming, monkeypatch):
    monkeypatch.setattr("luthier.ml.inference.request.PART_TOKENS", 7)
    requests = {
        "other": request(echo=None, num_top=None, max_new_tokens=30),
        "first": request(),
        "same": request(echo="alone"),
        "beside": request("Maple is hard.", num_top=None, echo=None),
    }
    for _ in range(2):  # the second time the prompts are kept from the first
        told = events_of(streaming, requests)
        for key in ("first", "same"):
            check(engine, engine.template.ids(TEXT), echo_in(told[key]))
    assert sum(isinstance(event, Ended) for events in told.values() for event in events) == len(requests)


@pytest.mark.parametrize("max_tokens", [None, 60])
def test_short_prompts_are_read_together_and_come_out_as_alone(engine, monkeypatch, max_tokens):
    if max_tokens is not None:
        monkeypatch.setattr(prompt_echo, "MAX_OWN_LOGITS", max_tokens * engine.num_logits)
    texts = [TEXT, "Maple is hard.", "a", TEXT + " " + TEXT, "Maple is hard and heavy.", "Spruce is light and stiff."]
    requests = {text: request(text, echo="alone" if place % 2 else "before") for place, text in enumerate(texts)}
    requests["other"] = request(echo=None, num_top=None)
    batches, parts, prefill = [], [], prompt_echo.PromptEchoes.prefill

    def read(self, prompts):
        batches.append([len(one.prepared.request.ids) for one in prompts])
        return whole(self, prompts)

    def read_part(self, prompt, ids):
        parts.append(len(ids))
        return prefill(self, prompt, ids)

    whole = prompt_echo.PromptEchoes.read
    monkeypatch.setattr(prompt_echo.PromptEchoes, "read", read)
    monkeypatch.setattr(prompt_echo.PromptEchoes, "prefill", read_part)
    together = events_of(StreamingEngine(engine), requests)
    for text in texts:
        ids = engine.template.ids(text)
        if len(ids) > 1:
            check(engine, ids, echo_in(together[text]))
    assert all(len(one) > 1 and len(one) * max(one) <= (max_tokens or 2048) for one in batches)
    assert batches
    # The single token is not read at all; with little memory the longest prompt is read by itself.
    assert sum(map(len, batches)) + len(parts) == 5
    assert len(batches) + len(parts) < 5
    monkeypatch.undo()
    alone = {}
    for text, asked in requests.items():
        alone |= events_of(StreamingEngine(engine), {text: asked})

    def answer(events):
        return "".join(event.text for event in events if isinstance(event, Piece) and not event.of_prompt)

    assert {key: answer(events) for key, events in together.items()} == {
        key: answer(events) for key, events in alone.items()
    }
    assert all(sum(isinstance(event, Ended) for event in events) == 1 for events in together.values())


def test_one_prompt_without_numbers_among_several_ends_alone(tiny):
    broken = TransformersEngine.open(str(tiny), dtype="float32")
    with torch.no_grad():
        broken.causal.get_input_embeddings().weight[5].fill_(float("nan"))
        broken.causal.lm_head.weight = torch.nn.Parameter(torch.randn_like(broken.causal.lm_head.weight))
    requests = {
        name: request(None, token_ids=ids, echo="alone") for name, ids in (("bad", (7, 5, 9)), ("good", (7, 8, 9)))
    }
    told = events_of(StreamingEngine(broken), requests)
    assert [type(event) for event in told["bad"]] == [Failed]
    assert isinstance(told["good"][-1], Ended)


def test_few_logits_at_once_give_the_same(engine, monkeypatch):
    monkeypatch.setattr(prompt_echo, "MAX_OWN_LOGITS", 5 * engine.num_logits)
    echo = echo_in(events_of(StreamingEngine(engine), {"a": request()})["a"])
    check(engine, engine.template.ids(TEXT), echo)


def test_choices_each_begin_with_the_prompt(streaming):
    told = events_of(streaming, {"a": request(num_choices=2)})["a"]
    assert [event.choice for event in told if isinstance(event, Piece) and event.of_prompt] == [0, 1]


def test_a_model_that_takes_no_parts_reads_the_whole_prompt(tiny, tmp_path, monkeypatch):
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, sliding_window=16, initializer_range=0.2,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path / "windowed")
    model = load_model(tmp_path / "windowed", dtype="float32", attention="sdpa")
    windowed = TransformersEngine(model, ChatTemplate.load(tiny))
    monkeypatch.setattr(prompt_echo, "MAX_OWN_LOGITS", 9 * windowed.num_logits)
    ids = windowed.template.ids(TEXT)
    assert len(ids) > 16
    echo = echo_in(events_of(StreamingEngine(windowed), {"a": request()})["a"])
    check(windowed, ids, echo)


def test_a_prompt_without_numbers_ends_its_own_request_alone(tiny):
    broken = TransformersEngine.open(str(tiny), dtype="float32")
    streaming = StreamingEngine(broken)
    with torch.no_grad():
        broken.causal.get_output_embeddings().weight.fill_(float("nan"))
    (failed,) = events_of(streaming, {"a": request(echo="alone")})["a"]
    assert isinstance(failed, Failed)
    assert "not numbers" in failed.error["came"]
