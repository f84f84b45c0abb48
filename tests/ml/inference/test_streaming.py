import math
from collections import defaultdict

import pytest
import torch
from tests.vacuous import nonempty
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import OverlongError, RequestError, WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.stream import Ended, Failed, Piece, Sampling, Started, TextRequest
from luthier.ml.inference.answer_row import AnswerRow, Sampler
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.tiny import make_tiny_model

GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture
def streaming(engine):
    return StreamingEngine(engine)


def request(text="The front is made of", **wishes):
    return TextRequest(text=text, **({"max_new_tokens": 12, "sampling": GREEDY} | wishes))


class Heard:
    """What was told, by ask."""

    def __init__(self):
        self.text, self.ends, self.pieces, self.started = defaultdict(str), {}, defaultdict(list), {}

    def hear(self, told):
        for key, event in told:
            if isinstance(event, Started):
                self.started[key] = event
            elif isinstance(event, Piece):
                self.text[key, event.choice] += event.text
                self.pieces[key, event.choice].append(event)
            elif isinstance(event, Ended):
                assert (key, event.choice) not in self.ends
                self.ends[key, event.choice] = event


def write(streaming, requests, *, apart=0):
    """All requests to their end; each comes `apart` steps after the one before it."""
    heard = Heard()
    for key, asked in requests.items():
        assert streaming.ask(key, asked, None)
        for _ in range(apart):
            heard.hear(streaming.poll(0))
    while streaming.keys:
        heard.hear(streaming.poll(0))
    return heard


def generated(engine, asked):
    prompt = Prompt(
        text=asked.text,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.sampling.temperature,
        seed=asked.sampling.seed,
    )
    return engine.generate([prompt], SilentProgress())[0]


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
@pytest.mark.parametrize("apart", [0, 3])
def test_asks_that_come_and_go_get_what_each_would_get_alone(engine, streaming, sampling, apart):
    texts = ["The front", "A luthier builds and repairs stringed instruments: violins, cellos", "a", "Maple is harder."]
    lengths = [80, 3, 30, 20]
    requests = {
        number: request(text, max_new_tokens=length, sampling=sampling)
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True))
    }
    heard = write(streaming, requests, apart=apart)
    for number, asked in requests.items():
        alone = generated(engine, asked)
        end = heard.ends[number, 0]
        assert heard.text[number, 0] == alone.text
        assert (end.num_new_tokens, end.reason) == (alone.num_new_tokens, alone.finish_reason)
        assert heard.started[number].num_prompt_tokens == alone.num_prompt_tokens


def test_a_model_with_sliding_windows_writes_long_answers_beside_the_others(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.testing.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "base")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, sliding_window=24, initializer_range=0.2,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path / "windowed")
    model = load_model(tmp_path / "windowed", dtype="float32", attention="sdpa")
    engine = TransformersEngine(model, ChatTemplate.load(folder))
    requests = {
        "long": request("The front of a violin is made of", max_new_tokens=40),
        "short": request("a", max_new_tokens=10),
        "other": request("Maple", max_new_tokens=8),
    }
    heard = write(StreamingEngine(engine), requests, apart=2)
    for key, asked in requests.items():
        assert heard.text[key, 0] == generated(engine, asked).text


def test_choices_of_one_ask_differ_and_come_again_with_the_seed(streaming):
    asked = request(sampling=WARM, num_choices=3)
    first, second = write(streaming, {"a": asked}), write(streaming, {"a": asked})
    assert first.text == second.text
    assert len(set(first.text.values())) == 3
    assert {choice for _, choice in first.ends} == {0, 1, 2}
    alone = write(streaming, {"a": request(sampling=WARM.model_copy(update={"seed": 6}))})
    assert alone.text["a", 0] == first.text["a", 1]


