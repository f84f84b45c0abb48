"""Thoughts and answers in what one model writes: the one place where generated tokens become answers.

With the format that its chat template shows (`models.thinking`); a model whose template says nothing of thoughts may
still have learned to write them in `<think>` tags, so an answer that begins with `<think>` is taken apart for every
model. Only answers to conversations are: what goes on after a plain text is text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from luthier.core.ports import THINKING_TOKENS, Prompt
from luthier.engines.text_stream import TextStream
from luthier.models.thinking import TAGS, ThinkingFormat, ThoughtAndAnswer, ThoughtReader, thinking_format

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.models.chat_template import ChatTemplate

# The delimiter that opens a thought is the last thing in a prompt; it has few tokens.
_TAIL_TOKENS = 32


class _Guide(Protocol):
    def mask(self, logits: Tensor) -> Tensor: ...
    def take(self, token: int) -> None: ...


class Thoughts:
    """How one model writes its thoughts, with its tokenizer.

    Attributes:
        form: the delimiters. is_known: whether the template shows them, rather than `<think>` being assumed.
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
        self._hidden = frozenset(number for number, content in special.items() if content not in self.shown)

    @property
    def may_think(self) -> bool:
        """Whether the model is expected to think: its template knows of thoughts and has not closed an empty one."""
        return self.is_known and not self.form.prompt_closes

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones but for those that delimit thoughts."""
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
        found = ThoughtAndAnswer(first.reasoning + last.reasoning or None, first.content + last.content, reader.is_closed)
        if not reader.has_thought:
            return found, 0
        tokens = ThoughtTokens(self.form, self.decode, is_open=is_open)
        for token in ids:
            tokens.take(token)
        return found, tokens.num_thinking

    def reader(self, *, is_open: bool) -> ThoughtsInText:
        """Takes the text of one answer apart as it comes."""
        return ThoughtsInText(self.form, is_open=is_open)

    def budget(self, prompt: Prompt, room_tokens: int) -> int:
        """Tokens that a thought may take beside the answer's, at most `room_tokens`; 0 where it shares the answer's."""
        if prompt.conversation is None or self.form.prompt_closes:
            return 0
        asked = prompt.max_thinking_tokens
        if asked is None:
            asked = THINKING_TOKENS if self.is_known else 0
        return max(0, min(asked, room_tokens))

    def limit(self, max_new_tokens: int, max_thinking_tokens: int, *, is_open: bool) -> Callable[[], ThoughtLimit]:
        """Makes the limit of one answer whose thought has a budget of its own."""
        return lambda: ThoughtLimit(
            ThoughtTokens(self.form, self.decode, is_open=is_open), max_new_tokens, max_thinking_tokens
        )

    def guided(self, make: Callable[[], _Guide], *, is_open: bool) -> Callable[[], _Guide]:
        """A guide that lets the model end its thought first, where the prompt has opened one."""
        if not is_open:
            return make
        return lambda: GuideBehindThought(make(), ThoughtTokens(self.form, self.decode, is_open=True))


class ThoughtTokens:
    """Follows one answer token by token. num_thinking: tokens of its thought so far, delimiters included."""

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
        if self._reader.is_answering:
            return
        was_thinking = self._reader.is_thinking
        self._reader.add(self._text.add(token))
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
    """A guide of the answer, which leaves the thought before it alone."""

    def __init__(self, guide: _Guide, tokens: ThoughtTokens) -> None:
        self._guide, self._tokens = guide, tokens

    def mask(self, logits: Tensor) -> Tensor:
        """[vocabulary] as the guide says, once the thought has ended."""
        return logits if self._tokens.is_thinking else self._guide.mask(logits)

    def take(self, token: int) -> None:
        """This token was drawn."""
        if self._tokens.is_thinking:
            self._tokens.take(token)
        else:
            self._guide.take(token)


class ThoughtsInText:
    """Takes the thought out of the text of one answer that comes in pieces.

    Attributes:
        num_tokens: tokens of the thought so far, delimiters included.
        num_dropped: characters of the text so far that are no part of the answer: the thought, and delimiters.
    """

    def __init__(self, form: ThinkingFormat | None, *, is_open: bool) -> None:
        self._reader: ThoughtReader | None = None if form is None else form.reader(is_open=is_open)
        self.num_tokens = self.num_dropped = 0
        self._num_read = self._num_answered = 0

    def split(self, text: str, num_tokens: int, *, is_last: bool = False) -> tuple[str, str]:
        """What of the text so far is certain: more of the thought, and more of the answer.

        num_tokens: of all that was written so far.
        """
        if self._reader is None:
            return "", text
        was_thinking = self._reader.is_thinking
        reasoning, answer = self._reader.add(text)
        if is_last:
            last = self._reader.end()
            reasoning, answer = reasoning + last.reasoning, answer + last.content
        if was_thinking or self._reader.is_thinking:
            self.num_tokens = num_tokens
        self._num_read += len(text)
        self._num_answered += len(answer)
        self.num_dropped = self._num_read - self._num_answered - self._reader.num_held
        return reasoning, answer
