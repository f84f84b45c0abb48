"""Prompts that begin as earlier ones continue from what is kept of them, with the answers that they get without."""

from collections import Counter

import pytest
import torch
from transformers import DynamicCache

from luthier.core.stream import EngineSettings, Served, TextRequest
from luthier.ml.inference.decode import Batch, Decoder
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.prompt_cache import BLOCK_TOKENS, PromptCache, cache_bytes, num_common
from luthier.ml.inference.streaming import StreamingEngine, open_stream_engine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.stream_contract import GREEDY, write_all

SYSTEM = "A luthier builds and repairs stringed instruments: violins, cellos and guitars. " * 3


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture
def computed(monkeypatch):
    """The tokens of prompts that go through a model, by the number of rows of a pass."""
    found = Counter()
    forward = Decoder._forward

    def counted(self, tokens, cache, mask, positions):
        if tokens.shape[1] > 1:
            found[tokens.shape[0]] += tokens.shape[1]
        return forward(self, tokens, cache, mask, positions)

    monkeypatch.setattr(Decoder, "_forward", counted)
    return found


def request(text, num_new=12):
    return TextRequest(text=text, max_new_tokens=num_new, sampling=GREEDY)


def num_tokens(engine, text):
    return len(engine.template.encode(text)[0])


def alone(engine, text, num_new=12):
    """The answer of an engine that keeps no prompts."""
    plain = StreamingEngine(engine, prompt_bytes=0)
    return write_all(plain, {"a": request(text, num_new)}).texts["a", 0]


def test_the_next_turn_of_a_conversation_computes_what_is_new(engine, computed):
    streaming = StreamingEngine(engine)
    first, second = f"{SYSTEM}What is a bow?", f"{SYSTEM}What is a bow? A stick with hair. And a bridge?"
    wanted = [alone(engine, text) for text in (first, second)]
    computed.clear()
    texts = [write_all(streaming, {"a": request(text)}).texts["a", 0] for text in (first, second)]
    assert texts == wanted
    num_first, num_second = num_tokens(engine, first), num_tokens(engine, second)
    known = num_common(engine.template.encode(first)[0], engine.template.encode(second)[0])
    assert known > BLOCK_TOKENS
    assert computed.total() == num_first + num_second - known // BLOCK_TOKENS * BLOCK_TOKENS


def test_a_prompt_that_comes_again_is_computed_from_its_last_block_on(engine, computed):
    streaming = StreamingEngine(engine)
    asked = request(SYSTEM)
    first = write_all(streaming, {"a": asked})
    computed.clear()
    again = write_all(streaming, {"a": asked})
    assert again.texts == first.texts
    assert first.ends["a", 0].num_cached_tokens == 0
    assert again.ends["a", 0].num_cached_tokens == num_tokens(engine, SYSTEM) - computed.total() > 0
    assert again.started["a"].num_prompt_tokens == first.started["a"].num_prompt_tokens
    assert 1 <= computed.total() <= BLOCK_TOKENS


def test_what_one_scope_has_asked_makes_no_answer_of_another_one_faster(engine, computed):
    """A project could find out word by word what another one asks, by how fast an answer begins."""
    streaming = StreamingEngine(engine)
    asked = {scope: request(SYSTEM).model_copy(update={"cache_scope": scope}) for scope in ("ours", "theirs")}
    first = write_all(streaming, {"a": asked["ours"]})
    computed.clear()
    other = write_all(streaming, {"b": asked["theirs"]})
    assert computed.total() == num_tokens(engine, SYSTEM)
    computed.clear()
    again = write_all(streaming, {"c": asked["ours"]})
    assert 1 <= computed.total() <= BLOCK_TOKENS
    assert first.texts["a", 0] == other.texts["b", 0] == again.texts["c", 0]
    assert other.ends["b", 0].num_cached_tokens == 0 < again.ends["c", 0].num_cached_tokens


def test_prompts_behind_one_system_prompt_go_through_the_model_together(engine, computed):
    streaming = StreamingEngine(engine)
    questions = [f"{SYSTEM}{text}" for text in ("Which wood?", "How long does glue dry?", "Who plays the cello?")]
    wanted = [alone(engine, text) for text in questions]
    write_all(streaming, {"before": request(f"{SYSTEM}Why?")})
    computed.clear()
    heard = write_all(streaming, dict(enumerate(map(request, questions))))
    assert [heard.texts[number, 0] for number in range(3)] == wanted
    assert list(computed) == [3]
    assert computed[3] < 3 * BLOCK_TOKENS
    assert {heard.ends[number, 0].num_cached_tokens for number in range(3)} == {
        num_tokens(engine, SYSTEM) // BLOCK_TOKENS * BLOCK_TOKENS
    }


