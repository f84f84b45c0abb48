"""Rows tokenised by the fast paths are those of whole encodings and of transformers' own rendering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ml.data.tokenise.other_templates import TEMPLATES
from tests.ml.data.tokenise.other_tokenizers import make_tokenizer
from tests.ml.data.tokenise.template_rows import CALL, ROWS, TOOL, on_tokenizer

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import LuthierError
from luthier.core.ports import SilentProgress
from luthier.ml.data.tokenise.loss_mask import Learning
from luthier.ml.data.tokenise.tokenised_rows import tokenise_all, tokenise_batch
from luthier.ml.inference.models.piece_encoding import PieceEncoder
from luthier.ml.inference.models.templates import plain_rendering
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

PAIRS: Final = (
    ("Qwen-Qwen3-0.6B", "bytes"),
    ("Qwen-Qwen2.5-7B-Instruct", "merging"),
    ("Qwen-Qwen2.5-7B-Instruct", "marks take space"),
    ("meta-llama-Llama-3.1-8B-Instruct", "bytes, NFKC"),
    ("mistralai-Mistral-Nemo-Instruct-2407", "pieces"),
    ("google-gemma-2-2b-it", "pieces without a first space"),
    ("deepseek-ai-DeepSeek-V3.1", "bytes"),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "unigram"),
    ("macros", "words"),
    ("question and answer", "merging"),
    ("opens a thought", "unigram, NFKC"),
)
"""Templates, of shared data or of these tests, and kinds of tokenizers."""

PARTS = (
    "Which wood?", "Spruce wood.", " ", "\n", "", "12 Euro", "ß", "e\u0301", "🎻", "日本",
    "</think>", "<think>\nlight\n</think>\n\n", "<|im_end|>", "<|im_start|>", "</s>", "[ASK]", "<", "|>", " Answer: ",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("".join)
THOUGHTS = st.none() | TEXTS


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """With and without a system prompt, tools, thoughts, calls, weights and several answers; some in a wrong order."""
    messages = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    tools = (TOOL,) if draw(st.integers(0, 3)) == 0 else ()
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(TEXTS)))
        if tools and draw(st.booleans()):
            messages.append(Message(role="assistant", tool_calls=(CALL,), reasoning=draw(THOUGHTS)))
            messages.append(Message(role="tool", content=draw(TEXTS), tool_call_id=CALL["id"]))
        weight = draw(st.sampled_from((None, None, 0, 1)))
        messages.append(Message(role="assistant", content=draw(TEXTS), reasoning=draw(THOUGHTS), weight=weight))
    if draw(st.integers(0, 9)) == 0:
        messages.append(messages[0])
    return Conversation(messages=tuple(messages), tools=tools)


EXAMPLES = st.one_of(
    st.builds(lambda row: Example(id="row", conversation=row), conversations()),
    st.builds(lambda row: Example(id="row", conversation=row), conversations()),
    st.builds(lambda row, other: Example(id="row", conversation=row, rejected=other), conversations(), conversations()),
    st.builds(lambda text: Example(id="row", text=text), TEXTS),
)
LEARNINGS = st.builds(
    Learning, reasoning=st.sampled_from((None, True, False)), only_last=st.booleans(), joins=st.booleans()
)


@contextmanager
def slow_paths() -> Iterator[None]:
    """The reference: each text is encoded by itself and as a whole, and transformers renders all conversations."""

    def whole(encoder: PieceEncoder, texts: Sequence[str]) -> list[list[int]]:
        return [encoder._backend.encode(text, add_special_tokens=False).ids for text in texts]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PieceEncoder, "encode_all", whole)
        patched.setattr(plain_rendering, "is_plain", lambda *_: False)
        yield


@lru_cache(maxsize=1)
def both_ways(folder: Path, name: str, kind: str) -> tuple[ChatTemplate, ChatTemplate]:
    """The template on a tokenizer of this kind as it is, and one that was made and measured by the slow paths."""
    text = TEMPLATES[name] if name in TEMPLATES else (folder / f"{name}.jinja").read_text("utf-8")
    with slow_paths():
        slow = on_tokenizer(make_tokenizer(kind, text), text)
    return on_tokenizer(make_tokenizer(kind, text), text), slow


def outcomes(rows: list[Example], template: ChatTemplate, learning: Learning, max_length: int, overlong: Any) -> Any:
    """Rows with ids and masks, or refusals with their messages: of the batch, of each row, and of cut rows."""

    def outcome(tokenise: Any, *given: Any, **values: Any) -> Any:
        try:
            return tokenise(*given, **values)
        except LuthierError as error:
            return type(error), str(error), list(getattr(error, "problems", ()))

    batch = outcome(tokenise_batch, rows, template, learning)
    single = [outcome(tokenise_batch, [row], template, learning) for row in rows]
    cut = [
        outcome(
            tokenise_all, [row], template, max_length_tokens=max_length, overlong=overlong, progress=SilentProgress(),
            learning=learning,
        )
        for row in rows
    ]  # fmt: skip
    return batch, single, cut


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@settings(max_examples=30)
@given(
    rows=st.lists(EXAMPLES, min_size=1, max_size=3),
    learning=LEARNINGS,
    max_length=st.integers(4, 250),
    overlong=st.sampled_from(("error", "drop", "truncate")),
)
def test_rows_and_refusals_are_those_of_the_slow_paths(
    shared_data: Path, name: str, kind: str, rows: list[Example], learning: Learning, max_length: int, overlong: Any
) -> None:
    fast, slow = both_ways(shared_data / "chat_templates", name, kind)
    found = outcomes(rows, fast, learning, max_length, overlong)
    with slow_paths():
        expected = outcomes(rows, slow, learning, max_length, overlong)
    assert found == expected


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_fast_paths_are_taken(shared_data: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = both_ways(shared_data / "chat_templates", name, kind)
    rendered: list[ChatTemplate] = []
    usual = plain_rendering.PlainRenderer._by_transformers

    def counted(renderer: Any, *given: Any) -> str:
        rendered.append(fast if renderer is fast._renderer else slow)
        return usual(renderer, *given)

    monkeypatch.setattr(plain_rendering.PlainRenderer, "_by_transformers", counted)
    text = fast.render(ROWS["one"])
    assert len(list(fast._pieces.pieces(text))) > 1 or kind.startswith("marks take space")
    # The template for tools writes nothing without a list of them.
    assert rendered == [fast] * (name == "NousResearch-Hermes-3-Llama-3.1-8B-tool_use")
    with slow_paths():
        assert slow.render(ROWS["one"]) == text
    assert rendered[-1] is slow
    (unit,) = tokenise_batch([Example(id="row", conversation=ROWS["one"])], fast, Learning())
    assert any(1 in row.loss_mask for row in unit if isinstance(row, TokenisedExample))