def test_an_answer_ends_before_a_stop_text(streaming):
    text = write(streaming, {"a": request(max_new_tokens=40)}).text["a", 0]
    begins = next(at for at in range(1, len(text) - 3) if text.find(text[at : at + 3]) == at)
    stop = text[begins : begins + 3]
    heard = write(streaming, {"a": request(max_new_tokens=40, stop=(stop, "never"), num_top=0)})
    assert heard.text["a", 0] == text[:begins]
    assert heard.ends["a", 0].reason == "stop"
    tokens = [token for piece in heard.pieces["a", 0] for token in piece.tokens]
    assert all(nonempty(token.offset < len(heard.text["a", 0]) for token in tokens))


def test_a_cancelled_ask_is_heard_of_no_more_and_changes_no_other(streaming):
    alone = write(streaming, {"b": request("Maple", max_new_tokens=20)}).text["b", 0]
    heard = Heard()
    for key, text in (("a", "The front"), ("b", "Maple"), ("c", "never begun")):
        assert streaming.ask(key, request(text, max_new_tokens=20), None)
        if key == "b":
            heard.hear(streaming.poll(0))
    for key in ("a", "c", "unknown"):
        streaming.cancel(key)
    before = heard.text["a", 0]
    while streaming.keys:
        heard.hear(streaming.poll(0))
    assert (heard.text["a", 0], heard.text["b", 0]) == (before, alone)
    assert set(heard.ends) == {("b", 0)}


def test_likelihoods_are_those_of_the_model(engine, streaming, tiny):
    heard = write(streaming, {"a": request(num_top=2, max_new_tokens=6)})
    tokens = [token for piece in heard.pieces["a", 0] for token in piece.tokens]
    assert len(tokens) == heard.ends["a", 0].num_new_tokens
    ids, _ = engine.template.encode("The front is made of")
    logits = load_model(tiny, dtype="float32", attention="sdpa")(torch.tensor([ids])).logits[0, -1]
    best = torch.log_softmax(logits, -1).max()
    assert tokens[0].chosen.log_probability == pytest.approx(float(best.detach()), abs=1e-4)
    assert tokens[0].top[0] == tokens[0].chosen
    assert all(len(token.top) == 2 and token.offset <= len(heard.text["a", 0]) for token in tokens)


def test_the_text_ends_where_the_context_does(engine, streaming):
    num = len(engine.template.encode("word " * 100)[0])
    heard = write(streaming, {"a": request("word " * 100, max_new_tokens=5000)})
    end = heard.ends["a", 0]
    assert end.reason == "stop" or end.num_new_tokens == 512 - num
    with pytest.raises(OverlongError, match="512"):
        streaming.ask("b", request("word " * 600), None)
    with pytest.raises(RequestError, match="empty"):
        streaming.ask("b", request(""), None)
    assert not streaming.keys


def test_a_long_prompt_is_read_in_parts_between_the_steps_of_others(engine, streaming, monkeypatch):
    monkeypatch.setattr("luthier.ml.inference.request.PART_TOKENS", 16)
    long, short = request("The front of a violin " * 12, max_new_tokens=6), request("Maple", max_new_tokens=40)
    assert streaming.ask("short", short, None)
    heard = Heard()
    heard.hear(streaming.poll(0))
    assert streaming.ask("long", long, None)
    num_before = 0
    while "long" not in heard.started:
        heard.hear(streaming.poll(0))
        num_before += 1
    assert num_before > 3
    assert heard.pieces["short", 0][-1].num_new_tokens > 3
    while streaming.keys:
        heard.hear(streaming.poll(0))
    for key, asked in (("long", long), ("short", short)):
        assert heard.text[key, 0] == generated(engine, asked).text


def test_a_prompt_may_come_as_tokens(engine, streaming):
    ids, _ = engine.template.encode("The front is made of")
    told = {"text": request(), "ids": request(None, token_ids=tuple(ids))}
    heard = write(streaming, told)
    assert heard.text["ids", 0] == heard.text["text", 0] != ""
    with pytest.raises(RequestError, match="token id 384"):
        streaming.ask("b", request(None, token_ids=(5, 384)), None)


