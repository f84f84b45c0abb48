"""Thoughts in streams: told apart from the answer by every engine, with options, budgets, stop texts and forms."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.forked_vllm import quick_stubs

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.stream import Ended, Piece, TextRequest
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.openai.chunks import ChunkReader
from luthier.ml.inference.openai.messages import generation_of
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.inference.vllm.engine import VllmEngine
from luthier.testing.stream_contract import Heard, write_all
from luthier.testing.tiny import (
    ANSWER,
    OPENING_TEMPLATE,
    THINKING_TEMPLATE,
    THOUGHT,
    write_tiny_gguf,
)

ASKED = Conversation(messages=(Message(role="user", content="Which wood?"),))
OFF = {"enable_thinking": False}
KINDS = ["transformers", "llama_cpp", "llama_cpp_file"]


@pytest.fixture(scope="module", params=[THINKING_TEMPLATE, OPENING_TEMPLATE], ids=["writes", "opens"])
def thinker(request: pytest.FixtureRequest, tiny_thinker: Callable[..., Path]) -> Path:
    return tiny_thinker(request.param)


@pytest.fixture(scope="module", params=KINDS)
def engine(
    request: pytest.FixtureRequest, thinker: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StreamingEngine | LlamaCppEngine]:
    opened: StreamingEngine | LlamaCppEngine
    if request.param == "transformers":
        opened = StreamingEngine(TransformersEngine.open(str(thinker), dtype="float32"))
    else:
        folder = tmp_path_factory.mktemp("gguf")
        file = write_tiny_gguf(thinker, folder / "tiny.gguf", precision="float32")
        if request.param == "llama_cpp":
            for one in (*thinker.glob("tokenizer*"), thinker / "chat_template.jinja"):
                shutil.copy(one, folder)
        opened = LlamaCppEngine(file, num_threads=1, cache="float32")
    yield opened
    opened.close()


def write(engine: Any, **wishes: Any) -> tuple[str, str, Ended, list[Piece]]:
    """Thought, answer, end and pieces of one answer."""
    heard = write_all(engine, {"a": TextRequest(conversation=ASKED, **({"max_new_tokens": 64} | wishes))})
    return summed(heard)


def summed(heard: Heard) -> tuple[str, str, Ended, list[Piece]]:
    pieces = heard.pieces["a", 0]
    return "".join(p.reasoning for p in pieces), "".join(p.text for p in pieces), heard.ends["a", 0], pieces


def test_the_thought_is_told_beside_the_answer(engine: Any) -> None:
    thought, answer, ended, pieces = write(engine)
    assert (thought, answer, ended.reason, ended.ends_in_thought) == (THOUGHT, ANSWER, "stop", False)
    assert len([piece for piece in pieces if piece.reasoning]) > 2
    assert 0 < ended.num_thinking_tokens < ended.num_new_tokens


def test_an_option_of_the_template_turns_it_off(engine: Any) -> None:
    thought, answer, ended, _ = write(engine, template_options=OFF)
    assert (thought, answer, ended.num_thinking_tokens) == ("", ANSWER, 0)
    assert write(engine, reasoning_effort="none")[:2] == ("", ANSWER)
    assert write(engine, reasoning_effort="high")[:2] == (THOUGHT, ANSWER)
    assert write(engine, reasoning_effort="high", template_options=OFF)[:2] == ("", ANSWER)


def test_an_option_that_the_template_never_reads_is_refused(engine: Any) -> None:
    asked = TextRequest(conversation=ASKED, template_options={"messages": "no"})
    with pytest.raises(RequestError, match=r"(?s)template option .messages.*enable_thinking"):
        engine.ask("a", asked, None)


def test_thinking_is_turned_on_and_off_by_whatever_switch_there_is(engine: Any) -> None:
    assert write(engine, thinks=True)[:2] == (THOUGHT, ANSWER)
    assert write(engine, thinks=True, trained_options=OFF)[:2] == (THOUGHT, ANSWER)
    assert write(engine, thinks=False)[:2] == ("", ANSWER)


def test_a_thought_that_has_used_up_its_budget_is_closed(engine: Any) -> None:
    num_thinking, budget = write(engine)[2].num_thinking_tokens, 2
    if not isinstance(engine, StreamingEngine):
        assert write(engine, thinking_budget=budget)[:2] == (THOUGHT, ANSWER)  # only transformers closes it
        return
    assert write(engine, thinking_budget=num_thinking)[:2] == (THOUGHT, ANSWER)
    thought, answer, ended, _ = write(engine, thinking_budget=budget)
    assert thought != THOUGHT
    assert THOUGHT.startswith(thought.rstrip())
    assert answer
    assert not ended.ends_in_thought
    assert budget <= ended.num_thinking_tokens < num_thinking + 8
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    assert write(engine, thinking_budget=budget, json_schema=schema)[1] == '{"a": 1}'


def test_a_prompt_is_counted_as_it_is_read(engine: Any) -> None:
    heard = write_all(engine, {"a": TextRequest(conversation=ASKED, max_new_tokens=1)})
    prepared = engine.prepare(TextRequest(conversation=ASKED, counts_tokens=True, max_new_tokens=1))
    assert engine.num_prompt_tokens(prepared) == heard.started["a"].num_prompt_tokens > 5


def test_stop_texts_and_limits_are_of_the_answer(engine: Any) -> None:
    stopped = write(engine, stop=("light", "ce"))
    assert stopped[:2] == (THOUGHT, "Spru")
    whole = write(engine)[2]
    assert (stopped[2].stop_text, whole.stop_text) == ("ce", None)
    num_answer = whole.num_new_tokens - whole.num_thinking_tokens
    thought, answer, ended, _ = write(engine, max_new_tokens=num_answer - 1, max_thinking_tokens=64)
    assert thought == THOUGHT
    assert ANSWER.startswith(answer)
    assert len(answer) < len(ANSWER)
    assert (ended.reason, ended.ends_in_thought) == ("length", False)
    thought, answer, ended, _ = write(engine, max_new_tokens=64, max_thinking_tokens=whole.num_thinking_tokens - 7)
    assert THOUGHT.startswith(thought)
    assert (answer, ended.reason, ended.ends_in_thought) == ("", "length", True)
    assert ended.num_new_tokens == ended.num_thinking_tokens


def test_likelihoods_are_told_with_thought_and_answer(engine: Any) -> None:
    pieces = write(engine, num_top=0)[3]
    tokens = [token.chosen.token for piece in pieces for token in piece.tokens]
    assert THOUGHT in "".join(tokens)
    assert "".join(tokens).endswith(ANSWER)


def test_likelihoods_of_the_answer_are_told_apart_from_those_of_the_thought(engine: Any) -> None:
    _, _, whole, pieces = write(engine, num_top=0)
    thought = [token.chosen.token for piece in pieces for token in piece.tokens[: piece.num_thought_tokens]]
    answer = [token.chosen.token for piece in pieces for token in piece.answer_tokens]
    assert THOUGHT in "".join(thought)
    assert "".join(answer).lstrip() == ANSWER
    cut = write(engine, num_top=0, max_new_tokens=64, max_thinking_tokens=whole.num_thinking_tokens - 7)[3]
    assert sum(piece.num_thought_tokens for piece in cut) == sum(len(piece.tokens) for piece in cut) > 0


def test_a_form_is_kept_to_behind_the_thought(engine: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    assert write(engine, json_schema=schema)[1] == '{"a": 1}'


def test_whole_answers_are_those_of_the_stream(engine: Any) -> None:
    if isinstance(engine, StreamingEngine):
        from luthier.ml.inference.engine_wrappers import generate_by_streaming

        (found,) = generate_by_streaming(engine, [Prompt(conversation=ASKED)], SilentProgress())
    else:
        (found,) = engine.generate([Prompt(conversation=ASKED)], SilentProgress())
    assert (found.text, found.reasoning, found.finish_reason) == (ANSWER, THOUGHT, "stop")
    assert found.num_thinking_tokens == write(engine)[2].num_thinking_tokens


def test_an_earlier_thought_is_rendered(engine: Any) -> None:
    turns = [Message(role="assistant", content="Maple.", reasoning="It is hard."), Message(role="user", content="Hi")]
    talk = ASKED.model_copy(update={"messages": (*ASKED.messages, *turns)})
    heard = write_all(engine, {"a": TextRequest(conversation=talk, max_new_tokens=4)})
    plain = talk.model_copy(
        update={"messages": (ASKED.messages[0], Message(role="assistant", content="Maple."), turns[1])}
    )
    bare = write_all(engine, {"a": TextRequest(conversation=plain, max_new_tokens=4)})
    assert heard.started["a"].num_prompt_tokens > bare.started["a"].num_prompt_tokens + 10


def test_vllm_is_given_the_options_and_its_text_is_taken_apart(
    thinker: Path, monkeypatch: pytest.MonkeyPatch, fork_server: SessionForkServer
) -> None:
    command = [sys.executable, "-m", "luthier.testing.vllm_stub"]
    opens = ChatTemplate.load(thinker).render(ASKED, add_generation_prompt=True).endswith("<think>\n")
    said = f"It is light. </think> {ANSWER} And more." if opens else f"<think> It is light. </think> {ANSWER} And more."
    monkeypatch.setenv("LUTHIER_VLLM_STUB", json.dumps({"say": said}))
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", shlex.join(command))
    with quick_stubs(fork_server), closing(VllmEngine(str(thinker), command=command)) as engine:
        thought, answer, ended, _ = write(engine)
        assert (thought, answer) == (THOUGHT, f"{ANSWER} And more.")
        assert 0 < ended.num_thinking_tokens < ended.num_new_tokens
        thought, answer, ended, _ = write(engine, max_new_tokens=1, max_thinking_tokens=20)
        assert (thought, answer.strip(), ended.reason) == (THOUGHT, ANSWER, "length")
        asked = engine.prepare(TextRequest(conversation=ASKED, template_options=OFF))
        text = ChatTemplate.load(thinker, options=OFF).render(ASKED, add_generation_prompt=True)
        assert asked.request.token_ids == tuple(ChatTemplate.load(thinker).ids(text))


def chunk(**delta: Any) -> str:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": None}]})


def test_what_a_server_tells_apart_is_told_apart() -> None:
    for name in ("reasoning_content", "reasoning"):
        reader = ChunkReader(TextRequest(conversation=ASKED), 0)
        pieces = [*reader.read(chunk(**{name: "so"})), *reader.read(chunk(content="4"))]
        assert [(piece.reasoning, piece.text) for piece in pieces] == [("so", ""), ("", "4")]
    reader = ChunkReader(TextRequest(conversation=ASKED), 0)
    pieces = [*reader.read(chunk(content="<think>so</th")), *reader.read(chunk(content="ink>4"))]
    assert [(piece.reasoning, piece.text) for piece in pieces] == [("so", ""), ("", "4")]


def test_tokens_of_a_thought_that_a_server_sends_apart_are_told_apart() -> None:
    def said(*tokens: str, **delta: Any) -> str:
        likelihoods = {"content": [{"token": token, "logprob": -1.0} for token in tokens]}
        return json.dumps({"choices": [{"delta": delta, "logprobs": likelihoods, "finish_reason": None}]})

    reader = ChunkReader(TextRequest(conversation=ASKED, num_top=0), 0)
    chunks = (said("so", " long", reasoning="so long"), said("4", content="4"), said("2", content="2"))
    pieces = [piece for chunk in chunks for piece in reader.read(chunk)]
    thought = [token.chosen.token for piece in pieces for token in piece.tokens[: piece.num_thought_tokens]]
    answer = [(token.chosen.token, token.offset) for piece in pieces for token in piece.answer_tokens]
    assert (thought, answer) == (["so", " long"], [("4", 0), ("2", 1)])


@pytest.mark.parametrize(
    ("message", "reasoning", "text"),
    [
        ({"content": "4", "reasoning_content": "so"}, "so", "4"),
        ({"content": "4", "reasoning": "so"}, "so", "4"),
        ({"content": "<think>so</think>4"}, "so", "4"),
        ({"content": "so</think>\n4"}, "so", "4"),
        ({"content": "4"}, None, "4"),
        ({"content": "4\ud83d", "reasoning": "so\ude00"}, "so\ufffd", "4\ufffd"),
    ],
)
def test_whole_answers_of_servers_are_taken_apart(message: dict[str, Any], reasoning: str | None, text: str) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 9}
    document = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    found = generation_of(document, 16, is_chat=True)
    assert (found.reasoning, found.text) == (reasoning, text)
    assert found.num_thinking_tokens == (0 if reasoning is None else None)
    usage["completion_tokens_details"] = {"reasoning_tokens": 5}
    assert generation_of(document, 16, is_chat=True).num_thinking_tokens == 5
