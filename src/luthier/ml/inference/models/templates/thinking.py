"""Reasoning of models: its delimiters in generated text, and its token limits.

How a model marks its reasoning is measured on its chat template (`thinking_probe`), never looked up by model name.
Generated text has one of these forms:

    <think>THOUGHT</think>ANSWER       the model opens and closes its thought
    THOUGHT</think>ANSWER              the generation prompt has opened it
    ANSWER                             no thought, or the generation prompt has closed an empty one
    <think>THOUGHT                     cut off before an answer

with any delimiters in place of the tags. Some templates also frame the answer: gpt-oss begins it with
`<|channel|>final<|message|>`, and a new turn after the reasoning. Token limits are derived from the answers and
reasoning in rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from luthier.core.dataset import Example
from luthier.core.defaults import NEW_TOKENS
from luthier.core.ports import THINKING_TOKENS

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ThoughtAndAnswer:
    """A generated text split into reasoning and answer.

    Attributes:
        reasoning: the reasoning without its delimiters and surrounding space; None if there is none.
        content: the answer; empty if the text ends within the reasoning.
        is_closed: False if the text ends within the reasoning, so that there is no answer.
    """

    reasoning: str | None
    content: str
    is_closed: bool


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """How a model marks its thoughts.

    Attributes:
        start, end: the delimiters, without space around them.
        prompt_opens: the generation prompt ends within the reasoning, so that generation starts inside it.
        prompt_closes: the generation prompt ends with empty reasoning, so that only the answer is generated.
        answer_start: the beginning of an answer without reasoning; usually empty.
        answer_frame: the beginning of an answer after reasoning; usually empty.
        answer_end: the end of a framed answer; usually empty.
        next_start: the beginning of another reasoning part after one; usually empty.
    """

    start: str
    end: str
    prompt_opens: bool
    prompt_closes: bool = False
    answer_start: str = ""
    answer_frame: str = ""
    answer_end: str = ""
    next_start: str = ""

    @property
    def delimiters(self) -> tuple[str, ...]:
        """All delimiters that must be visible in the generated text, including special tokens."""
        texts = (self.start, self.end, self.answer_start, self.answer_frame, self.answer_end, self.next_start)
        return tuple(dict.fromkeys(text for text in texts if text))

    def is_open(self, prompt: str) -> bool:
        """Whether a continuation of this rendered prompt starts inside reasoning."""
        return bool(self.start) and prompt.rstrip().endswith(self.start)

    def split(self, text: str, *, is_open: bool) -> ThoughtAndAnswer:
        """Split a generated text.

        Args:
            text: The text generated after the prompt, including special tokens that delimit reasoning.
            is_open: Whether the prompt already opened the reasoning (`is_open`).
        """
        reader = self.reader(is_open=is_open)
        first, last = reader.add(text), reader.end()
        reasoning = first.reasoning + last.reasoning
        return ThoughtAndAnswer(reasoning or None, first.content + last.content, reader.is_closed)

    def reader(self, *, is_open: bool) -> ThoughtReader:
        """Splits a text that arrives in pieces."""
        return ThoughtReader(self, is_open=is_open)


TAGS: Final = ThinkingFormat("<think>", "</think>", prompt_opens=False)
"""The format for templates without reasoning: only an answer that begins with `<think>` has any."""


def thinking_format(template: ChatTemplate) -> ThinkingFormat | None:
    """How a model with this template marks its reasoning; None if the template does not support any.

    Measured once per template, with the template's options. The plain layout has none.
    """
    from luthier.ml.inference.models.templates.thinking_probe import measured_format

    if template.kind == "plain":
        return None
    options = dict(getattr(template, "options", None) or {})
    return measured_format(template.tokenizer.get_chat_template(), template.tokenizer.special_tokens_map, options)


class SplitPiece(NamedTuple):
    """One step of splitting a text; either part may be empty.

    Attributes:
        reasoning: more of the reasoning.
        content: more of the answer.
    """

    reasoning: str
    content: str


class ThoughtReader:
    """Splits a text as it arrives.

    Text that may still become part of a delimiter is held back, and so is space around reasoning. The concatenated
    result does not depend on how the text is divided into pieces.
    """

    def __init__(self, form: ThinkingFormat, *, is_open: bool) -> None:
        self._form = form
        self._held = ""
        self._state = "thought" if is_open else "before"
        self.has_thought = is_open
        """Whether reasoning has begun."""
        self._has_reasoning = self._is_framed = False

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside reasoning."""
        return self._state == "thought"

    @property
    def is_closed(self) -> bool:
        """Whether no reasoning is open."""
        return not self.is_thinking

    @property
    def is_undecided(self) -> bool:
        """Whether the text so far may still turn out to begin reasoning."""
        return self._state == "before"

    @property
    def is_answering(self) -> bool:
        """Whether everything that follows is the answer."""
        return self._state == "answer"

    @property
    def num_held(self) -> int:
        """Number of characters held back."""
        return len(self._held)

    def add(self, text: str) -> SplitPiece:
        """Process more text; returns what is certain so far."""
        # Nothing can follow an unframed answer, so that its text passes without being held back.
        if self._state == "answer" and not self._is_framed:
            return SplitPiece("", text)
        self._held += text
        reasoning: list[str] = []
        state = ""
        # One piece may close one reasoning part and begin the next: repeated until the state is stable.
        while state != self._state:
            state = self._state
            if state == "before":
                self._begin()
            elif state == "thought":
                reasoning.append(self._think())
            elif state == "after":
                self._follow()
        content = self._answer() if self._state == "answer" else ""
        return SplitPiece("".join(reasoning), content)

    def end(self) -> SplitPiece:
        """Flush what was held back, at the end of the text."""
        # At the end a partial delimiter is text: nothing comes that could complete it.
        held = self._take(len(self._held))
        if self._state == "thought":
            return SplitPiece(self._emit(held.rstrip()), "")
        if self._state == "after":
            return SplitPiece("", held.lstrip())
        closing = self._form.answer_end
        if self._is_framed and closing and held.rstrip().endswith(closing):
            held = held.rstrip().removesuffix(closing).rstrip()
        return SplitPiece("", held)

    def _begin(self) -> None:
        """Reasoning or answer, once it is certain which."""
        form, text = self._form, self._held.lstrip()
        for delimiter, state in ((form.start, "thought"), (form.answer_start, "answer")):
            if delimiter and text.startswith(delimiter):
                self._held, self._state = text[len(delimiter) :], state
                self._is_framed, self.has_thought = state == "answer", state == "thought"
                return
        # Too short to decide while it may still become a delimiter.
        if text and not any(one.startswith(text) for one in (form.start, form.answer_start)):
            self._state = "answer"

    def _think(self) -> str:
        """More of the reasoning."""
        if (place := self._held.find(self._form.end)) >= 0:
            emitted = self._emit(self._held[:place].rstrip())
            self._held, self._state = self._held[place + len(self._form.end) :], "after"
            return emitted
        sure = len(self._held) - num_open(self._held, self._form.end)
        # Trailing space is held back: before the closing delimiter it is not part of the reasoning.
        return self._emit(self._take(len(self._held[:sure].rstrip())))

    def _emit(self, text: str) -> str:
        """Part of the reasoning, without its leading space."""
        if not self._has_reasoning:
            text = text.lstrip()
            self._has_reasoning = bool(text)
        return text

    def _follow(self) -> None:
        """After reasoning: an answer, or more reasoning."""
        form, text = self._form, self._held.lstrip()
        for delimiter, state in ((form.answer_frame, "answer"), (form.next_start, "thought")):
            if delimiter and text.startswith(delimiter):
                self._held, self._state = text[len(delimiter) :], state
                self._is_framed = state == "answer"
                if state == "thought" and self._has_reasoning:
                    # Two reasoning parts are joined by a line feed.
                    self._held = "\n" + self._held.lstrip()
                return
        if text and not any(one.startswith(text) for one in (form.answer_frame, form.next_start)):
            self._held, self._state = text, "answer"

    def _answer(self) -> str:
        """More of the answer; for a framed one without a possible end of the frame and the space before it."""
        closing, bare = self._form.answer_end, self._held.rstrip()
        if not closing or not self._is_framed:
            return self._take(len(self._held))
        sure = len(bare) - len(closing) if bare.endswith(closing) else len(self._held) - num_open(self._held, closing)
        return self._take(len(self._held[:sure].rstrip()))

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken


def num_open(text: str, mark: str) -> int:
    """The number of trailing characters that may be the beginning of the mark."""
    for num in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-num:]):
            return num
    return 0


_SPARE: Final = 1.25
_ROUND: Final = 32
_DELIMITERS: Final = 16
"""Tokens reserved for the delimiters of reasoning."""


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """Token lengths of the answers of rows with one model's tokenizer.

    Attributes:
        longest_answer, longest_thought: tokens; 0 if no row has one.
        thinks: the model's chat template supports reasoning, and its generation prompt does not close an empty one.
    """

    longest_answer: int
    longest_thought: int
    thinks: bool

    @property
    def max_new_tokens(self) -> int:
        """The longest answer plus a quarter, at least `NEW_TOKENS`."""
        if self.longest_answer < NEW_TOKENS:
            return NEW_TOKENS
        return _rounded(self.longest_answer * _SPARE)

    @property
    def max_thinking_tokens(self) -> int:
        """The longest reasoning plus half; at least 2,048 tokens for a reasoning model."""
        own = _rounded(1.5 * self.longest_thought + _DELIMITERS) if self.longest_thought else 0
        return max(own, THINKING_TOKENS) if self.thinks else own


def answer_lengths(examples: Sequence[Example], template: ChatTemplate) -> AnswerLengths:
    """The lengths for rows with a model's template."""
    form = thinking_format(template)
    # One more for the token that ends the answer.
    answers = [len(template.ids(one.reference)) + 1 for one in examples if one.reference]
    thoughts = [len(template.ids(one.thought)) for one in examples if one.thought]
    return AnswerLengths(
        longest_answer=max(answers, default=0),
        longest_thought=max(thoughts, default=0),
        thinks=form is not None and not form.prompt_closes,
    )


def limits_of(
    examples: Sequence[Example], template: ChatTemplate, max_new_tokens: int | None, max_thinking_tokens: int | None
) -> tuple[int, int | None]:
    """The limits of answer and reasoning: the given ones, otherwise derived from the lengths of the rows.

    The second is None for a model and rows without reasoning: the engine then uses its default.

    Args:
        examples: whose answers are measured.
        template: of the model; separates reasoning from the answer.
        max_new_tokens: of an answer, in tokens; None derives it.
        max_thinking_tokens: of the reasoning before it, in tokens; None derives it.
    """
    if max_new_tokens is not None and max_thinking_tokens is not None:
        return max_new_tokens, max_thinking_tokens
    lengths = answer_lengths(examples, template)
    new = lengths.max_new_tokens if max_new_tokens is None else max_new_tokens
    return new, (lengths.max_thinking_tokens or None) if max_thinking_tokens is None else max_thinking_tokens


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / _ROUND) * _ROUND
