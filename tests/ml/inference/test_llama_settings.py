"""How requests share an engine over llama.cpp: steps, slots, resumed prompts and drafted tokens."""

import json
from contextlib import closing
from types import SimpleNamespace

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError, RequestError, UnsupportedError
from luthier.core.stream import Ended, EngineSettings, Sampling, Served, SpeculativeConfig, TextRequest
from luthier.ml.inference.llama_cpp import active_requests
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine, open_stream_engine
from luthier.ml.inference.llama_cpp.server import STEP_TOKENS, LlamaServer, _share_steps
from luthier.ml.inference.stream_registry import unused_settings
from luthier.testing.stream_contract import GREEDY, Heard, StreamEngineContract, question, write_all

DRAFTS = EngineSettings(
    max_num_seqs=4,
    max_num_batched_tokens=32,
    speculative_config=SpeculativeConfig(method="ngram", num_speculative_tokens=4, prompt_lookup_max=2),
)


def opened(tiny_gguf, **settings):
    return LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32", settings=EngineSettings(**settings))


class TestWithDrafts(StreamEngineContract):
    """The contract holds with small steps and drafted tokens."""

    @pytest.fixture
    def stream_engine(self, tiny_gguf):
        engine = LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32", settings=DRAFTS)
        yield engine
        engine.close()

    @pytest.fixture
    def adapters(self, gguf_adapters):
        return [str(path) for path in gguf_adapters]


def timings(server, text, num_new, **more):
    """What llama.cpp says of its work at the end of an answer."""
    said = []
    body = {
        "prompt": server.tokenize(text, add_special=True), "max_tokens": num_new, "stream": True, "temperature": 0.0,
        "timings_per_token": True, "lora": [], "cache_prompt": True, "id_slot": 0,
    }  # fmt: skip
    server.complete(body | more, lambda chunk: said.append(json.loads(chunk)) or False)
    return next(one["timings"] for one in reversed(said) if "timings" in one)


def a_server(tiny_gguf, **settings):
    return LlamaServer(
        tiny_gguf,
        [],
        num_slots=2,
        pool_tokens=1024,
        num_threads=1,
        cache="float32",
        settings=EngineSettings(**settings),
    )


REPEATING = "Spruce and maple. " * 8


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_tokens_are_drafted_and_the_text_stays_the_same(tiny_gguf, method):
    drafts = DRAFTS.speculative_config
    if method == "draft_model":  # the model itself: every draft is right
        drafts = SpeculativeConfig(method=method, num_speculative_tokens=4, model=str(tiny_gguf))
    asked = TextRequest(text=REPEATING, max_new_tokens=48, sampling=GREEDY)
    texts = []
    for settings in ({}, {"speculative_config": drafts}):
        with closing(opened(tiny_gguf, **settings)) as engine:
            texts.append(write_all(engine, {"a": asked}).texts["a", 0])
    assert texts[0]
    assert texts[0] == texts[1]
    with closing(a_server(tiny_gguf, speculative_config=drafts)) as server:
        assert timings(server, REPEATING, 48).get("draft_n", 0) > 0
    with closing(a_server(tiny_gguf)) as server:
        assert timings(server, REPEATING, 48).get("draft_n", 0) == 0


def test_a_draft_model_takes_memory(tiny_gguf):
    drafts = SpeculativeConfig(method="draft_model", num_speculative_tokens=4, model=str(tiny_gguf))
    with closing(opened(tiny_gguf)) as plain, closing(opened(tiny_gguf, speculative_config=drafts)) as drafting:
        assert drafting.num_bytes >= plain.num_bytes + tiny_gguf.stat().st_size


def test_a_draft_model_that_is_not_used_is_an_error(tiny_gguf, tmp_path, monkeypatch):
    """llama.cpp leaves out a model with other tokens, and says nothing."""
    ask = LlamaServer.ask
    monkeypatch.setattr(
        LlamaServer,
        "ask",
        lambda self, path, body=None: [{"speculative": False}] if path == "slots" else ask(self, path, body),
    )
    drafts = SpeculativeConfig(method="draft_model", num_speculative_tokens=4, model=str(tiny_gguf))
    with pytest.raises(RequestError, match=r"llama\.cpp cannot draft with it"):
        a_server(tiny_gguf, speculative_config=drafts)
    missing = drafts.model_copy(update={"model": str(tmp_path / "none.gguf")})
    with pytest.raises(NotFoundError, match=r"none\.gguf"):
        opened(tiny_gguf, speculative_config=missing)


def test_likelihoods_of_drafted_tokens_are_refused(tiny_gguf):
    with (
        closing(opened(tiny_gguf, speculative_config=DRAFTS.speculative_config)) as engine,
        pytest.raises(UnsupportedError, match="speculative decoding") as refused,
    ):
        engine.prepare(TextRequest(text="a", num_top=1))
    assert refused.value.param == "logprobs"