def test_a_bias_forbids_and_forces_tokens(engine, streaming):
    first = engine.template.encode("M")[0][0]
    heard = write(streaming, {"a": request(sampling=Sampling(temperature=0, logit_bias=((first, 100.0),)))})
    assert heard.text["a", 0] == "M" * 12
    with pytest.raises(RequestError, match="logit_bias"):
        streaming.ask("b", request(sampling=Sampling(logit_bias=((999, 1.0),))), None)


def test_what_goes_wrong_with_one_answer_leaves_the_others(engine, streaming):
    class Broken:
        def mask(self, logits):
            return logits

        def take(self, token):
            raise WorkError("came", expected="expected", do="do")

    alone = write(streaming, {"b": request("Maple")}).text["b", 0]
    heard = Heard()
    assert streaming.ask("a", request(num_choices=2), None)
    assert streaming.ask("b", request("Maple"), None)
    heard.hear(streaming.poll(0))
    next(row for row in streaming._rows.values() if row.key == "a").constraint = Broken()
    told = []
    while streaming.keys:
        told += streaming.poll(0)
    heard.hear(told)
    assert [key for key, event in told if isinstance(event, Failed)] == ["a"]
    assert heard.text["b", 0] == alone
    assert not [key for key, _ in heard.ends if key == "a"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_model_that_gives_no_numbers_ends_its_own_answer_alone(streaming, value):
    alone = write(streaming, {"b": request("Maple", sampling=WARM)}).text["b", 0]
    heard, failed = Heard(), {}
    assert streaming.ask("a", request(sampling=WARM), None)
    assert streaming.ask("b", request("Maple", sampling=WARM), None)
    heard.hear(streaming.poll(0))
    for group in streaming._groups:
        group.logits = group.logits.clone()
        for place, number in enumerate(group.batch.rows):
            if streaming._rows[number].key == "a":
                group.logits[place, 5] = value
    while streaming.keys:
        events = streaming.poll(0)
        failed |= {key: event.error["type"] for key, event in events if isinstance(event, Failed)}
        heard.hear(events)
    assert failed == {"a": "DivergedError"}
    assert heard.text["b", 0] == alone


def test_a_fault_of_a_parser_ends_its_own_answer_alone(engine, streaming, monkeypatch):
    alone = write(StreamingEngine(engine), {"b": request("Who plays?")})
    own = AnswerRow.write

    def write_row(row, logits, likeliest):
        if row.key == "a":
            raise TypeError("unhashable type: 'list'")
        return own(row, logits, likeliest)

    monkeypatch.setattr(AnswerRow, "write", write_row)
    assert streaming.ask("a", request(), None)
    assert streaming.ask("b", request("Who plays?"), None)
    heard, failed = Heard(), {}
    while streaming.keys:
        events = streaming.poll(0)
        failed |= {key: event for key, event in events if isinstance(event, Failed)}
        heard.hear(events)
    assert set(failed) == {"a"}
    assert heard.text == alone.text


def test_vectors_have_length_one_and_do_not_depend_on_their_neighbours(engine, streaming, tiny):
    ids, _ = engine.template.encode("Maple.")
    inputs = ("Spruce is light and stiff along the grain.", tuple(ids), "Maple.")
    assert streaming.ask_pooling("e", PoolingRequest(inputs=inputs), None)
    [(key, event)] = streaming.poll(0)
    assert key == "e"
    assert not streaming.keys
    vectors = torch.tensor(event.outputs)
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    torch.testing.assert_close(vectors[1], vectors[2])
    model = load_model(tiny, dtype="float32", attention="sdpa")
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0).detach()
    torch.testing.assert_close(vectors[1], states / states.norm(), atol=1e-5, rtol=1e-4)
    streaming.ask_pooling("many", PoolingRequest(inputs=("Maple.",) * 40), None)
    assert streaming.poll(0) == []  # not all in one step: others are being written
    [(_, event_of_many)] = streaming.poll(0)
    assert len(event_of_many.outputs) == 40
    assert event.num_prompt_tokens == 2 * len(ids) + len(engine.template.encode(inputs[0])[0])


