"""What llama.cpp does with likelihoods, schemas, templates and adapters; the contract is in test_llama_cpp."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import gguf
import pytest
from tests.vacuous import nonempty

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import (
    ConflictError,
    ModelSourceError,
    NotFoundError,
    OverlongError,
    RequestError,
    TemplateError,
    WorkError,
)
from luthier.core.ports import SilentProgress
from luthier.core.stream import Ended, EngineSettings, Failed, Sampling, Served, TextRequest
from luthier.core.system import free_cores
from luthier.core.system.free_cores import FreeCores
from luthier.ml.inference.adapter_names import AdapterNames
from luthier.ml.inference.llama_cpp import cpp
from luthier.ml.inference.llama_cpp import server as llama_server
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine, open_stream_engine
from luthier.ml.inference.llama_cpp.prompts import FileReader
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.engine_contract import QUESTIONS
from luthier.testing.stream_contract import GREEDY, Heard, listen, question, write_all
from luthier.testing.tiny import make_tiny_model, write_tiny_gguf, write_tiny_gguf_adapter

CUT = "\N{REPLACEMENT CHARACTER}"
NO_END = Sampling(temperature=0, logit_bias=((0, -1000.0), (2, -1000.0)))
SCHEMA = {
    "type": "object",
    "properties": {"wood": {"enum": ["spruce", "maple"]}, "old": {"type": "boolean"}},
    "required": ["wood", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_gguf):
    opened = LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")
    yield opened
    opened.close()


def test_schemas_that_were_tried_out_are_forgotten_again(engine, monkeypatch):
    monkeypatch.setattr(llama_server, "_MAX_GRAMMARS", 2)
    server, tried = engine._server, []
    monkeypatch.setattr(server, "_grammars", {})
    native = server._server

    class Counting:
        def handle_completions(self, body, hear):
            tried.append(json.loads(body)["grammar"])
            native.handle_completions(body, hear)

    monkeypatch.setattr(server, "_server", Counting())
    grammars = [f'%llguidance {{}}\nstart: "{letter}"\n' for letter in "abc"]
    assert [server.keeps_grammar(one) for one in (*grammars, *grammars[1:])] == [True] * 5
    assert tried == grammars  # what was tried out a moment ago is known
    assert len(server._grammars) == 2
    assert server.keeps_grammar(grammars[0])
    assert tried == [*grammars, grammars[0]]


def likelihoods(heard, key):
    return [token for piece in heard.pieces[key, 0] for token in piece.tokens]


def test_text_and_likelihoods_are_those_of_transformers(engine, tiny):
    asked = TextRequest(text="The front is made of ", max_new_tokens=24, sampling=GREEDY, num_top=3)
    heard = write_all(engine, {"a": asked})
    streaming = StreamingEngine(TransformersEngine.open(str(tiny), dtype="float32"))
    other = write_all(streaming, {"a": asked})
    streaming.close()
    # What a cut leaves of a character is left out by llama.cpp.
    assert heard.texts["a", 0].rstrip(CUT) == other.texts["a", 0].rstrip(CUT)
    theirs = {token.offset: token for token in likelihoods(other, "a")}
    compared = 0
    for token in nonempty(likelihoods(heard, "a")):
        twin = theirs.get(token.offset)
        if twin is not None and twin.chosen.token == token.chosen.token:
            compared += 1
            assert token.chosen.log_probability == pytest.approx(twin.chosen.log_probability, abs=5e-3)
            assert len(token.top) == 3
            for one, another in zip(token.top, twin.top, strict=True):
                assert one.log_probability == pytest.approx(another.log_probability, abs=5e-3)
    assert compared >= 5


def test_offsets_are_places_in_the_text(engine):
    warm = Sampling(temperature=1.2, seed=4)
    heard = write_all(
        engine, {"a": question("Why?", max_new_tokens=60, sampling=warm).model_copy(update={"num_top": 0})}
    )
    text = heard.texts["a", 0]
    tokens = likelihoods(heard, "a")
    assert len(tokens) >= 10
    for token in tokens:
        assert text[token.offset :].startswith(token.chosen.token)
        assert token.top == ()


@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_schema_is_kept_by_a_model_that_knows_no_json(engine, num_choices):
    warm = question("Which?", max_new_tokens=300, sampling=Sampling(seed=2), num_choices=num_choices)
    heard = write_all(engine, {"a": warm.model_copy(update={"json_schema": SCHEMA})})
    for choice in range(num_choices):
        assert heard.ends["a", choice].reason == "stop"
        made = json.loads(heard.texts["a", choice])
        assert made["wood"] in ("spruce", "maple")
        assert set(made) == {"wood", "old"}


def test_a_schema_that_llama_cpp_would_ignore_is_refused(engine):
    with pytest.raises(RequestError, match=r"llama\.cpp does not follow"):
        engine.ask("a", question("Which?").model_copy(update={"json_schema": {"type": "nonsense"}}), None)
    assert engine.keys == set()


TOOL = {
    "type": "function",
    "function": {
        "name": "weigh",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"enum": ["spruce", "maple"]}},
            "required": ["wood"],
            "additionalProperties": False,
        },
    },
}


def with_tools(**wishes):
    conversation = Conversation(messages=(Message(role="user", content="Which?"),), tools=(TOOL,))
    return TextRequest(conversation=conversation, max_new_tokens=300, sampling=Sampling(seed=1), **wishes)


def test_a_call_that_must_be_is_made_and_told_as_one(engine):
    heard = write_all(engine, {"a": with_tools(tool_choice="required", calls_in_parallel=False)})
    calls = [call for piece in heard.pieces["a", 0] for call in piece.calls]
    assert (heard.texts["a", 0].strip(), heard.ends["a", 0].reason) == ("", "tool_calls")
    assert [call.name for call in calls if call.name] == ["weigh"]
    assert json.loads("".join(call.arguments for call in calls))["wood"] in ("spruce", "maple")


def test_tools_stand_in_the_prompt_unless_they_may_not_be_called(engine):
    numbers = [
        write_all(engine, {"a": with_tools(tool_choice=choice)}).started["a"].num_prompt_tokens
        for choice in ("auto", "none")
    ]
    plain = write_all(engine, {"a": question("Which?", max_new_tokens=1)}).started["a"].num_prompt_tokens
    assert numbers[0] > numbers[1] == plain


def test_wishes_that_cannot_be_kept_are_refused(engine):
    with pytest.raises(RequestError, match="there is none"):
        engine.ask("a", TextRequest(text="a", tool_choice="required"), None)
    with pytest.raises(RequestError, match="exactly one"):
        engine.ask("a", TextRequest(), None)
    with pytest.raises(RequestError, match="logit_bias"):
        engine.ask("a", TextRequest(text="a", sampling=Sampling(logit_bias=((384, 1.0),))), None)
    for ids in ((), (999,), (-1,)):
        with pytest.raises(RequestError, match="each from 0 to 383"):
            engine.ask("a", TextRequest(token_ids=ids), None)
    with pytest.raises(OverlongError, match="512 of the context"):
        engine.ask("a", TextRequest(token_ids=(5,) * 512), None)


def test_an_answer_ends_where_the_context_does(engine):
    biased = Sampling(temperature=0, logit_bias=((0, -1000.0), (2, -1000.0)))
    asked = TextRequest(token_ids=(5,) * 500, max_new_tokens=10_000, sampling=biased)
    ended = write_all(engine, {"a": asked}).ends["a", 0]
    assert (ended.reason, ended.num_new_tokens) == ("length", 12)


def test_a_bias_decides_and_the_end_token_is_not_counted(engine):
    end = engine._header.values["tokenizer.ggml.eos_token_id"]
    heard = write_all(engine, {"a": TextRequest(text="a", sampling=Sampling(logit_bias=((end, 1000.0),)))})
    assert (heard.ends["a", 0].reason, heard.ends["a", 0].num_new_tokens, heard.texts["a", 0]) == ("stop", 0, "")


def test_the_template_in_the_file_gives_the_tokens_of_ours(engine):
    theirs = FileReader(engine._header, engine._server)
    conversations = [
        (Message(role="user", content=text),) for text in (*QUESTIONS, "Grüße, 日本語 12345\n\n  x", "<|im_end|>")
    ] + [
        (Message(role="system", content="Be short."), Message(role="user", content="Why?"),
         Message(role="assistant", content="So."), Message(role="user", content="And?")),
    ]  # fmt: skip
    for messages in conversations:
        request = TextRequest(conversation=Conversation(messages=messages))
        assert theirs.ids(request) == engine._reader.ids(request)
    for text in ("Once upon", " a\tb", "<|im_start|>user\n"):
        assert theirs.ids(TextRequest(text=text)) == engine._reader.ids(TextRequest(text=text))


def test_a_file_alone_keeps_the_default_of_an_option_that_llama_cpp_sets_by_itself(tmp_path):
    """And what it says of the thought fits the prompt that it has written."""
    folder = make_tiny_model(tmp_path / "base")
    closes = "<think>{%- if not enable_thinking -%}</think>{%- endif -%}"
    (folder / "chat_template.jinja").write_text(
        "{%- for m in messages -%}{{- m.role + ':' + m.content + '<|im_end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}" + closes + "{%- endif -%}"
    )
    (tmp_path / "alone").mkdir()
    alone = write_tiny_gguf(folder, tmp_path / "alone" / "model.gguf", precision="float32")
    with closing(LlamaCppEngine(alone, num_threads=1, cache="float32")) as opened:
        for options, closing_tags in (({}, 1), ({"enable_thinking": False}, 1), ({"enable_thinking": True}, 0)):
            asked = TextRequest(
                conversation=Conversation(messages=(Message(role="user", content="Why?"),)), template_options=options
            )
            ids = opened._reader.ids(asked)
            text = opened._server.ask("detokenize", {"tokens": ids})["content"]
            assert text.count("</think>") == closing_tags
            assert opened._reader.thinking(asked, ids).is_open == (not closing_tags)


def test_a_file_alone_answers_as_with_its_tokenizer_beside_it(engine, tiny_gguf, tmp_path):
    alone = LlamaCppEngine(Path(shutil.copy(tiny_gguf, tmp_path)), num_threads=1, cache="float32")
    asked = {"a": question("Which wood?"), "b": TextRequest(text="Once", sampling=GREEDY, max_new_tokens=5)}
    assert write_all(alone, asked).texts == write_all(engine, asked).texts
    alone.close()
    with pytest.raises(RequestError, match="no tokenizer next to it"):
        LlamaCppEngine(tmp_path / tiny_gguf.name, template="plain")


def test_one_beginning_of_text_token_is_given_never_two(tiny_gguf, tmp_path):
    """The file adds it, and its template writes it too."""
    file = tmp_path / "bos.gguf"
    _with_beginning(tiny_gguf, file)
    engine = LlamaCppEngine(file, num_threads=1)
    chat = engine._reader.ids(question("Why?"))
    assert (chat[0], chat.count(0)) == (0, 1)
    for text in ("Once", "<|endoftext|>Once"):
        ids = engine._reader.ids(TextRequest(text=text))
        assert (ids[0], ids.count(0)) == (0, 1)
    engine.close()


def _with_beginning(source, target):
    reader = gguf.GGUFReader(source)
    out = gguf.GGUFWriter(target, "llama")
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        contents = value.contents()
        if name == "tokenizer.ggml.add_bos_token":
            contents = True
        if name == "tokenizer.chat_template":
            contents = "<|endoftext|>" + contents
        kind = value.types[0]
        sub = value.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        out.add_key_value(name, contents, kind, sub_type=sub)
    out.add_bos_token_id(0)
    for tensor in reader.tensors:
        out.add_tensor(tensor.name, tensor.data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_file_without_a_template_takes_texts_only(tmp_path):
    file = write_tiny_gguf(make_tiny_model(tmp_path / "base", chat=False), tmp_path / "alone.gguf")
    engine = LlamaCppEngine(file, num_threads=1)
    with pytest.raises(TemplateError, match="without a chat template"):
        engine.ask("a", question("Why?"), None)
    assert ("a", 0) in write_all(engine, {"a": TextRequest(text="Once", max_new_tokens=2)}).ends
    engine.close()


def test_the_tokenizer_of_another_model_is_noticed(tiny_gguf, tmp_path):
    other = make_tiny_model(tmp_path / "other", vocabulary=300)
    with pytest.raises(RequestError, match=r"they differ from token \d+ on"):
        LlamaCppEngine(Path(shutil.copy(tiny_gguf, other)))


def test_an_adapter_that_comes_late_waits_for_the_answers_under_way(tiny_gguf, gguf_adapters):
    engine = LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")
    long = TextRequest(text="Once", max_new_tokens=200, sampling=NO_END)
    assert engine.ask("long", long, None)
    engine.load_adapter("late", str(gguf_adapters[0]))
    heard = Heard()
    assert not engine.ask("late", question("Why?"), "late")
    listen(engine, heard, lambda: not engine.keys)
    heard.hear(engine)
    assert heard.ends["long", 0].num_new_tokens == 200
    late = write_all(engine, {"late": question("Why?")}, {"late": "late"})
    assert late.texts["late", 0] != write_all(engine, {"a": question("Why?")}).texts["a", 0]
    with pytest.raises(ConflictError, match="late"):
        engine.load_adapter("late", str(gguf_adapters[1]))
    engine.close()


def test_it_computes_with_as_many_threads_as_other_processes_leave_cores_for(tiny_gguf, monkeypatch):
    made, now = [], [0.0]
    monkeypatch.setattr(cpp, "monotonic", lambda: now[0])
    monkeypatch.setattr(cpp, "usable_threads", lambda: 2)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(
        cpp,
        "FreeCores",
        lambda num, is_sampled: made.append((FreeCores(num, is_sampled=False), is_sampled)) or made[-1][0],
    )
    with closing(LlamaCppEngine(tiny_gguf, cache="float32")) as engine:
        ((cores, is_sampled),) = made
        assert is_sampled
        threads = lambda: engine._server.num_threads  # noqa: E731
        begin = lambda key: listen(engine, heard, lambda: engine.ask(key, long, None))  # noqa: E731
        heard, long = Heard(), TextRequest(text="Once", max_new_tokens=400, sampling=NO_END)
        assert engine.ask("first", long, None)
        listen(engine, heard, lambda: heard.pieces["first", 0])
        cores.note(1.0)
        cores.note(1.0)
        # What comes now waits for a server with fewer threads, in which the answer under way goes on.
        assert (cores.count, threads()) == (1, 2)
        assert not engine.ask("second", long, None)
        begin("second")
        assert threads() == 1
        assert engine.keys == {"first", "second"}
        for _ in range(10):
            cores.note(0.0)
        # With too few threads an answer is slower than it could be, not slower than waiting.
        assert engine.ask("third", long, None)
        assert (cores.count, threads()) == (2, 1)
        # Where it is never idle, new requests wait for a server with more threads after a while.
        now[0] = 30.0
        assert not engine.ask("fourth", long, None)
        assert engine.keys
        begin("fourth")
        assert threads() == 2
        listen(engine, heard, lambda: not engine.keys)
        heard.hear(engine)
        assert len({heard.texts[key, 0] for key in ("second", "third", "fourth")}) == 1
        # The tokens of its text may be others than were written, so that only its length is sure with a random model.
        assert {heard.ends[key, 0].num_new_tokens for key in ("first", "second", "third", "fourth")} == {400}
    assert cores._closed.is_set()


@pytest.fixture
def two_threads(tiny_gguf, monkeypatch):
    """An engine with two threads, and what counts the cores that others leave free."""
    made = []
    monkeypatch.setattr(cpp, "usable_threads", lambda: 2)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(cpp, "FreeCores", lambda num, **_: made.append(FreeCores(num, is_sampled=False)) or made[-1])
    with closing(LlamaCppEngine(tiny_gguf, cache="float32")) as engine:
        yield engine, made[0]


@pytest.fixture
def paused_in_time(two_threads, monkeypatch):
    """Answers of llama.cpp get no further than about 20 tokens before they are paused."""
    complete, writing, is_paused = LlamaServer.complete, two_threads[0]._writing, threading.Event()
    pause = writing.pause

    def pause_and_note():
        has_paused = pause()
        is_paused.set()
        return has_paused

    def held(self, body, hear):
        def hear_then(chunk):
            if json.loads(chunk)["timings"]["predicted_n"] >= 20:
                is_paused.wait(120)
            return hear(chunk)

        complete(self, body, hear_then)

    monkeypatch.setattr(writing, "pause", pause_and_note)
    monkeypatch.setattr(LlamaServer, "complete", held)


LONG = TextRequest(text="Once", max_new_tokens=200, sampling=NO_END)


def test_an_answer_that_cannot_be_continued_elsewhere_keeps_its_threads(two_threads):
    engine, cores = two_threads
    heard = Heard()
    assert engine.ask("likely", LONG.model_copy(update={"num_top": 1}), None)
    listen(engine, heard, lambda: heard.pieces["likely", 0])
    for _ in range(2):
        cores.note(1.0)
    listen(engine, heard, lambda: not engine.keys)
    assert (cores.count, engine._server.num_threads) == (1, 2)
    heard.hear(engine)
    assert heard.ends["likely", 0].num_new_tokens == 200


@pytest.mark.usefixtures("paused_in_time")
def test_an_answer_is_continued_where_it_was_when_the_neighbour_has_gone_before_it_stopped(two_threads):
    engine, cores = two_threads
    heard, before = Heard(), engine._server
    assert engine.ask("one", LONG, None)
    listen(engine, heard, lambda: heard.pieces["one", 0])
    assert engine._writing.pause()
    for _ in range(10):
        cores.note(0.0)
    listen(engine, heard, lambda: not engine.keys)
    heard.hear(engine)
    assert engine._server is before
    assert heard.ends["one", 0].num_new_tokens == 200


@pytest.mark.usefixtures("paused_in_time")
def test_a_paused_answer_can_be_cancelled(two_threads):
    engine, cores = two_threads
    heard = Heard()
    for key in ("one", "two"):
        assert engine.ask(key, LONG, None)
    listen(engine, heard, lambda: heard.pieces["two", 0])
    for _ in range(2):
        cores.note(1.0)
    listen(engine, heard, lambda: engine._writing.is_pausing)
    engine.cancel("one")
    assert engine.keys == {"two"}
    listen(engine, heard, lambda: not engine.keys)
    heard.hear(engine)
    assert set(heard.ends) == {("two", 0)}
    assert engine._server.num_threads == 1


def test_an_answer_that_is_paused_at_its_last_token_writes_no_other_one(two_threads, monkeypatch):
    """llama.cpp reports the last token first, and then that it was the last one."""
    engine, _ = two_threads
    complete, requests = LlamaServer.complete, []

    def paused_at_the_end(self, body, hear):
        def hear_and_pause(chunk):
            if json.loads(chunk)["timings"]["predicted_n"] == 3:
                engine._writing.pause()
            return hear(chunk)

        requests.append(body)
        complete(self, body, hear_and_pause)

    monkeypatch.setattr(LlamaServer, "complete", paused_at_the_end)
    # Its third token ends a character, else there would be no chunk for it.
    heard = write_all(engine, {"one": LONG.model_copy(update={"max_new_tokens": 3})})
    assert len(requests) == 1
    assert (heard.ends["one", 0].reason, heard.ends["one", 0].num_new_tokens) == ("length", 3)


def test_a_pause_takes_effect_between_two_parts_of_a_prompt(tiny_gguf, monkeypatch):
    """Without chunks of the prompt, an answer would stop with its first token: minutes later with a long prompt."""
    complete, calls = LlamaServer.complete, []

    def paused_in_the_prompt(self, body, hear):
        chunks = []

        def hear_and_pause(chunk):
            chunks.append(json.loads(chunk))
            if len(calls) == 1:
                engine._writing.pause()
            return hear(chunk)

        calls.append(chunks)
        complete(self, body, hear_and_pause)

    monkeypatch.setattr(LlamaServer, "complete", paused_in_the_prompt)
    asked = TextRequest(text="Which wood is a violin made of? " * 12, max_new_tokens=5, sampling=NO_END)
    settings = EngineSettings(max_num_batched_tokens=32)
    with closing(LlamaCppEngine(tiny_gguf, cache="float32", settings=settings)) as engine:
        paused, whole = write_all(engine, {"a": asked}), write_all(engine, {"a": asked})
    stopped = [chunk["prompt_progress"] for chunk in nonempty(calls[0])]
    assert stopped[-1]["processed"] < stopped[-1]["total"] == paused.started["a"].num_prompt_tokens
    assert len(calls) == 3, "it was continued once"
    assert paused.texts == whole.texts
    assert paused.ends["a", 0].num_new_tokens == 5


@pytest.mark.usefixtures("paused_in_time")
def test_paused_answers_fail_with_words_where_no_server_opens(two_threads, monkeypatch):
    engine, cores = two_threads
    heard = Heard()
    assert engine.ask("one", LONG, None)
    listen(engine, heard, lambda: heard.pieces["one", 0])

    def refuse(*_, **__):
        raise WorkError("no memory", expected="some", do="close a program")

    monkeypatch.setattr(cpp, "LlamaServer", refuse)
    for _ in range(2):
        cores.note(1.0)
    listen(engine, heard, lambda: heard.failures)
    assert heard.failures["one"].error["came"] == "no memory"
    assert not engine.keys


@pytest.mark.usefixtures("paused_in_time")
def test_paused_answers_go_on_where_an_adapter_that_came_late_does_not_load(
    two_threads, gguf_adapters, tmp_path, monkeypatch
):
    engine, cores = two_threads
    monkeypatch.setattr(llama_server, "_logged_reason", lambda *_: "")  # it loads the model once more, in a child
    heard, gone = Heard(), Path(shutil.copy(gguf_adapters[0], tmp_path / "gone.gguf"))
    assert engine.ask("one", LONG, None)
    listen(engine, heard, lambda: heard.pieces["one", 0])
    engine.load_adapter("gone", str(gone))
    gone.unlink()
    for _ in range(2):
        cores.note(1.0)
    listen(engine, heard, lambda: heard.ends)
    assert (heard.failures, heard.ends["one", 0].num_new_tokens) == ({}, 200)
    assert engine._server.num_threads == 1
    with pytest.raises(WorkError, match=r"cannot load .* with the adapters gone\.gguf"):
        listen(engine, heard, lambda: engine.ask("late", question("Why?"), "gone"))


def test_a_wait_for_more_threads_that_is_in_vain_ends_and_comes_again_later():
    drain = free_cores.Drain()
    on = [second for second in range(200) if drain.is_on(float(second))]
    assert on == [*range(30, 45), *range(105, 120)]
    drain.reset()
    assert [second for second in range(200, 250) if drain.is_on(float(second))] == list(range(230, 245))


@pytest.mark.usefixtures("paused_in_time")
def test_paused_answers_wait_for_the_prompts_that_are_being_read(two_threads, monkeypatch):
    """Without a wait, polls would follow each other without a pause, and prompts that come later would go first."""
    engine, cores = two_threads
    heard, read, goes_on = Heard(), engine._reader.ids, threading.Event()
    assert engine.ask("one", LONG, None)
    listen(engine, heard, lambda: heard.pieces["one", 0])
    monkeypatch.setattr(engine._reader, "ids", lambda request: goes_on.wait(60) and read(request))
    wait_for = engine._reading.wait_for
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(engine.prepare, TextRequest(text="late"))
        for _ in range(2):
            cores.note(1.0)
        listen(engine, heard, lambda: engine._writing.is_pausing and engine._writing.has_stopped)
        assert (engine._num_reading, engine._server.num_threads) == (1, 2)
        monkeypatch.setattr(engine._reading, "wait_for", lambda *given: goes_on.set() or wait_for(*given))
        heard.hear(engine, 60)
        assert engine._server.num_threads == 1
        assert late.result(60).ids
    listen(engine, heard, lambda: heard.ends)
    assert heard.ends["one", 0].num_new_tokens == 200


def test_an_engine_that_cannot_be_opened_samples_no_cores(tiny_gguf, monkeypatch):
    made = []
    monkeypatch.setattr(cpp, "FreeCores", lambda num, **_: made.append(FreeCores(num, is_sampled=False)) or made[-1])

    def refuse(*_, **__):
        raise WorkError("no memory", expected="some", do="close a program")

    for name in ("open_reader", "LlamaServer"):
        monkeypatch.setattr(cpp, name, refuse)
        with pytest.raises(WorkError, match="no memory"):
            LlamaCppEngine(tiny_gguf)
    assert [cores._closed.is_set() for cores in made] == [True, True]


def test_adapters_for_another_base_and_other_files_are_refused(engine, tiny_gguf, tiny, peft_adapters, tmp_path):
    narrow = make_tiny_model(tmp_path / "narrow", hidden=64)
    short = make_tiny_model(tmp_path / "short", layers=1)
    for base, words in ((narrow, "has 64 where .* has 32"), (short, None)):
        from peft import LoraConfig, get_peft_model

        from luthier.ml.inference.models.loading import load_model

        made = tmp_path / f"{base.name}-adapter"
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(load_model(base, dtype="float32", attention="sdpa"), config).save_pretrained(made)
        file = write_tiny_gguf_adapter(base, made, tmp_path / f"{base.name}.gguf")
        if words:
            with pytest.raises(RequestError, match=words):
                engine.load_adapter("other", str(file))
    with pytest.raises(RequestError, match="holds a model"):
        engine.load_adapter("other", str(tiny_gguf))
    with pytest.raises(NotFoundError, match="no GGUF file"):
        engine.load_adapter("other", str(peft_adapters[0]))
    with pytest.raises(RequestError, match="'other'"):
        engine.ask("a", question("Why?"), "other")


def test_an_adapter_that_is_cut_off_is_refused_before_llama_cpp_reads_it(engine, gguf_adapters, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_adapters[0].read_bytes()[:-9000])
    with pytest.raises(ModelSourceError, match="it is cut off"):
        engine.load_adapter("broken", str(broken))
    with pytest.raises(RequestError, match="'broken'"):
        engine.ask("a", question("Why?"), "broken")


def test_a_server_that_does_not_open_with_an_adapter_goes_on_without_it(tiny_gguf, gguf_adapters, tmp_path):
    gone = Path(shutil.copy(gguf_adapters[0], tmp_path / "gone.gguf"))
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        wanted = write_all(engine, {"a": question("Why?")}).texts["a", 0]
        engine.load_adapter("gone", str(gone))
        gone.unlink()
        with pytest.raises(WorkError, match=r"cannot load .* with the adapters gone\.gguf"):
            # An ask that needs another server is put off while the thread of an answer still ends.
            listen(engine, Heard(), lambda: engine.ask("a", question("Why?"), "gone"))
        opened = engine._server
        with pytest.raises(WorkError, match=r"adapter 'gone' is not loaded: .*gone\.gguf"):
            engine.ask("a", question("Why?"), "gone")
        assert write_all(engine, {"a": question("Why?")}).texts["a", 0] == wanted
        assert engine._server is opened, "one that does not load opens no server again and again"


def test_an_adapter_that_was_written_again_answers_with_its_new_weights(tiny_gguf, gguf_adapters, tmp_path):
    names, file = AdapterNames(), tmp_path / "adapter.gguf"
    texts = []
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        for source in nonempty(gguf_adapters[:2]):
            Path(shutil.copy(source, tmp_path / "new.gguf")).replace(file)
            name = names.of(str(file))
            engine.load_adapter(name, str(file))
            texts.append(write_all(engine, {0: question("Why?")}, {0: name}).texts[0, 0])
            opened = engine._server
            assert write_all(engine, {0: question("Why?")}, {0: name}).texts[0, 0] == texts[-1]
            assert engine._server is opened, "what has not changed opens no other server"
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        engine.load_adapter("second", str(gguf_adapters[1]))
        assert write_all(engine, {0: question("Why?")}, {0: "second"}).texts[0, 0] == texts[1] != texts[0]


def test_of_several_late_adapters_only_the_one_that_does_not_load_is_refused(
    tiny_gguf, gguf_adapters, tmp_path, monkeypatch
):
    monkeypatch.setattr(llama_server, "_logged_reason", lambda *_: "")  # it loads the model once more, in a child
    # By its name between the two: whoever gives up at the first failure loses the last one.
    names = {name: str(shutil.copy(gguf_adapters[name > "a"], tmp_path / f"{name}.gguf")) for name in ("a", "b", "c")}
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        wanted = {}
        for name in ("a", "c"):
            engine.load_adapter(name, names[name])
            wanted[name] = write_all(engine, {0: question("Why?")}, {0: name}).texts[0, 0]
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        for name, path in names.items():
            engine.load_adapter(name, path)
        Path(names["b"]).unlink()
        heard = write_all(engine, {"a": question("Why?"), "c": question("Why?")}, {"a": "a", "c": "c"})
        assert {name: heard.texts[name, 0] for name in wanted} == wanted
        assert wanted["a"] != wanted["c"]
        with pytest.raises(WorkError, match="adapter 'b' is not loaded") as refused:
            engine.ask("b", question("Why?"), "b")
        assert "b.gguf" in refused.value.do
        # What was exported again is loaded at the next request.
        shutil.copy(gguf_adapters[1], names["b"])
        assert write_all(engine, {"b": question("Why?")}, {"b": "b"}).texts["b", 0] == wanted["c"]


def test_a_server_that_cannot_be_opened_again_is_opened_by_the_next_request(tiny_gguf, gguf_adapters, monkeypatch):
    with closing(LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")) as engine:
        wanted = write_all(engine, {"a": question("Why?")}).texts["a", 0]
        # While the thread of the answer still ends, a second server would be opened beside, by what is not patched.
        while not engine._writing.is_idle:
            engine.poll(0.01)
        tried = []

        def open_server(adapters):
            tried.append(list(adapters))
            raise WorkError("no memory", expected="some", do="free some")

        engine.load_adapter("late", str(gguf_adapters[0]))
        with monkeypatch.context() as patched:
            patched.setattr(engine, "_open_server", open_server)
            with pytest.raises(WorkError, match="no memory"):
                listen(engine, Heard(), lambda: engine.ask("a", question("Why?"), "late"))
            assert tried == [[gguf_adapters[0].resolve()], []], "with the adapter, then as it was"
            # A server that is closed must not be asked: it is tried again, and the reason is said.
            for call in (lambda: engine.ask("a", question("Why?"), None), lambda: engine.poll(0)):
                with pytest.raises(WorkError, match="no memory"):
                    call()
        assert write_all(engine, {"a": question("Why?")}).texts["a", 0] == wanted
        engine.load_adapter("late", str(gguf_adapters[0]))
        assert write_all(engine, {"a": question("Why?")}, {"a": "late"}).texts["a", 0] != wanted
    with pytest.raises(RequestError, match="a closed engine"):
        engine.poll(0)


def test_a_missing_package_is_said_with_words(tiny_gguf, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    with pytest.raises(RequestError, match="xllamacpp") as caught:
        LlamaCppEngine(tiny_gguf)
    assert "luthier[gguf]" in caught.value.do
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp_py_sync", None)


def test_what_is_served_is_found_in_its_folder(tiny_gguf, gguf_adapters, tmp_path):
    served = Served(engine="llama_cpp", path=str(tiny_gguf.parent), sha256="")
    engine = open_stream_engine(served)
    assert engine.num_bytes > tiny_gguf.stat().st_size
    engine.close()
    with pytest.raises(RequestError, match="quantisation"):
        open_stream_engine(served.model_copy(update={"quantisation": "nf4"}))
    with pytest.raises(NotFoundError, match="no GGUF file"):
        open_stream_engine(served.model_copy(update={"path": str(tmp_path)}))
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(tiny_gguf, tmp_path / name)
    with pytest.raises(RequestError, match=r"2 GGUF files with a model: a\.gguf, b\.gguf"):
        open_stream_engine(served.model_copy(update={"path": str(tmp_path)}))


def test_a_model_that_llama_cpp_does_not_know_is_said_with_words(tiny_gguf, tmp_path):
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lrama"))
    with pytest.raises(WorkError, match=r"cannot load .*unknown\.gguf: unknown model architecture: 'lrama'"):
        LlamaCppEngine(unknown)


def test_a_model_that_is_cut_off_is_refused(tiny_gguf, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:-50_000])
    with pytest.raises(ModelSourceError, match="it is cut off"):
        LlamaCppEngine(broken)


def test_rows_of_another_tokenizer_are_refused(engine, examples):
    from array import array

    from luthier.core.dataset import TokenisedExample

    wrong = TokenisedExample(id="r:1", input_ids=array("i", [1, 5000]), loss_mask=b"\0\1")
    with pytest.raises(RequestError, match="r:1 has 2 tokens, ids 1 to 5000"):
        engine.score([examples[0], wrong], SilentProgress())
    assert llama_server.__doc__


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(engine, monkeypatch):
    def tokenise(*_given, **_named):
        raise AssertionError("it was tokenised")

    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    monkeypatch.setattr(ChatTemplate, "ids", tokenise)
    monkeypatch.setattr(LlamaServer, "tokenize", tokenise)
    with pytest.raises(OverlongError, match="at least") as caught:
        engine.prepare(TextRequest(text="wood" * 1_000_000))
    assert Failed.of(caught.value).num_contexts > 10


def test_what_is_made_ready_in_another_thread_is_written_as_asked(engine):
    asked = TextRequest(text="The front is made of", max_new_tokens=4, sampling=Sampling(temperature=0))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(engine.prepare, [asked, asked])
    assert first.ids == second.ids
    assert engine.admit("ready", first, None)
    ends = []
    while engine.keys:
        ends += [event for _, event in engine.poll(0.2) if isinstance(event, Ended)]
    assert len(ends) == 1