def test_choices_of_one_request_continue_from_the_same_beginning(engine):
    streaming = StreamingEngine(engine)
    write_all(streaming, {"a": request(SYSTEM)})
    asked = request(f"{SYSTEM}Which wood?").model_copy(update={"num_choices": 3})
    heard = write_all(streaming, {"b": asked})
    assert {heard.texts["b", choice] for choice in range(3)} == {alone(engine, f"{SYSTEM}Which wood?")}
    assert len({heard.ends["b", choice].num_cached_tokens for choice in range(3)} - {0}) == 1


def test_a_long_rest_is_read_in_parts_behind_what_is_known(engine, computed, monkeypatch):
    monkeypatch.setattr("luthier.ml.inference.request.PART_TOKENS", 16)
    streaming = StreamingEngine(engine)
    long = SYSTEM + "The front is made of spruce. " * 4
    wanted = alone(engine, long), alone(engine, f"{SYSTEM}Why?")
    write_all(streaming, {"a": request(SYSTEM)})
    computed.clear()
    for _ in range(2):  # what was extended must not have changed what is kept
        assert write_all(streaming, {"b": request(long)}).texts["b", 0] == wanted[0]
        assert write_all(streaming, {"c": request(f"{SYSTEM}Why?")}).texts["c", 0] == wanted[1]
    assert computed.total() < 2 * num_tokens(engine, long)


def test_what_an_adapter_has_read_is_for_that_adapter_alone(tiny, peft_adapters):
    streaming, plain = (
        StreamingEngine(TransformersEngine.open(str(tiny), dtype="float32"), prompt_bytes=num_bytes)
        for num_bytes in (1 << 24, 0)
    )
    names = {"a": "one", "b": "two"}
    for one in (streaming, plain):
        for name, folder in zip(names.values(), peft_adapters, strict=True):
            one.load_adapter(name, str(folder))
    text = f"{SYSTEM}Which wood?"
    requests = {key: request(text) for key in ("base", "a", "b")}
    wanted = write_all(plain, requests, names).texts
    assert len(set(wanted.values())) == 3
    for _ in range(2):
        for key in requests:
            assert write_all(streaming, {key: requests[key]}, names).texts[key, 0] == wanted[key, 0]
    # Another adapter under the same name.
    streaming.unload_adapter("one")
    streaming.load_adapter("one", str(peft_adapters[1]))
    assert write_all(streaming, {"a": requests["a"]}, names).texts["a", 0] == wanted["b", 0]


def test_a_model_with_windows_continues_within_them(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.testing.tiny import make_tiny_model

    folder = make_tiny_model(tmp_path / "base")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, sliding_window=200, initializer_range=0.2,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path / "windowed")
    model = load_model(tmp_path / "windowed", dtype="float32", attention="sdpa")
    engine = TransformersEngine(model, ChatTemplate.load(folder))
    streaming, begin = StreamingEngine(engine), "The front of a violin is made of spruce. " * 3
    assert BLOCK_TOKENS < num_tokens(engine, begin) < 180
    texts = [begin, f"{begin}And the back?", f"{begin}And the back? Maple."]
    for text in texts:
        assert write_all(streaming, {"a": request(text)}).texts["a", 0] == alone(engine, text)
    assert streaming._prompts.num_bytes > 0
    # Together they would be wider than the window, with padding behind their common beginning.
    long, short = f"{begin}And the back? Maple. And the neck? Maple, too.", f"{begin}Why?"
    requests = {"long": request(long, 4), "short": request(short, 200 - num_tokens(engine, short))}
    assert num_tokens(engine, long) + requests["short"].max_new_tokens > 200
    heard = write_all(streaming, requests)
    for key, text in (("long", long), ("short", short)):
        assert heard.texts[key, 0] == alone(engine, text, requests[key].max_new_tokens)


def test_nothing_is_kept_where_that_is_switched_off(tiny, computed):
    served = Served(path=str(tiny), sha256="", precision="float32")
    sums = []
    for settings in (EngineSettings(enable_prefix_caching=False), EngineSettings()):
        streaming = open_stream_engine(served.model_copy(update={"settings": settings}))
        write_all(streaming, {"a": request(SYSTEM)})
        computed.clear()
        write_all(streaming, {"a": request(SYSTEM)})
        sums.append(computed.total())
        streaming.close()
    assert sums[1] < sums[0]