def test_room_is_persistent_for_what_is_being_written(engine):
    streaming = StreamingEngine(engine, max_rows=3, batch_tokens=100)
    small, wide = request("a", max_new_tokens=20), request("a", max_new_tokens=300, num_choices=5)
    assert streaming.ask("wide", wide, None)
    streaming.cancel("wide")
    assert streaming.ask("a", small, None)
    assert streaming.ask("b", small, None)
    assert not streaming.ask("c", request("a", max_new_tokens=60), None)
    assert not streaming.ask("d", request("a", max_new_tokens=20, num_choices=2), None)
    while streaming.keys:
        streaming.poll(0)
    assert streaming.ask("c", request("a", max_new_tokens=60), None)


def test_a_conversation_is_written_with_the_models_template(engine, streaming):
    talk = Conversation(messages=(Message(role="user", content="Which wood?"),))
    heard = write(streaming, {"a": TextRequest(conversation=talk, sampling=GREEDY, max_new_tokens=5)})
    alone = engine.generate([Prompt(conversation=talk, max_new_tokens=5)], SilentProgress())[0]
    assert heard.text["a", 0] == alone.text


LOGITS = torch.tensor([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)])


def draws(num=300, **rules):
    sampler = Sampler(Sampling(**rules), 0, torch.device("cpu"))
    return [sampler.draw(LOGITS) for _ in range(num)]


def test_top_p_leaves_the_smallest_set_that_has_it():
    assert set(draws(top_p=1.0)) == {0, 1, 2, 3}
    assert set(draws(top_p=0.81)) == {0, 1, 2}
    assert set(draws(top_p=0.6)) == {0, 1}
    assert set(draws(top_p=0.4)) == {0}
    assert set(draws(top_p=0.0)) == {0}


def test_top_k_and_min_p_leave_the_likeliest_tokens():
    assert set(draws(top_k=2)) == {0, 1}
    assert set(draws(top_k=1, temperature=2.0)) == {0}
    assert draws(top_k=4) == draws(top_k=0) == draws(top_k=9)
    assert set(draws(min_p=0.2)) == {0, 1, 2}  # a fifth of 0.5
    assert set(draws(min_p=0.61)) == {0}
    # Of the probabilities after the temperature: 0.05 of 0.5 becomes the square root of a tenth, 0.32.
    assert set(draws(1000, min_p=0.3, temperature=2.0)) == {0, 1, 2, 3}
    # top_p counts the probability of what is left: of 0.5 and 0.3 the likelier has 0.625.
    assert set(draws(top_k=2, top_p=0.62)) == {0}
    assert set(draws(top_k=2, top_p=0.63)) == {0, 1}
    assert set(draws(min_p=0.2, top_p=0.85)) == {0, 1, 2}
    assert set(draws(min_p=0.2, top_p=0.84)) == {0, 1}


def test_temperature_makes_draws_bolder_and_zero_is_greedy():
    assert set(draws(temperature=0.0)) == {0} == set(draws(temperature=1e-12))
    assert draws(temperature=0.3).count(0) > draws(temperature=1.0).count(0) > draws(temperature=2.0).count(0)


def test_penalties_make_what_was_written_less_likely():
    assert draws(4, temperature=0.0, presence_penalty=2.0) == [0, 1, 2, 0]
    assert draws(5, temperature=0.0, frequency_penalty=0.4) == [0, 0, 1, 0, 1]
    assert draws(3, temperature=0.0, presence_penalty=-2.0) == [0, 0, 0]


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(engine, streaming, monkeypatch):
    def tokenise(self, text):
        raise AssertionError(f"{len(text)} characters were tokenised")

    monkeypatch.setattr(ChatTemplate, "ids", tokenise)
    monkeypatch.setattr(ChatTemplate, "encode", tokenise)
    talk = Conversation(messages=(Message(role="user", content="wood " * 800_000),))
    for asked in (request("wood " * 800_000), request(None, conversation=talk)):
        with pytest.raises(OverlongError, match="at least") as caught:
            streaming.prepare(asked)
        assert Failed.of(caught.value).num_contexts > 100
    with pytest.raises(OverlongError, match="at least"):
        streaming.prepare(PoolingRequest(inputs=("a" * 4_000_000,)))