@pytest.mark.parametrize(("enable_prefix_caching", "resumes"), [(None, True), (True, True), (False, False)])
def test_a_prompt_resumes_from_an_earlier_one_unless_that_is_switched_off(tiny_gguf, enable_prefix_caching, resumes):
    with closing(opened(tiny_gguf, enable_prefix_caching=enable_prefix_caching)) as engine:
        bodies = []
        complete = engine._server.complete
        engine._server.complete = lambda body, hear: (bodies.append(body), complete(body, hear))
        asked = TextRequest(text=REPEATING, max_new_tokens=4, sampling=GREEDY)
        for key in "ab":
            ended = write_all(engine, {key: asked}).ends[key, 0]
            assert ended.num_new_tokens <= 4
            assert (ended.num_cached_tokens > 0) == (resumes and key == "b")
            while not engine._writing.is_idle:  # llama.cpp ends a moment after the answer, and its slot is free then
                engine.poll(0.01)
                engine._writing.settle()
        assert [body["cache_prompt"] for body in nonempty(bodies)] == [resumes, resumes]


def test_what_is_resumed_is_not_read_again(tiny_gguf):
    with closing(a_server(tiny_gguf)) as server:
        first, second = timings(server, REPEATING, 2)["prompt_n"], timings(server, REPEATING, 2)["prompt_n"]
        third = timings(server, REPEATING, 2, cache_prompt=False)["prompt_n"]
    assert second < first
    assert third == first


def test_a_long_prompt_is_read_in_parts_between_the_tokens_of_others(tiny_gguf):
    """With steps of 32 tokens an answer under way goes on while a prompt of hundreds is read."""
    long = TextRequest(text="maple wood " * 60, max_new_tokens=1, sampling=GREEDY)
    short = question("Why?", max_new_tokens=120, sampling=Sampling(temperature=1.0, seed=1))
    with closing(opened(tiny_gguf, max_num_seqs=2, max_num_batched_tokens=32)) as engine:
        assert engine.ask("short", short, None)
        written = 0  # tokens of the short answer: several may come as one piece where a character needs them
        while not written:
            written = max((getattr(event, "num_new_tokens", 0) for _, event in engine.poll(1.0)), default=0)
        before = written
        num_long = len(engine.prepare(long).ids)
        assert num_long > 8 * 32
        assert engine.ask("long", long, None)
        ended, is_late = set(), False
        # Two answers come over two connections: the token of the last step may come after the end of the other one.
        while not is_late and "short" not in ended:
            for key, event in engine.poll(1.0):
                if isinstance(event, Ended):
                    ended.add(key)
                elif key == "short":
                    written, is_late = event.num_new_tokens, "long" in ended
        # One token of the answer with each part of the prompt at least, unless the answer has ended before.
        assert written - before >= num_long // 32 or "short" in ended


def test_settings_reach_the_engine_from_what_is_served(tiny_gguf):
    settings = EngineSettings(max_num_seqs=3, enable_prefix_caching=False)
    with closing(
        open_stream_engine(Served(engine="llama_cpp", path=str(tiny_gguf), sha256="", settings=settings))
    ) as engine:
        assert engine._server.ask("props")["total_slots"] == 3
    with closing(open_stream_engine(Served(engine="llama_cpp", path=str(tiny_gguf), sha256=""))) as engine:
        assert engine._server.ask("props")["total_slots"] == 16
    assert STEP_TOKENS == 512


def test_what_an_engine_does_not_use_is_named():
    assert unused_settings("llama_cpp", DRAFTS) == []
    assert unused_settings("vllm", DRAFTS) == []
    assert unused_settings("transformers", DRAFTS) == ["max_num_batched_tokens", "speculative_config"]
    assert unused_settings("of_a_plug_in", EngineSettings(enable_prefix_caching=False)) == ["enable_prefix_caching"]
    assert unused_settings("transformers", EngineSettings()) == []


def test_few_copies_of_a_slots_state_are_kept():
    """llama.cpp's default of 32 a slot takes gigabytes of a model with windows, which no budget has counted."""
    params = SimpleNamespace(speculative=None)
    _share_steps(params, 16, 2, EngineSettings())
    assert 1 <= params.n_ctx_checkpoints <= 4
    assert params.cache_ram_mib == 0


def test_the_installed_llama_cpp_takes_the_number_of_copies():
    import xllamacpp

    params = xllamacpp.CommonParams()
    assert params.n_ctx_checkpoints > 4
    _share_steps(params, 16, 2, EngineSettings())
    assert params.n_ctx_checkpoints <= 4


def test_an_answer_begins_while_others_keep_coming_with_another_adapter(tiny_gguf, gguf_adapters, monkeypatch):
    """llama.cpp computes the adapter of its first answer alone, as long as there is one with it."""
    monkeypatch.setattr(active_requests, "_WAIT_SECONDS", 0.05)
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, num_slots=4)) as engine:
        for name, path in zip(("busy", "other"), gguf_adapters, strict=True):
            engine.load_adapter(name, str(path))
        heard, num_busy = Heard(), 0
        waits = question("Why?", max_new_tokens=2)
        is_asked = False
        while ("waits", 0) not in heard.ends:
            assert num_busy < 60, "the other adapter has no turn"
            num_open = len([key for key in engine.keys if key != "waits"])
            asked = question(f"Which wood is number {num_busy}?", max_new_tokens=100)
            if num_open < 2 and engine.ask(num_busy, asked, "busy"):
                num_busy += 1
            if heard.started and not is_asked:
                is_asked = engine.ask("waits", waits, "other")
            heard.hear(engine)
        assert num_busy >= 2


def test_a_server_that_is_closed_as_soon_as_it_is_open_ends(tiny_gguf):
    """A stop that llama.cpp gets before its loop has begun is lost, and closing would wait for ever."""
    for _ in range(20):
        a_server(tiny_gguf).close()
