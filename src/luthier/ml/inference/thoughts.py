"""Conversion of generated tokens to text: reasoning is separated from answers, and text streamed in whole characters.

Reasoning is detected by the format of the model's chat template (`models/templates/thinking.py`). A model whose
template does not support reasoning may still have learned to write it in `<think>` tags, so an answer that begins with
`<think>` is split for every model. This applies only to conversations: the continuation of a plain text is text. Text
is sent in whole characters only, without any part of a stop text (`stop_texts`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from luthier.core.ports import THINKING_TOKENS
from luthier.core.recipe import TemplateOption
from luthier.core.stream import TextRequest, WrittenToken
from luthier.ml.inference.models.templates.thinking import (
    TAGS,
    ThinkingFormat,
    ThoughtAndAnswer,
    ThoughtReader,
    thinking_format,
)
from luthier.ml.inference.models.templates.thinking_probe import options_of, thinking_switches
from luthier.ml.inference.stop_texts import StopsBesideCalls

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.tool_calls.channels import CallReader

_UNKNOWN = "\ufffd"


class TextStream:
    """Incremental decoding of a growing list of tokens.

    A token may contain part of a character, so the end of the text can change with the next token: incomplete text is
    held back.

    Args:
        decode: converts token ids to text without special tokens.
        before: the last tokens of a text that this one continues; none where it begins by itself.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        # A character that is cut in two belongs to neither text.
        is_whole = bool(before) and not decode(before).endswith(_UNKNOWN)
        self._ids: list[int] = list(before) if is_whole else []
        # Some tokenizers decode a token differently at the beginning of a text: the last emitted tokens are decoded
        # again as context for new ones.
        self._context, self._emitted = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that is complete with this token; often empty."""
        self._ids.append(token)
        text = self._open_text()
        # Incomplete characters decode to U+FFFD: the next token may complete them.
        if not text or text.endswith(_UNKNOWN):
            return ""
        # The context is a sliding window, so that decoding costs a few tokens per step rather than the whole answer.
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def end(self) -> str:
        """Flush what was held back, after the last token."""
        text = self._open_text()
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def texts_of(self, tokens: Sequence[int]) -> list[str]:
        """The text of each of some tokens in the next place. Where a text begins some tokenizers drop a blank."""
        context = self._ids[self._context : self._emitted]
        num_before = len(self._decode(context)) if context else 0
        return [self._decode([*context, token])[num_before:] for token in tokens]

    def _open_text(self) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        return self._decode(self._ids[self._context :])[len(before) :]


# The opening delimiter of reasoning is at the end of a prompt and has few tokens.
_TAIL_TOKENS: Final = 32
_MAX_TEMPLATES: Final = 32


class _GrammarConstraint(Protocol):
    def mask(self, logits: Tensor) -> Tensor: ...
    def take(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Thinking:
    """The settings for the reasoning of one answer before generation.

    Attributes:
        form: the delimiters; None if no reasoning is detected.
        is_open: whether the prompt has opened it.
        max_tokens: its budget in addition to the answer's; 0 if both share one limit.
        shown: special tokens that must be visible in the text.
        closing_ids: tokens that close it, for a thought that has used up its budget.
    """

    form: ThinkingFormat | None = None
    is_open: bool = False
    max_tokens: int = 0
    shown: tuple[str, ...] = ()
    closing_ids: tuple[int, ...] = ()


NO_THINKING: Final = Thinking()


class Thoughts:
    """The reasoning format of a model with its tokenizer.

    Attributes:
        form: the delimiters.
        is_known: whether they come from the template rather than the default `<think>`.
        shown: special tokens that delimit reasoning or answers and so must be visible in the text.
    """

    def __init__(self, template: ChatTemplate) -> None:
        known = thinking_format(template)
        self.is_known, self.form = known is not None, known or TAGS
        self._backend = template.tokenizer.backend_tokenizer
        special = {
            number: token.content for number, token in template.tokenizer.added_tokens_decoder.items() if token.special
        }
        delimiters = "\n".join(self.form.delimiters)
        self.shown = tuple(content for content in special.values() if content in delimiters)
        # `skip_special_tokens` would also hide special delimiters, so the others are filtered here (`decode`).
        self._hidden = {number: content for number, content in special.items() if content not in self.shown}

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special tokens except those that delimit reasoning."""
        if not self.shown:
            return str(self._backend.decode(list(ids), skip_special_tokens=True))
        return str(
            self._backend.decode([number for number in ids if number not in self._hidden], skip_special_tokens=False)
        )

    def decoder(self, marks: Sequence[str]) -> Callable[[Sequence[int]], str]:
        """As `decode`, with these texts visible where they are special tokens, such as the marks of tool calls."""
        hidden = frozenset(number for number, content in self._hidden.items() if content not in marks)
        return lambda ids: str(
            self._backend.decode([number for number in ids if number not in hidden], skip_special_tokens=False)
        )

    def is_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside reasoning."""
        return self.form.is_open(str(self._backend.decode(list(prompt_ids[-_TAIL_TOKENS:]), skip_special_tokens=False)))

    def split(self, ids: Sequence[int], *, is_open: bool, marks: Sequence[str] = ()) -> tuple[ThoughtAndAnswer, int]:
        """Split generated tokens, and count those of the reasoning including delimiters.

        Args:
            ids: of the answer.
            is_open: whether the prompt has opened the reasoning.
            marks: special tokens that are visible in the text, beside those of the reasoning.
        """
        decode = self.decoder(marks) if marks else self.decode
        reader = self.form.reader(is_open=is_open)
        first, last = reader.add(decode(ids)), reader.end()
        found = ThoughtAndAnswer(
            first.reasoning + last.reasoning or None, first.content + last.content, reader.is_closed
        )
        if not reader.has_thought:
            return found, 0
        # Token by token: token and character boundaries differ, so the split text cannot be counted.
        tokens = ThoughtTokens(self.form, decode, is_open=is_open)
        for token in ids:
            tokens.take(token)
        return found, tokens.num_thinking

    def budget(self, asked: int | None, room_tokens: int) -> int:
        """The reasoning budget in addition to the answer's limit; 0 if it shares that limit.

        Args:
            asked: see `Prompt.max_thinking_tokens`.
            room_tokens: remaining context; an upper bound of the result.
        """
        if self.form.prompt_closes:
            return 0
        if asked is None:
            asked = THINKING_TOKENS if self.is_known else 0
        return max(0, min(asked, room_tokens))

    @property
    def closing_ids(self) -> list[int]:
        """Tokens that end reasoning, for engines that constrain an answer from its first token."""
        return list(self._backend.encode(f"{self.form.end}\n\n", add_special_tokens=False).ids)

    def of_answer(self, prompt_ids: Sequence[int], asked: int | None, room_tokens: int) -> Thinking:
        """The reasoning settings for the answer to a prompt.

        Args:
            prompt_ids: of the prompt, whose end may open reasoning.
            asked: tokens of reasoning that were asked for; None takes the default.
            room_tokens: that are left in the context.
        """
        budget = self.budget(asked, room_tokens)
        return Thinking(self.form, self.is_open(prompt_ids), budget, self.shown, tuple(self.closing_ids))

    def limit(self, max_new_tokens: int, max_thinking_tokens: int, *, is_open: bool) -> Callable[[], ThoughtLimit]:
        """Creates the limit of one answer whose reasoning has a separate budget.

        Args:
            max_new_tokens: of the part after the reasoning.
            max_thinking_tokens: of the reasoning, with its delimiters.
            is_open: whether the prompt has opened the reasoning.
        """
        return lambda: ThoughtLimit(
            ThoughtTokens(self.form, self.decode, is_open=is_open), max_new_tokens, max_thinking_tokens
        )

    def constrained(self, make: Callable[[], _GrammarConstraint], *, is_open: bool) -> Callable[[], _GrammarConstraint]:
        """A constraint that lets the model finish its reasoning first, if the prompt has opened it."""
        if not is_open:
            return make
        return lambda: GuideBehindThought(make(), ThoughtTokens(self.form, self.decode, is_open=True))


class ThoughtTokens:
    """Tracks one answer token by token.

    Attributes:
        num_thinking: tokens of its reasoning so far, including delimiters.

    Args:
        form: the delimiters.
        decode: token ids to text.
        is_open: whether the prompt has opened the reasoning.
    """

    def __init__(self, form: ThinkingFormat, decode: Callable[[Sequence[int]], str], *, is_open: bool) -> None:
        self._reader, self._text = form.reader(is_open=is_open), TextStream(decode)
        self._num = self.num_thinking = 0

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside reasoning."""
        return self._reader.is_thinking

    @property
    def is_undecided(self) -> bool:
        """Whether the text so far may still turn out to begin reasoning."""
        return self._reader.is_undecided

    def take(self, token: int) -> None:
        """Add one token."""
        self._num += 1
        # The reasoning has ended: the rest of the answer need not be decoded here.
        if self._reader.is_answering:
            return
        was_thinking = self._reader.is_thinking
        self._reader.add(self._text.add(token))
        # Before or after: the tokens of both delimiters count as reasoning.
        if was_thinking or self._reader.is_thinking:
            self.num_thinking = self._num