# the cache by itself: one layer, two heads of width 4
TOKEN_BYTES = 2 * 2 * 4 * 4


def computed_batch(*rows, padded_to):
    """A batch of rows that are padded on the left; the keys of a token are its id."""
    keys = torch.zeros(len(rows), 2, padded_to, 4)
    mask = torch.zeros(len(rows), padded_to, dtype=torch.long)
    for place, ids in enumerate(rows):
        keys[place, :, padded_to - len(ids) :] = torch.tensor(ids, dtype=torch.float32)[:, None]
        mask[place, padded_to - len(ids) :] = 1
    cache = DynamicCache()
    cache.update(keys, keys + 0.5, 0)
    return Batch(list(range(len(rows))), cache, mask, mask.sum(1))


def kept(cache, ids, adapter=None):
    cache.add(ids, adapter, computed_batch([9] * (len(ids) + 3), ids, padded_to=len(ids) + 3), 1)


def keys_of(prefix):
    layer = prefix.cache.layers[0]
    assert torch.equal(layer.values, layer.keys + 0.5)
    return layer.keys[0, 0, :, 0].tolist()


def test_a_beginning_has_whole_blocks_of_its_own_tokens_and_not_the_last_token():
    cache, ids = PromptCache(1 << 20), list(range(1, 100))
    kept(cache, ids)
    found = cache.find(ids, None)
    assert found.num_tokens == 96
    assert keys_of(found) == ids[:96]
    assert cache.find(ids[:96], None).num_tokens == 64
    assert cache.find([*ids[:70], 500, *ids[71:]], None).num_tokens == 64
    assert cache.find(ids[:32], None) is None
    assert cache.find([500, *ids], None) is None
    assert cache.find(ids, "adapter") is None


def test_what_prompts_have_in_common_is_kept_once():
    cache, system = PromptCache(1 << 20), list(range(1, 129))
    for number in range(3):
        kept(cache, [*system, *range(1000 * (number + 1), 1000 * (number + 1) + 40)])
    assert cache.num_bytes == TOKEN_BYTES * (128 + 3 * 40)
    ids = [*system, *range(2000, 2040), 7]
    found = cache.find(ids, None)
    assert found.num_tokens == 160
    assert keys_of(found) == ids[:160]
    # A third part behind the second one.
    longer = [*ids[:168], *range(3000, 3100)]
    kept(cache, longer)
    assert keys_of(cache.find([*longer, 7], None)) == longer[:256]


def test_the_least_recently_used_prompts_go_first_and_never_one_that_another_continues():
    system = list(range(1, 65))
    cache = PromptCache(TOKEN_BYTES * 200)
    kept(cache, system)
    kept(cache, [*system, *range(500, 540)])
    kept(cache, list(range(2000, 2040)))
    assert cache.find([*system, *range(500, 540)], None).num_tokens == 96
    kept(cache, list(range(3000, 3080)))
    assert cache.num_bytes <= TOKEN_BYTES * 200
    assert cache.find(list(range(2000, 2040)), None) is None
    ids = [*system, *range(500, 540)]
    assert keys_of(cache.find(ids, None)) == ids[:96]
    kept(cache, list(range(4000, 4300)))  # longer than the memory
    assert cache.find(ids, None).num_tokens == 96


def test_the_memory_of_prompts_grows_with_the_model():
    assert cache_bytes(270_000_000) == 256 << 20
    assert cache_bytes(16_000_000_000) == 1_000_000_000


def test_the_prompts_of_an_adapter_are_forgotten_with_it():
    cache, ids = PromptCache(1 << 20), list(range(1, 100))
    kept(cache, ids)
    kept(cache, ids, "adapter")
    cache.drop("adapter")
    assert cache.find(ids, "adapter") is None
    assert cache.find(ids, None).num_tokens == 96
    cache.clear()
    assert cache.num_bytes == 0


@pytest.mark.parametrize(("known", "ids", "num"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2, 4, 5], 2)])
def test_tokens_in_common_are_counted(known, ids, num):
    assert num_common(known, ids) == num
    block = list(range(BLOCK_TOKENS))
    assert num_common(block + known, tuple(block + ids)) == BLOCK_TOKENS + num