def test_a_prompt_that_fits_is_never_refused_by_its_bytes(engine, streaming):
    longest = engine.template._token_bytes.longest
    vocabulary = engine.template.tokenizer.backend_tokenizer.get_vocab()
    special = max(vocabulary, key=len)
    assert len(special) == longest
    prepared = streaming.prepare(request(special * 511))
    assert len(prepared.request.ids) == 511
    with pytest.raises(OverlongError, match="at least"):
        streaming.prepare(request(special * 512))


def test_prompts_of_different_owners_take_turns(engine, streaming, monkeypatch):
    monkeypatch.setattr("luthier.ml.inference.request.PART_TOKENS", 16)
    long = request("The front of a violin " * 12, max_new_tokens=2)
    for number in range(3):
        assert streaming.admit(f"long {number}", streaming.prepare(long), None, owner="one")
    heard = Heard()
    heard.hear(streaming.poll(0))
    assert streaming.admit("short", streaming.prepare(request("Maple", max_new_tokens=2)), None, owner="other")
    heard.hear(streaming.poll(0))
    assert list(heard.started) == ["short"], "one part of a long prompt, and then whoever has not had a turn"
    while streaming.keys:
        heard.hear(streaming.poll(0))
    for number in range(3):
        assert heard.text[f"long {number}", 0] == generated(engine, long).text


def test_some_room_is_persistent_for_those_who_have_nothing_under_way(engine):
    streaming = StreamingEngine(engine, max_rows=4)
    small = streaming.prepare(request("a"))
    assert [streaming.admit(n, small, None, owner="one") for n in range(5)] == [True] * 4 + [False]
    assert streaming.admit("new", small, None, owner="other", may_exceed=True)
    assert not streaming.admit("newer", small, None, owner="third", may_exceed=True)


def test_a_long_text_is_made_into_a_vector_in_parts_between_the_steps_of_others(engine, streaming, monkeypatch):
    long = PoolingRequest(inputs=("The front of a violin is made of spruce. " * 9, "Maple."))
    assert streaming.ask_pooling("whole", long, None)
    told = [event for _ in range(3) for _, event in streaming.poll(0)]
    monkeypatch.setattr("luthier.ml.inference.pooling.PART_TOKENS", 16)
    assert streaming.ask_pooling("parts", long, None)
    assert streaming.admit("answer", streaming.prepare(request("a", max_new_tokens=8)), None, owner="other")
    heard, vectors = Heard(), []
    while streaming.keys:
        polled = streaming.poll(0)
        vectors += [event for key, event in polled if key == "parts"]
        heard.hear([one for one in polled if one[0] != "parts"])
        assert not vectors or heard.ends, "the answer ends while the text goes through the model"
    torch.testing.assert_close(torch.tensor(vectors[0].outputs), torch.tensor(told[0].outputs), atol=1e-5, rtol=1e-4)


def test_a_continued_text_keeps_the_space_that_it_begins_with(tmp_path):
    """With a tokenizer as that of Llama 2 and Mistral, whose decoder drops a space where a text begins."""
    folder = make_tiny_model(tmp_path / "pieces", chat=False)
    vocabulary = {"<unk>": 0, "▁The": 1, "▁front": 2, "▁of": 3, "</s>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["</s>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    streaming = StreamingEngine(TransformersEngine.open(str(folder), dtype="float32"))
    only_of = Sampling(temperature=0, logit_bias=((3, 100.0),))
    asked = TextRequest(token_ids=(1, 2), max_new_tokens=2, sampling=only_of, num_top=0)
    heard = write(streaming, {"ids": asked, "alone": asked.model_copy(update={"token_ids": (4,)})})
    assert heard.text["ids", 0] == " of of"
    tokens = [token.chosen.token for piece in heard.pieces["ids", 0] for token in piece.tokens]
    assert tokens == [" of", " of"]
    assert heard.text["alone", 0] == "of of", "nothing is before it"
