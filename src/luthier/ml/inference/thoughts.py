"""Generated tokens become text: thoughts taken apart from answers, and whole characters sent as they come.

Thoughts are found by the format that the model's chat template shows (`models.thinking`). A model whose template knows
of no thoughts may still have learned to write them in `<think>` tags, so an answer that begins with `<think>` is taken
apart for every model. Only answers to conversations are: what goes on after a plain text is text. Text is sent in whole
characters only, without any part of a stop text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from luthier.core.ports import THINKING_TOKENS
from luthier.core.recipe import TemplateOption
from luthier.core.stream import TextRequest
from luthier.ml.inference.models.thinking import TAGS, ThinkingFormat, ThoughtAndAnswer, ThoughtReader, thinking_format
from luthier.ml.inference.models.thinking_probe import options_of

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.ml.inference.models.chat_template import ChatTemplate

_UNKNOWN = "\ufffd"


class TextStream:
    """The text of a growing list of tokens, piece by piece.

    A token may hold a part of a character, so the end of the text can change with the next token: what is still open is
    held back.

    Args:
        decode: token ids to text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Some tokenizers write a token differently at the beginning of a text: the tokens that were
        # emitted last are decoded again before those that were not.
        self._context, self._emitted = 0, 0

    def add(self, token: int) -> str:
        """The text that is certain with this token; often empty."""
        self._ids.append(token)
        text = self._open_text()
        # Bytes that are no whole character decode to U+FFFD: the next token may complete them.
        if not text or text.endswith(_UNKNOWN):
            return ""
        # The context moves on, so that decoding costs a few tokens a step and not the whole answer.
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def end(self) -> str:
        """What was held back: no token comes any more."""
        text = self._open_text()
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def _open_text(self) -> str:
        before = self._decode(self._ids[self._context : self._emitted])
        return self._decode(self._ids[self._context :])[len(before) :]