class ThoughtLimit:
    """Ends an answer whose reasoning, or the part after it, is too long.

    Args:
        tokens: tracks the answer.
        max_new_tokens: of the part after the reasoning.
        max_thinking_tokens: of the reasoning, with its delimiters.
    """

    def __init__(self, tokens: ThoughtTokens, max_new_tokens: int, max_thinking_tokens: int) -> None:
        self._tokens, self._num = tokens, 0
        self._most_new, self._most_thinking = max_new_tokens, max_thinking_tokens

    def goes_on(self, token: int) -> bool:
        """Whether another token may follow this one."""
        self._num += 1
        self._tokens.take(token)
        if self._tokens.is_thinking or self._tokens.is_undecided:
            return self._num < self._most_thinking
        return self._num - self._tokens.num_thinking < self._most_new


class GuideBehindThought:
    """A constraint of the answer that does not apply to the reasoning before it."""

    def __init__(self, constraint: _GrammarConstraint, tokens: ThoughtTokens) -> None:
        self._constraint, self._tokens = constraint, tokens

    def mask(self, logits: Tensor) -> Tensor:
        """[vocabulary], constrained once the reasoning has ended."""
        return logits if self._tokens.is_thinking else self._constraint.mask(logits)

    def take(self, token: int) -> None:
        """Record a sampled token."""
        # Until the reasoning has ended, the grammar's parser must not see a token.
        if self._tokens.is_thinking:
            self._tokens.take(token)
        else:
            self._constraint.take(token)


