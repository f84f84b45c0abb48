"""Calls of tools in answers to batches of prompts."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Prompt, SilentProgress
from luthier.core.stream import CallPiece, Ended, Piece, Started, TextRequest
from luthier.ml.inference.decode import Continuation
from luthier.ml.inference.engine_prompts import CallsInText, ToolFormat
from luthier.ml.inference.engine_wrappers import CachedEngine, StreamedAnswer
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.openai.chunks import ChunkReader
from luthier.ml.inference.openai.messages import generation_of
from luthier.ml.inference.thoughts import NO_THINKING
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.fake_engine import FakeEngine
from luthier.testing.tiny import CHAT_TEMPLATE

CALLS: list[dict[str, Any]] = [
    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}},
    {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
]


def test_a_streamed_answer_has_its_calls() -> None:
    answer = StreamedAnswer()
    events = [
        Started(num_prompt_tokens=3),
        Piece(text="I look."),
        Piece(text="", calls=(CallPiece(index=0, call_id="c1", name="look", arguments='{"at"'),)),
        Piece(text="", calls=(CallPiece(index=0, arguments=': "x"}'), CallPiece(index=1, call_id="c2", name="clock"))),
        Piece(text="", calls=(CallPiece(index=1, arguments="{}"),)),
        Ended(reason="tool_calls", num_new_tokens=9),
    ]
    *before, made = [answer.hear(event) for event in events]
    assert before == [None] * 5
    assert made is not None
    assert (made.text, made.tool_calls, made.finish_reason) == ("I look.", tuple(CALLS), "stop")


def test_a_server_answers_with_calls() -> None:
    def made(**message: Any) -> Generation:
        choice = {"message": {"role": "assistant"} | message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 3, "completion_tokens": 9}
        return generation_of({"choices": [choice], "usage": usage}, 10, is_chat=True)

    assert (made(content=None, tool_calls=CALLS).text, made(content=None, tool_calls=CALLS).tool_calls) == (
        "",
        tuple(CALLS),
    )
    assert [made(content="a", tool_calls=other).tool_calls for other in (None, [], "x", [1])] == [()] * 4


def test_what_is_stored_of_an_answer_without_calls_is_as_before() -> None:
    plain = Generation(text="a", num_prompt_tokens=1, num_new_tokens=1, finish_reason="stop", token_ids=(1,))
    assert plain.model_dump() == {
        "text": "a", "num_prompt_tokens": 1, "num_new_tokens": 1, "finish_reason": "stop", "reasoning": None,
        "num_thinking_tokens": 0, "ends_in_thought": False,
    }  # fmt: skip
    calling = plain.model_copy(update={"tool_calls": tuple(CALLS), "token_ids": None})
    assert Generation.model_validate_json(calling.model_dump_json()) == calling


WOOD: dict[str, Any] = {"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}
QUESTION = Conversation(messages=(Message(role="user", content="How much?"),), tools=(WOOD,))
SPECIAL = CHAT_TEMPLATE.replace("</call>", "").replace("<call>", "[TOOL_CALLS]")


def engine_that_writes(
    text: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, template: str = CHAT_TEMPLATE, special: str = ""
) -> TransformersEngine:
    """An engine whose answers are the tokens of this text, which is a stand-in for what its model would write."""
    tokenizer = copy.deepcopy(ChatTemplate.load(tiny).tokenizer)
    tokenizer.chat_template = template
    if special:
        tokenizer.add_tokens([special], special_tokens=True)
    model = load_model(tiny, dtype="float32", attention="sdpa")
    ids = tokenizer.encode(text, add_special_tokens=False)
    monkeypatch.setattr(
        "luthier.ml.inference.transformers_engine.batch_generate",
        lambda decoder, requests, *more, **options: [Continuation(list(ids), end_id=0) for _ in requests],
    )
    return TransformersEngine(model, ChatTemplate(tokenizer, "chat"))


@pytest.mark.parametrize(
    ("template", "special", "text"),
    [
        (CHAT_TEMPLATE, "", 'I look.\n<call>{"name": "price", "arguments": {"wood": "maple"}}</call>'),
        (SPECIAL, "[TOOL_CALLS]", 'I look.[TOOL_CALLS][{"name": "price", "arguments": {"wood": "maple"}}]'),
    ],
    ids=["in text", "behind a special token"],
)
def test_a_batch_has_the_calls_of_its_answers_beside_their_text(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, template: str, special: str, text: str
) -> None:
    engine = engine_that_writes(text, tiny, monkeypatch, template, special)
    prompt = Prompt(conversation=QUESTION, max_new_tokens=8)
    without = Prompt(conversation=QUESTION.model_copy(update={"tools": ()}), max_new_tokens=8)
    made, again, plain = engine.generate([prompt, prompt, without], SilentProgress())
    assert made.text == "I look."
    assert [call["function"] for call in made.tool_calls] == [{"name": "price", "arguments": '{"wood": "maple"}'}]
    assert made == again, "equal prompts and answers have calls with equal ids"
    assert made.tool_calls[0]["id"].startswith("call_")
    assert (plain.text, plain.tool_calls) == (text.replace(special, "") if special else text, ())


class Unused:
    """A store that nothing reads."""

    def find(self, keys: Sequence[str]) -> dict[str, Generation]:
        raise AssertionError(keys)

    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None:
        raise AssertionError(engine)


def test_answers_that_were_stored_with_calls_in_their_text_are_written_again() -> None:
    def key(name: str, prompt: Prompt) -> str:
        return CachedEngine(lambda _: FakeEngine({}), Unused(), name="m", identity={"engine": name}).key(prompt)

    def old(name: str, prompt: Prompt) -> str:
        unset = {"json_schema", "max_thinking_tokens"}
        return sha256_document({"engine": {"engine": name}, "prompt": prompt.model_dump(mode="json", exclude=unset)})

    tools, plain = Prompt(conversation=QUESTION), Prompt(text="a")
    names = ("transformers", "openai_http")
    found = [(name, one is tools, key(name, one) == old(name, one)) for name in names for one in (tools, plain)]
    assert found == [
        ("transformers", True, False), ("transformers", False, True),
        ("openai_http", True, True), ("openai_http", False, True),
    ]  # fmt: skip


def test_tools_are_described_where_a_template_reads_them_from_elsewhere(tiny: Path) -> None:
    """As Phi-4-mini's, which reads tools of a system message alone."""
    tokenizer = copy.deepcopy(ChatTemplate.load(tiny).tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tools %}{{ m.tools }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate(tokenizer, "chat")
    written = template.render(ToolFormat.of(template).conversation(TextRequest(conversation=QUESTION)))
    assert '"name": "price"' in written
    knowing = ChatTemplate.load(tiny)
    assert ToolFormat.of(knowing).conversation(TextRequest(conversation=QUESTION)) == QUESTION


@pytest.mark.parametrize("hides", [True, False])
def test_special_tokens_around_the_text_of_a_server_that_shows_all_are_left_out(tiny: Path, hides: bool) -> None:
    """vLLM shows all special tokens of a vocabulary or none, and those around calls are needed."""
    tokenizer = copy.deepcopy(ChatTemplate.load(tiny).tokenizer)
    tokenizer.chat_template = SPECIAL
    tokenizer.add_tokens(["[TOOL_CALLS]", "<|TEXT|>", "<|TEXT|>>"], special_tokens=True)
    tools = ToolFormat.of(ChatTemplate(tokenizer, "chat"))
    asked = TextRequest(conversation=QUESTION, num_top=1)
    form = tools.form(asked)
    hidden = tools.hidden(form, ()) if hides else None
    whole = TextRequest(token_ids=(1,), num_top=1)
    reader = ChunkReader(whole, 0, CallsInText(asked, form, hidden), NO_THINKING)
    written = ["<|TEXT|>", "I look", ".", "<|TEXT|>>", "[TOOL_CALLS]", '[{"name": "price", "arguments": {}}]']
    events: list[Piece | Ended] = []
    for text in written:
        likelihoods = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}]}
        events += reader.read(json.dumps({"choices": [{"text": text, "logprobs": likelihoods}]}))
    usage = {"prompt_tokens": 1, "completion_tokens": 6}
    events += reader.read(json.dumps({"choices": [{"text": "", "finish_reason": "stop"}], "usage": usage}))
    events += reader.end()
    pieces = [event for event in events if isinstance(event, Piece)]
    frame = ("", "") if hides else ("<|TEXT|>", "<|TEXT|>>")
    assert "".join(piece.text for piece in pieces) == f"{frame[0]}I look.{frame[1]}"
    shown = "".join(token.chosen.token for piece in pieces for token in piece.tokens)
    assert shown == f"{frame[0]}I look.{frame[1]}"
    assert [call.name for piece in pieces for call in piece.calls if call.name] == ["price"]
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.num_new_tokens) == ("tool_calls", 6)
