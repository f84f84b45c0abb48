"""Thoughts of models that think: where they begin and end in what is generated, and how many tokens they may take.

How a model marks its thoughts is measured on its chat template (`thinking_probe`), never looked up by its name. What is
generated then has one of these forms:

    <think>THOUGHT</think>ANSWER       the model opens and closes its thought
    THOUGHT</think>ANSWER              the generation prompt has opened it
    ANSWER                             no thought, or the generation prompt has closed an empty one
    <think>THOUGHT                     cut off before an answer

with any delimiters in place of the tags. Some templates frame the answer, too: gpt-oss begins it with
`<|channel|>final<|message|>`, and a new turn after a thought. Limits for answers and thoughts come from the answers and
thoughts of rows.
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
    from luthier.ml.inference.models.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ThoughtAndAnswer:
    """A generated text taken apart.

    Attributes:
        reasoning: the thought without its delimiters and the space around it; None where there is none.
        content: the answer; empty where the text ends within the thought.
        is_closed: False where the text ends within a thought, so that there is no answer.
    """

    reasoning: str | None
    content: str
    is_closed: bool


@dataclass(frozen=True, slots=True)
class ThinkingFormat:
    """How a model marks its thoughts.

    Attributes:
        start, end: the delimiters, without space around them.
        prompt_opens: the generation prompt ends within a thought, so that what is generated begins inside of it.
        prompt_closes: the generation prompt ends with an empty thought, so that what is generated is the answer.
        answer_start: what the answer begins with where no thought comes before it; usually empty.
        answer_frame: what the answer begins with after a thought; usually empty.
        answer_end: what ends an answer that had a frame; usually empty.
        next_start: what begins one more thought after a thought; usually empty.
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
        """All texts that must be seen in what is generated, special tokens among them."""
        texts = (self.start, self.end, self.answer_start, self.answer_frame, self.answer_end, self.next_start)
        return tuple(dict.fromkeys(text for text in texts if text))

    def is_open(self, prompt: str) -> bool:
        """Whether a text that goes on after this prompt, which is rendered, begins inside of a thought."""
        return bool(self.start) and prompt.rstrip().endswith(self.start)

    def split(self, text: str, *, is_open: bool) -> ThoughtAndAnswer:
        """Take a generated text apart.

        Args:
            text: What the model has written after the prompt; special tokens that delimit thoughts are in it.
            is_open: Whether the prompt has opened the thought already (`is_open`).
        """
        reader = self.reader(is_open=is_open)
        first, last = reader.add(text), reader.end()
        reasoning = first.reasoning + last.reasoning
        return ThoughtAndAnswer(reasoning or None, first.content + last.content, reader.is_closed)

    def reader(self, *, is_open: bool) -> ThoughtReader:
        """Takes a text apart that comes in pieces."""
        return ThoughtReader(self, is_open=is_open)


TAGS: Final = ThinkingFormat("<think>", "</think>", prompt_opens=False)
"""What is read where a template knows of no thoughts: only an answer that begins with `<think>` has one."""


def thinking_format(template: ChatTemplate) -> ThinkingFormat | None:
    """How a model with this template marks its thoughts; None where its template knows of none.

    Measured with the template's own options, once a template. The plain layout has none.
    """
    from luthier.ml.inference.models.thinking_probe import measured_format

    if template.kind == "plain":
        return None
    options = dict(getattr(template, "options", None) or {})
    return measured_format(template.tokenizer.get_chat_template(), template.tokenizer.special_tokens_map, options)


class SplitPiece(NamedTuple):
    """One step of taking a text apart; either part may be empty.

    Attributes:
        reasoning: more of the thought.
        content: more of the answer.
    """

    reasoning: str
    content: str


_NOTHING: Final = SplitPiece("", "")