class StopTexts:
    """Looks for texts that end an answer, also where they come in several pieces.

    Where several would match, the one that is complete first counts, so that it does not matter in which pieces the
    text comes.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What of the text so far is certain not to be part of a stop text. Sets `found` where one is complete."""
        if not self._stops or self.found:
            return "" if self.found else text
        self._held += text
        # By the place where a stop text ends: the one that a reader would see complete first.
        matches = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if matches:
            self.found = True
            return self._take(min(matches)[1])
        return self._take(len(self._held) - self._num_open())

    def end(self) -> str:
        """What was held back: no text comes any more."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _num_open(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for num in range(longest, 0, -1):
            if any(stop.startswith(self._held[-num:]) for stop in self._stops):
                return num
        return 0


# The delimiter that opens a thought is the last thing in a prompt; it has few tokens.
_TAIL_TOKENS: Final = 32
_MAX_TEMPLATES: Final = 32


class _GrammarConstraint(Protocol):
    def mask(self, logits: Tensor) -> Tensor: ...
    def take(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Thinking:
    """What is known of the thought of one answer before it is written.

    Attributes:
        form: the delimiters; None where no thought is looked for.
        is_open: the prompt has opened it.
        max_tokens: its budget beside the answer's; 0 where both share one limit.
        shown: special tokens that must be seen in the text.
    """

    form: ThinkingFormat | None = None
    is_open: bool = False
    max_tokens: int = 0
    shown: tuple[str, ...] = ()


NO_THINKING: Final = Thinking()


class Thoughts:
    """How one model writes its thoughts, with its tokenizer.

    Attributes:
        form: the delimiters.
        is_known: whether the template shows them, rather than `<think>` being assumed.
        shown: special tokens that delimit thoughts or answers, and so must be seen in the text.
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
        # `skip_special_tokens` would hide special delimiters too, so the others are filtered out by hand (`decode`).
        self._hidden = frozenset(number for number, content in special.items() if content not in self.shown)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones except for those that delimit thoughts."""
        if not self.shown:
            return str(self._backend.decode(list(ids), skip_special_tokens=True))
        return str(
            self._backend.decode([number for number in ids if number not in self._hidden], skip_special_tokens=False)
        )

    def is_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt ends inside of a thought."""
        return self.form.is_open(str(self._backend.decode(list(prompt_ids[-_TAIL_TOKENS:]), skip_special_tokens=False)))

    def split(self, ids: Sequence[int], *, is_open: bool) -> tuple[ThoughtAndAnswer, int]:
        """Generated tokens taken apart, and how many of them are thought, delimiters included."""
        reader = self.form.reader(is_open=is_open)
        first, last = reader.add(self.decode(ids)), reader.end()
        found = ThoughtAndAnswer(
            first.reasoning + last.reasoning or None, first.content + last.content, reader.is_closed
        )
        if not reader.has_thought:
            return found, 0
        # Token by token: tokens and characters do not share borders, so the split text alone cannot be counted.
        tokens = ThoughtTokens(self.form, self.decode, is_open=is_open)
        for token in ids:
            tokens.take(token)
        return found, tokens.num_thinking

    def budget(self, asked: int | None, room_tokens: int) -> int:
        """Tokens that a thought may take beside the answer's; 0 where it shares the answer's limit.

        Args:
            asked: as `Prompt.max_thinking_tokens`.
            room_tokens: what the context leaves; the result is at most that.
        """
        if self.form.prompt_closes:
            return 0
        if asked is None:
            asked = THINKING_TOKENS if self.is_known else 0
        return max(0, min(asked, room_tokens))

    @property
    def closing_ids(self) -> list[int]:
        """Tokens that end a thought, for engines that hold an answer to a form from its first token on."""
        return list(self._backend.encode(f"{self.form.end}\n\n", add_special_tokens=False).ids)

    def of_answer(self, prompt_ids: Sequence[int], asked: int | None, room_tokens: int) -> Thinking:
        """The thought of the answer to a prompt.

        Args:
            prompt_ids: of the prompt, whose end may open a thought.
            asked, room_tokens: as in `budget`.
        """
        return Thinking(self.form, self.is_open(prompt_ids), self.budget(asked, room_tokens), self.shown)

    def limit(self, max_new_tokens: int, max_thinking_tokens: int, *, is_open: bool) -> Callable[[], ThoughtLimit]:
        """Makes the limit of one answer whose thought has a budget of its own."""
        return lambda: ThoughtLimit(
            ThoughtTokens(self.form, self.decode, is_open=is_open), max_new_tokens, max_thinking_tokens
        )

    def constrained(self, make: Callable[[], _GrammarConstraint], *, is_open: bool) -> Callable[[], _GrammarConstraint]:
        """A constraint that lets the model end its thought first, where the prompt has opened one."""
        if not is_open:
            return make
        return lambda: GuideBehindThought(make(), ThoughtTokens(self.form, self.decode, is_open=True))


class ThoughtTokens:
    """Follows one answer token by token.

    Attributes:
        num_thinking: tokens of its thought so far, delimiters included.
    """

    def __init__(self, form: ThinkingFormat, decode: Callable[[Sequence[int]], str], *, is_open: bool) -> None:
        self._reader, self._text = form.reader(is_open=is_open), TextStream(decode)
        self._num = self.num_thinking = 0

    @property
    def is_thinking(self) -> bool:
        """Whether what was written ends inside of a thought."""
        return self._reader.is_thinking

    @property
    def is_undecided(self) -> bool:
        """Whether what was written may yet turn out to begin a thought."""
        return self._reader.is_undecided

    def take(self, token: int) -> None:
        """One more token."""
        self._num += 1
        # The thought is over for good: the rest of the answer need not be decoded here.
        if self._reader.is_answering:
            return
        was_thinking = self._reader.is_thinking
        self._reader.add(self._text.add(token))
        # Either: the tokens of the opening and of the closing delimiter belong to the thought.
        if was_thinking or self._reader.is_thinking:
            self.num_thinking = self._num


class ThoughtLimit:
    """Ends an answer whose thought, or what follows the thought, is too long."""

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
    """A constraint of the answer, which leaves the thought before it alone."""

    def __init__(self, constraint: _GrammarConstraint, tokens: ThoughtTokens) -> None:
        self._constraint, self._tokens = constraint, tokens

    def mask(self, logits: Tensor) -> Tensor:
        """[vocabulary] as the constraint says, once the thought has ended."""
        return logits if self._tokens.is_thinking else self._constraint.mask(logits)

    def take(self, token: int) -> None:
        """This token was drawn."""
        # Until the thought has ended the grammar's parser must not see a token.
        if self._tokens.is_thinking:
            self._tokens.take(token)
        else:
            self._constraint.take(token)