class AnswerText:
    """The streamed text of one answer, without its reasoning and up to a stop text.

    A stop text ends the answer; within reasoning and calls of tools it is ignored.

    Args:
        asked: the request.
        thinking: how reasoning is delimited and limited.
        calls: reads calls of tools, for the search for stop texts alone; None where nothing may be called.

    Attributes:
        num_thinking: tokens of the reasoning so far, including delimiters.
        num_dropped: characters of the text so far that are not part of the answer: reasoning and delimiters.
    """

    def __init__(self, asked: TextRequest, thinking: Thinking, calls: CallReader | None = None) -> None:
        form = thinking.form
        self._reader: ThoughtReader | None = None if form is None else form.reader(is_open=thinking.is_open)
        self._stops = StopsBesideCalls(asked.stop, calls)
        self._most_new, self._most_thinking = asked.max_new_tokens, thinking.max_tokens
        self.num_thinking = self.num_dropped = 0
        self._num_read = self._num_answered = 0
        self._answer_start = 0 if form is None else None  # in characters of the text; None: it has not begun

    def is_full(self, num_tokens: int) -> bool:
        """Whether the reasoning, or the part after it, has reached its own limit.

        Args:
            num_tokens: total generated tokens.
        """
        if not self._most_thinking or self._reader is None:
            return False
        if self._reader.is_thinking or self._reader.is_undecided:
            return num_tokens >= self._most_thinking
        return num_tokens - self.num_thinking >= self._most_new

    @property
    def found_stop(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._stops.found_text is not None

    @property
    def stop_text(self) -> str | None:
        """The stop text that has ended the answer."""
        return self._stops.found_text

    @property
    def answer_start(self) -> int:
        """The place of the answer's first character in the text; 0 until it has begun."""
        return self._answer_start or 0

    @property
    def ends_in_thought(self) -> bool:
        """Whether the text so far ends inside reasoning."""
        return self._reader is not None and self._reader.is_thinking

    def add(self, text: str, num_tokens: int) -> tuple[str, str]:
        """Process more text; returns what is certain: more reasoning and more of the answer.

        Args:
            text: that follows the text so far.
            num_tokens: total generated tokens so far.
        """
        if self._reader is None:
            return "", self._stops.add(text)
        was_thinking = self._reader.is_thinking
        reasoning, answer = self._reader.add(text)
        if was_thinking or self._reader.is_thinking:
            self.num_thinking = num_tokens
        self._num_read += len(text)
        return reasoning, self._stops.add(self._counted(answer))

    def end(self, num_tokens: int) -> tuple[str, str]:
        """Flush what was held back, at the end of the text."""
        if self._reader is None:
            return "", self._stops.end()
        if self._reader.is_thinking:
            self.num_thinking = num_tokens
        reasoning, answer = self._reader.end()
        return reasoning, self._stops.add(self._counted(answer)) + self._stops.end()

    def _counted(self, answer: str) -> str:
        assert self._reader is not None
        self._num_answered += len(answer)
        # Text held back by the reader is undecided: neither dropped nor part of the answer.
        self.num_dropped = self._num_read - self._num_answered - self._reader.num_held
        if answer and self._answer_start is None:
            self._answer_start = self.num_dropped
        return answer

    def num_of_thought(self, tokens: Sequence[WrittenToken]) -> int:
        """How many of these tokens, which follow each other, are of the thought and its delimiters: the first ones.

        A token that reaches into the answer is of the answer.

        Args:
            tokens: with their places in the text.
        """
        start = self._answer_start
        if start is None:
            return len(tokens) if self._reader is not None and self._reader.has_thought else 0
        return sum(token.offset + max(1, len(token.chosen.token)) <= start for token in tokens)


class RequestTemplates:
    """The template and reasoning format of each request, which may set options of the template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._made: dict[str, tuple[ChatTemplate, Thoughts]] = {}
        self._lock = threading.Lock()

    def of(self, asked: TextRequest) -> tuple[ChatTemplate, Thoughts]:
        """The template and reasoning format for a request.

        Raises:
            RequestError: the template never reads an option.
            TemplateError: the template fails with an option.
        """
        # Order of precedence: the request's options, those used in training, the template's defaults.
        options = dict(self._template.options) | asked.trained_options | requested_options(self._template, asked)
        key = json.dumps(options, sort_keys=True)
        # Requests are prepared in several threads: entries are looked up, evicted and added under one lock, but created
        # outside of it, since probing a template takes a while.
        with self._lock:
            found = self._made.get(key)
        if found is None:
            template = self._template.with_options(options)
            found = template, Thoughts(template)
            with self._lock:
                if len(self._made) >= _MAX_TEMPLATES and key not in self._made:
                    self._made.pop(next(iter(self._made)))  # a dict is ordered: evict the oldest
                self._made[key] = found
        return found


def requested_options(template: ChatTemplate, asked: TextRequest) -> dict[str, TemplateOption]:
    """The template options of a request, including those for its thinking and its reasoning effort.

    Raises:
        RequestError: the template never reads an option, or has no place for the thoughts that are requested.
    """
    if not asked.template_options and asked.reasoning_effort is None and asked.thinks is None:
        return {}
    text = str(template.tokenizer.get_chat_template()) if template.kind == "chat" else ""
    tokens = template.tokenizer.special_tokens_map
    is_known = bool(asked.thinks) and thinking_format(template) is not None
    switches = thinking_switches(text, tokens, thinks=asked.thinks, is_known=is_known)
    return switches | options_of(text, tokens, asked.template_options, asked.reasoning_effort)
