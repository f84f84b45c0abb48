"""Calls of strict tools match their schema in the form of every family, and all else that a model writes is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.ml.inference.tool_calls.reading import asked
from tests.ml.inference.tool_calls.test_native import (
    ARGUMENTS,
    CALL,
    CLOSE,
    D_CALL,
    D_CLOSE,
    D_END,
    D_NAME,
    D_SECTION,
    DEEPSEEK,
    END,
    GEMMA,
    KIMI,
    LFM,
    SECTION,
)
from tokenizers import AddedToken

from luthier.core.errors import RequestError
from luthier.ml.inference.models.loading import load_model, load_tokenizer
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.tool_calls import channels
from luthier.ml.inference.tool_calls.forms import form_of
from luthier.ml.inference.transformers_engine import TransformersEngine

GPT_OSS = "<|channel|>commentary"
GOOD, BAD = '{"city": "Cremona", "days": 2}', '{"city": "Paris"}'


@pytest.fixture(scope="module")
def spelled(tiny: Path) -> StreamingEngine:
    """A vocabulary in which marks are spelled out."""
    return StreamingEngine(TransformersEngine.open(str(tiny), dtype="float32"))


@pytest.fixture(scope="module")
def marked(tiny: Path) -> StreamingEngine:
    """A vocabulary in which the marks of all families are special tokens."""
    model, tokenizer = load_model(tiny, dtype="float32", attention="sdpa"), load_tokenizer(tiny)
    marks = {mark for template in (KIMI, DEEPSEEK, LFM, GEMMA) for mark in form_of(template).marks} | {*channels.MARKS}
    added = [AddedToken(mark, special=True) for mark in sorted(marks)]
    tokenizer.add_tokens(added, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return StreamingEngine(TransformersEngine(model, ChatTemplate(tokenizer, "chat")))


def _kimi(name: str, arguments: str) -> str:
    return f"{CALL}functions.{name}:12{ARGUMENTS}{arguments}{END}"


def _v31(name: str, arguments: str) -> str:
    return f"{D_CALL}{name}{D_NAME}{arguments}{D_END}"


def _v3(name: str, arguments: str) -> str:
    return f"{D_CALL}function{D_NAME}{name}\n```json\n{arguments}\n```{D_END}"


def _lfm(name: str, arguments: str) -> str:
    return f'<|tool_call_start|>[{{"name": "{name}", "arguments": {arguments}}}]<|tool_call_end|>'


def _gemma(name: str, arguments: str) -> str:
    return f"<|tool_call>call:{name}{arguments}<tool_call|>"


CASES = [
    (KIMI, f"So: {SECTION}{_kimi('get_weather', GOOD)}{_kimi('clock', '{}')}{CLOSE} done", True),
    (KIMI, _kimi("get_weather", GOOD), True),
    (KIMI, f"So: {SECTION}{_kimi('get_weather', BAD)}{CLOSE}", False),
    (KIMI, f"{SECTION}{_kimi('get_weather', GOOD)}{_kimi('get_weather', BAD)}{CLOSE}", False),
    (KIMI, f"{SECTION}{_kimi('rm', '{}')}{CLOSE}", False),
    (DEEPSEEK, f"So: {D_SECTION}{_v31('get_weather', GOOD)}{_v31('clock', '{}')}{D_CLOSE}", True),
    (DEEPSEEK, f"{D_SECTION}{_v3('get_weather', GOOD)}\n{_v3('clock', '{}')}{D_CLOSE}", True),
    (DEEPSEEK, f"{D_SECTION}{_v31('get_weather', BAD)}{D_CLOSE}", False),
    (DEEPSEEK, f"{D_SECTION}{_v3('get_weather', BAD)}{D_CLOSE}", False),
    (LFM, f"So: {_lfm('get_weather', GOOD)}", True),
    (LFM, _lfm("get_weather", BAD), False),
    (GEMMA, f"So: {_gemma('get_weather', GOOD)}{_gemma('clock', '{}')}", True),
    (GEMMA, _gemma("get_weather", BAD), False),
    (GEMMA, f'<tool_call>{{"name": "get_weather", "arguments": {GOOD}}}</tool_call>', True),
    (GEMMA, f'<tool_call>{{"name": "get_weather", "arguments": {BAD}}}</tool_call>', False),
    (GEMMA, "Let me see, 1 < 2 {or} [3].", True),
    (GEMMA, "", True),
]
IN_CHANNELS = [
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is late.", True),
    ("<|channel|>final<|message|>It is late.", True),
    (f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{GOOD}", True),
    (f" to=functions.get_weather<|channel|>commentary json<|message|>{GOOD}", True),
    ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.clock "
     '<|constrain|>json<|message|>{"zone": [1]}', True),
    (f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json"
     f"<|message|>{BAD}", False),
    (f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{BAD}", False),
    ("<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{}", False),
]  # fmt: skip


def _follows(streaming: StreamingEngine, template: str, text: str, shown: tuple[str, ...] = ()) -> bool:
    """Whether an answer follows the grammar of strict tools, to its end."""
    form, requests = form_of(template), streaming._reader
    grammar = form.strict_grammar(asked(strict_tools=("get_weather",)), requests._token_id, shown)
    constraint = requests._constraints.of_grammar(grammar)()
    tokenizer = streaming._engine.template.tokenizer
    ids = [*tokenizer.encode(text, add_special_tokens=False), streaming._engine.template.end_of_turn_ids[0]]
    try:
        for one in ids:
            constraint.take(one)
    except RequestError as error:
        if "left its form" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(("template", "text", "is_right"), CASES)
def test_native_calls_match_their_schema_where_marks_are_tokens(marked, template, text, is_right):
    assert _follows(marked, template, text) == is_right


@pytest.mark.parametrize(("template", "text", "is_right"), CASES)
def test_native_calls_match_their_schema_where_marks_are_spelled(spelled, template, text, is_right):
    assert _follows(spelled, template, text) == is_right


@pytest.mark.parametrize(("text", "is_right"), IN_CHANNELS)
def test_with_strict_tools_gpt_oss_still_writes_in_its_channels(marked, text, is_right):
    assert _follows(marked, GPT_OSS, text) == is_right


def test_with_strict_tools_a_model_still_thinks_where_marks_of_thoughts_are_special_tokens(marked):
    thought, shown = "<|start|>Hm.<|end|>", ("<|start|>", "<|end|>", "<never>")
    for text in (f"{thought}So.", f"{thought}{_gemma('get_weather', GOOD)}{thought}So.", "So."):
        assert _follows(marked, GEMMA, text, shown)
    assert not _follows(marked, GEMMA, f"{thought}{_gemma('get_weather', BAD)}", shown)
    assert not _follows(marked, GEMMA, f"{thought}So.")