class ThoughtReader:
    """Takes a text apart as it comes.

    What may yet be part of a delimiter is held back, and so is space around a thought. In whatever pieces the text
    comes, the parts are the same together.
    """

    def __init__(self, form: ThinkingFormat, *, is_open: bool) -> None:
        self._form = form
        self._held = ""
        self._state = "thought" if is_open else "before"
        self.has_thought = is_open
        """Whether a thought has begun."""
        self._has_reasoning = self._is_framed = False

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside of a thought."""
        return self._state == "thought"

    @property
    def is_closed(self) -> bool:
        """Whether no thought is open."""
        return not self.is_thinking

    @property
    def is_undecided(self) -> bool:
        """Whether the text so far may yet turn out to begin a thought."""
        return self._state == "before"

    @property
    def is_answering(self) -> bool:
        """Whether all that follows is answer."""
        return self._state == "answer"

    @property
    def num_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def add(self, text: str) -> SplitPiece:
        """What is certain with this text."""
        if self._state == "answer" and not self._is_framed:
            return SplitPiece("", text)
        self._held += text
        reasoning: list[str] = []
        state = ""
        # One piece may close a thought and begin the next: repeated until the state stays.
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
        """What was held back: no text comes any more."""
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
        """A thought or an answer, once it is certain which."""
        form, text = self._form, self._held.lstrip()
        for delimiter, state in ((form.start, "thought"), (form.answer_start, "answer")):
            if delimiter and text.startswith(delimiter):
                self._held, self._state = text[len(delimiter) :], state
                self._is_framed, self.has_thought = state == "answer", state == "thought"
                return
        # Too short to decide while it may still grow into a delimiter.
        if text and not any(one.startswith(text) for one in (form.start, form.answer_start)):
            self._state = "answer"

    def _think(self) -> str:
        """More of the thought."""
        if (place := self._held.find(self._form.end)) >= 0:
            emitted = self._emit(self._held[:place].rstrip())
            self._held, self._state = self._held[place + len(self._form.end) :], "after"
            return emitted
        sure = len(self._held) - _num_open(self._held, self._form.end)
        # Space at the end is held back: before the closing delimiter it is no part of the thought.
        return self._emit(self._take(len(self._held[:sure].rstrip())))

    def _emit(self, text: str) -> str:
        """Part of a thought, without the space that the thought begins with."""
        if not self._has_reasoning:
            text = text.lstrip()
            self._has_reasoning = bool(text)
        return text

    def _follow(self) -> None:
        """After a thought: an answer, or one more thought."""
        form, text = self._form, self._held.lstrip()
        for delimiter, state in ((form.answer_frame, "answer"), (form.next_start, "thought")):
            if delimiter and text.startswith(delimiter):
                self._held, self._state = text[len(delimiter) :], state
                self._is_framed = state == "answer"
                if state == "thought" and self._has_reasoning:
                    # Two thoughts are joined by a line feed.
                    self._held = "\n" + self._held.lstrip()
                return
        if text and not any(one.startswith(text) for one in (form.answer_frame, form.next_start)):
            self._held, self._state = text, "answer"

    def _answer(self) -> str:
        """More of the answer; of a framed one without what may be the end of its frame, and space before that."""
        closing, bare = self._form.answer_end, self._held.rstrip()
        if not closing or not self._is_framed:
            return self._take(len(self._held))
        sure = len(bare) - len(closing) if bare.endswith(closing) else len(self._held) - _num_open(self._held, closing)
        return self._take(len(self._held[:sure].rstrip()))

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken


def _num_open(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of the mark."""
    for num in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-num:]):
            return num
    return 0


_SPARE: Final = 1.25
_ROUND: Final = 32
_DELIMITERS: Final = 16
"""Tokens for what surrounds a thought."""


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """What the answers of rows take with one model's tokenizer.

    Attributes:
        longest_answer, longest_thought: tokens; 0 where no row has one.
        thinks: the model's chat template knows of thoughts, and its generation prompt has not closed an empty one.
    """

    longest_answer: int
    longest_thought: int
    thinks: bool

    @property
    def max_new_tokens(self) -> int:
        """Room for the longest answer and a quarter more, at least `NEW_TOKENS`."""
        if self.longest_answer < NEW_TOKENS:
            return NEW_TOKENS
        return _rounded(self.longest_answer * _SPARE)

    @property
    def max_thinking_tokens(self) -> int:
        """Room for the longest thought and half more; at least 2,048 tokens for a model that thinks by itself."""
        own = _rounded(1.5 * self.longest_thought + _DELIMITERS) if self.longest_thought else 0
        return max(own, THINKING_TOKENS) if self.thinks else own


def answer_lengths(examples: Sequence[Example], template: ChatTemplate) -> AnswerLengths:
    """The lengths for rows and a model's template."""
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
    """The limits of an answer and of a thought: those that are given, the others by the rows' own lengths.

    The second is None for a model and rows without thoughts: the engine then knows best.
    """
    if max_new_tokens is not None and max_thinking_tokens is not None:
        return max_new_tokens, max_thinking_tokens
    lengths = answer_lengths(examples, template)
    new = lengths.max_new_tokens if max_new_tokens is None else max_new_tokens
    return new, (lengths.max_thinking_tokens or None) if max_thinking_tokens is None else max_thinking_tokens


def _rounded(tokens: float) -> int:
    return math.ceil(tokens / _ROUND) * _ROUND