class AnswerText:
    """The text of one answer as it comes: without its thought, and up to a stop text.

    A stop text ends the answer; within the thought it means nothing.

    Attributes:
        num_thinking: tokens of the thought so far, delimiters included.
        num_dropped: characters of the text so far that are no part of the answer: the thought, and delimiters.
    """

    def __init__(self, asked: TextRequest, thinking: Thinking) -> None:
        form = thinking.form
        self._reader: ThoughtReader | None = None if form is None else form.reader(is_open=thinking.is_open)
        self._stops = StopTexts(asked.stop)
        self._most_new, self._most_thinking = asked.max_new_tokens, thinking.max_tokens
        self.num_thinking = self.num_dropped = 0
        self._num_read = self._num_answered = 0

    def is_full(self, num_tokens: int) -> bool:
        """Whether the thought, or what follows it, has reached its own limit.

        Args:
            num_tokens: of all that was written.
        """
        if not self._most_thinking or self._reader is None:
            return False
        if self._reader.is_thinking or self._reader.is_undecided:
            return num_tokens >= self._most_thinking
        return num_tokens - self.num_thinking >= self._most_new

    @property
    def found_stop(self) -> bool:
        """Whether a stop text has ended the answer."""
        return self._stops.found

    @property
    def ends_in_thought(self) -> bool:
        """Whether what was written so far ends inside of a thought."""
        return self._reader is not None and self._reader.is_thinking

    def add(self, text: str, num_tokens: int) -> tuple[str, str]:
        """What is certain with this text: more of the thought, and more of the answer.

        Args:
            num_tokens: of all that was written so far.
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
        """What was held back: no text comes any more."""
        if self._reader is None:
            return "", self._stops.end()
        if self._reader.is_thinking:
            self.num_thinking = num_tokens
        reasoning, answer = self._reader.end()
        return reasoning, self._stops.add(self._counted(answer)) + self._stops.end()

    def _counted(self, answer: str) -> str:
        assert self._reader is not None
        self._num_answered += len(answer)
        # Text that the reader holds back is undecided: neither dropped nor answered.
        self.num_dropped = self._num_read - self._num_answered - self._reader.num_held
        return answer


class RequestTemplates:
    """The template and the form of thoughts for each request, which may set options of the template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._made: dict[str, tuple[ChatTemplate, Thoughts]] = {}
        self._lock = threading.Lock()

    def of(self, asked: TextRequest) -> tuple[ChatTemplate, Thoughts]:
        """Those for a request.

        Raises:
            RequestError: an option that the template never reads.
            TemplateError: one that it fails on.
        """
        # Later ones win: what the request sets, then what the model was trained with, then the template's own.
        options = dict(self._template.options) | asked.trained_options | requested_options(self._template, asked)
        key = json.dumps(options, sort_keys=True)
        # Requests are prepared in several threads: looked up, evicted and added under one lock, made outside of it,
        # since a template that is probed takes a while.
        with self._lock:
            found = self._made.get(key)
        if found is None:
            template = self._template.with_options(options)
            found = template, Thoughts(template)
            with self._lock:
                if len(self._made) >= _MAX_TEMPLATES and key not in self._made:
                    self._made.pop(next(iter(self._made)))  # a dict keeps its order: the oldest goes
                self._made[key] = found
        return found


def requested_options(template: ChatTemplate, asked: TextRequest) -> dict[str, TemplateOption]:
    """What a request sets: its options of the template, and those that represent its effort of reasoning.

    Raises:
        RequestError: what the template never reads.
    """
    if not asked.template_options and asked.reasoning_effort is None:
        return {}
    text = str(template.tokenizer.get_chat_template()) if template.kind == "chat" else ""
    return options_of(text, template.tokenizer.special_tokens_map, asked.template_options, asked.reasoning_effort)
