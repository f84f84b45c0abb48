"""Parses the chunks of a streamed answer of OpenAI's API into events.

API reference of OpenAI: "The chat completion chunk object", "The completion object".
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from luthier.core.stream import CallPiece, Ended, EndReason, Piece, TextRequest, TokenLikelihood, WrittenToken
from luthier.core.text.utf8 import CharacterHalves, whole_characters
from luthier.ml.inference.engine_prompts import CallsInText
from luthier.ml.inference.models.templates.thinking import TAGS
from luthier.ml.inference.openai.messages import usage_detail
from luthier.ml.inference.thoughts import NO_THINKING, AnswerText, Thinking

if TYPE_CHECKING:
    import httpx2

_REASONS: Final[dict[str, EndReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    # The answer ends there for a reason other than its length.
    "content_filter": "stop",
}
_MATCHED_STOPS: Final = ("stop_reason", "matched_stop")
"""Fields of a choice for the stop text that ended it: vLLM's, SGLang's."""
_LINE_END: Final = re.compile(r"\r\n|\n|\r")


def event_stream_lines(response: httpx2.Response) -> Iterator[str]:
    """The lines of server-sent events, without line ends, as they arrive.

    A line ends at a line feed, a carriage return or both (HTML standard, "Parsing an event stream"). `iter_lines` of
    the HTTP client also splits at U+2028, U+0085 and others, which JSON leaves unescaped inside a text.
    """
    lines = _Lines()
    for text in response.iter_text():
        yield from lines.feed(text)
    yield from lines.end()


async def async_event_stream_lines(response: httpx2.Response) -> AsyncIterator[str]:
    """`event_stream_lines` of a response of an asynchronous client."""
    lines = _Lines()
    async for text in response.aiter_text():
        for line in lines.feed(text):
            yield line
    for line in lines.end():
        yield line


class _Lines:
    """Splits text that arrives in arbitrary pieces into lines."""

    def __init__(self) -> None:
        self._open: list[str] = []  # the pieces of the current incomplete line
        self._has_open_return = False

    def feed(self, text: str) -> list[str]:
        """The lines that end in this piece of text."""
        if self._has_open_return:
            text = "\r" + text
        # A carriage return may be the first half of a line end that is completed by the next piece.
        self._has_open_return = text.endswith("\r")
        *ended, rest = _LINE_END.split(text.removesuffix("\r"))
        if ended:
            ended[0] = "".join(self._open) + ended[0]
            self._open = []
        self._open.append(rest)
        return ended

    def end(self) -> list[str]:
        """The last line, if it has no line end."""
        last = "".join(self._open)
        self._open, self._has_open_return = [], False
        return [last] if last else []


class ChunkReader:
    """Parses one choice.

    Its methods raise ValueError, KeyError, TypeError or AttributeError for a chunk of another form.

    Args:
        asked: the request.
        choice: index of the choice, from 0.
        calls: parses them from the text, if the server leaves them there.
        thinking: the format of reasoning in the text; for chats by default `<think>` tags, if the server does not
            return it separately (`reasoning_content` or `reasoning`).
    """

    def __init__(
        self, asked: TextRequest, choice: int, calls: CallsInText | None = None, thinking: Thinking | None = None
    ) -> None:
        self._asked, self._choice, self._in_text = asked, choice, calls or CallsInText(asked, None)
        self._is_chat = asked.conversation is not None
        usual = Thinking(TAGS) if self._is_chat else NO_THINKING
        self._answer = AnswerText(asked, thinking or usual, self._in_text.for_stops)
        self._most_new = asked.max_new_tokens + (thinking or usual).max_tokens
        self._num_thinking = 0
        # Servers that count in UTF-16 may cut a character into its two halves.
        self._text_halves, self._thought_halves = CharacterHalves(), CharacterHalves()
        self._num_new: int | None = None
        self._num_prompt: int | None = None
        self._num_cached = 0
        self._num_chunks = self._num_characters = self._num_emitted = 0
        self._calls = _Calls()
        self._open_tokens: list[WrittenToken] = []
        self._num_open_thought_tokens = 0
        self._reason: EndReason | None = None
        self._stop_text: str | None = None

    @property
    def found_stop(self) -> bool:
        """Whether a stop text or a limit ended the answer, so that the rest need not be read."""
        return self._answer.found_stop or self._is_full

    @property
    def _is_full(self) -> bool:
        return self._answer.is_full(self._num_chunks)

    @property
    def _num_so_far(self) -> int:
        """Tokens so far, as counted by the server, or the number of chunks, which contain one or a few tokens each."""
        return self._num_new if self._num_new else self._num_chunks

    def read(self, data: str) -> list[Piece]:
        """The events in the data of one server-sent event.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: a chunk has another form, or reports an error.
        """
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("has a chunk that is not an object")
        if (error := document.get("error")) is not None:
            words = error.get("message") if isinstance(error, dict) else error
            raise ValueError(f"reports an error in the middle: {str(words)[:400]}")
        self._read_usage(document.get("usage"))
        choices = document.get("choices")
        if not isinstance(choices, list):
            raise ValueError("has a chunk without choices")
        if not choices:
            return []  # the chunk with the total counts
        said = choices[0]
        if not isinstance(said, dict):
            raise ValueError("has a choice that is not an object")
        # A chat sends new text in `delta`; a completion sends it in the choice itself.
        delta = said.get("delta") or {} if self._is_chat else said
        text = (delta.get("content") or delta.get("refusal") if self._is_chat else delta.get("text")) or ""
        if not isinstance(text, str):
            raise ValueError("has a text that is none")
        reasoning = (delta.get("reasoning_content") or delta.get("reasoning") or "") if self._is_chat else ""
        if not isinstance(reasoning, str):
            raise ValueError("has a thought that is not text")
        text, reasoning = self._text_halves.add(text), self._thought_halves.add(reasoning)
        # The only count while streaming: `usage` arrives with the last chunk.
        self._num_chunks += bool(text) or bool(reasoning)
        text = self._in_text.shown(text)
        self._num_thinking += bool(reasoning)
        calls = tuple(self._calls.piece(call) for call in delta.get("tool_calls") or ())
        if text or not calls:  # else they are of the calls
            self._read_tokens(said.get("logprobs"), is_of_thought=not text and self._is_before_answer)
        self._num_characters += len(text)
        if (reason := said.get("finish_reason")) is not None:
            self._reason = _REASONS.get(str(reason), "stop")
            # vLLM and others name the stop text that they have cut off; OpenAI's API does not.
            matched = next((said[name] for name in _MATCHED_STOPS if isinstance(said.get(name), str)), None)
            self._stop_text = matched if matched in self._asked.stop else None
        thought, text = self._answer.add(text, self._num_so_far)
        return self._piece(reasoning + thought, text, calls)

    def end(self) -> list[Piece | Ended]:
        """The remaining events and the end: the server closed the stream properly, or a stop text was found.

        Raises:
            ValueError: the server did not report the finish reason or the usage.
        """
        if self._answer.found_stop or (self._is_full and self._reason is None):
            # The rest, including the usage, is not waited for; chunks contain one or a few tokens each.
            num_new = self._num_new if self._num_new is not None else self._num_chunks
            num_emitted = self._answer.num_dropped + self._num_emitted
            self._open_tokens = [token for token in self._open_tokens if token.offset < num_emitted]
            reason: EndReason = "stop" if self._answer.found_stop else "length"
        elif self._reason is None:
            raise ValueError("ends without a finish_reason: the connection was cut in the middle")
        elif self._num_new is None:
            raise ValueError("does not say how many tokens were used (stream_options.include_usage)")
        else:
            reason, num_new = self._reason, self._num_new
        reasoning, left = ("", "") if self._answer.found_stop else self._left(num_new)
        pieces: list[Piece | Ended] = list(self._piece(reasoning, left, (), is_last=True))
        # Servers that count hidden tokens may report more than was allowed.
        if reason == "length":
            num_new = min(num_new, self._most_new)
        return [
            *pieces,
            Ended(
                choice=self._choice,
                reason=self._in_text.reason(reason),
                num_new_tokens=num_new,
                num_prompt_tokens=self._num_prompt if self._asked.token_ids is None else None,
                num_cached_tokens=self._num_cached,
                num_thinking_tokens=min(max(self._num_thinking, self._answer.num_thinking), num_new),
                ends_in_thought=self._answer.ends_in_thought or (bool(self._num_thinking) and not self._num_emitted),
                stop_text=self._answer.stop_text or self._stop_text,
            ),
        ]

    def _left(self, num_new: int) -> tuple[str, str]:
        """What was held back of thought and answer."""
        thought, text = self._answer.add(self._text_halves.end(), num_new)
        more, rest = self._answer.end(num_new)
        return self._thought_halves.end() + thought + more, text + rest

    @property
    def _is_before_answer(self) -> bool:
        """Whether the server has sent thoughts apart, and no text of the answer so far."""
        return bool(self._num_thinking) and not self._num_characters

    def _read_tokens(self, reported: Any, *, is_of_thought: bool) -> None:
        found = _tokens_of(reported, self._num_characters, self._asked.num_top, self._shown_token)
        if is_of_thought:
            # Their text is no part of that of the answer, in which places are counted.
            found = [token.model_copy(update={"offset": self._num_characters}) for token in found]
            self._num_open_thought_tokens += len(found)
        self._open_tokens += found

    def _shown_token(self, name: str) -> str:
        return whole_characters(self._in_text.shown(name))

    def _read_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError("counts its tokens in no numbers")
        self._num_prompt, self._num_new = counts
        self._num_cached = usage_detail(usage, "prompt_tokens_details", "cached_tokens")
        # The server's own count replaces that of chunks.
        if reported := usage_detail(usage, "completion_tokens_details", "reasoning_tokens"):
            self._num_thinking = reported

    def _piece(self, reasoning: str, text: str, calls: tuple[CallPiece, ...], *, is_last: bool = False) -> list[Piece]:
        self._num_emitted += len(text)
        tokens: Sequence[WrittenToken] = ()
        if self._open_tokens and (text or reasoning or is_last):
            num_emitted = self._answer.num_dropped + self._num_emitted
            tokens = [token for token in self._open_tokens if is_last or token.offset < num_emitted]
            self._open_tokens = self._open_tokens[len(tokens) :]
        num_thought = max(min(self._num_open_thought_tokens, len(tokens)), self._answer.num_of_thought(tokens))
        self._num_open_thought_tokens -= min(self._num_open_thought_tokens, len(tokens))
        text, found = self._in_text.split(text, is_last=is_last)
        calls += found
        kept = self._in_text.text_tokens(tokens, num_thought, self._answer.answer_start, is_last=is_last)
        if not (text or reasoning or kept or calls):
            return []
        return [
            Piece(
                choice=self._choice,
                text=text,
                num_new_tokens=self._num_new or 0,
                tokens=kept,
                num_thought_tokens=num_thought,
                calls=calls,
                reasoning=reasoning,
            )
        ]


@dataclass(slots=True)
class _Begun:
    """A call that has begun.

    Attributes:
        number: of the call in the answer.
        name: of the tool.
        sent_id: as the server names the call; empty for no id.
        arguments: so far.
        halves: puts cut characters of them together.
    """

    number: int
    name: str
    sent_id: str
    arguments: str = ""
    halves: CharacterHalves = field(default_factory=CharacterHalves)

    def more(self, arguments: str) -> str:
        """Take in more arguments; returns what is whole of them."""
        whole = self.halves.add(arguments)
        self.arguments += whole
        return whole

    def is_whole(self) -> bool:
        """Whether its arguments are complete."""
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True


class _Calls:
    """Numbers the calls of one answer.

    Some servers give every call of an answer the index 0, or none, and some repeat the name in each chunk. So a call
    begins with the first name at an index, and with a name that comes there with another id, or with arguments behind
    those that are complete. Older versions of vLLM give each chunk of a call that was required by name an id of its
    own: an id that changes before the arguments are complete says nothing.
    """

    def __init__(self) -> None:
        self._ids_change = False
        self._begun: dict[int, _Begun] = {}  # by the index that the server sends: the last one
        self._num = 0

    def piece(self, call: Any) -> CallPiece:
        """More of a call.

        Raises:
            ValueError, TypeError, AttributeError: it has another form, or continues with a call that has not begun.
        """
        function = call.get("function") or {}
        name, arguments = whole_characters(function.get("name") or "") or None, function.get("arguments") or ""
        index, sent_id = int(call.get("index", 0)), whole_characters(str(call.get("id") or ""))
        known = self._begun.get(index)
        if known is not None and (name is None or not self._is_another(known, name, sent_id, arguments)):
            return CallPiece(index=known.number, arguments=known.more(arguments))
        if name is None:
            raise ValueError("continues with a call of a tool that has not begun")
        begun = self._begun[index] = _Begun(self._num, name, sent_id)
        self._num += 1
        # Some servers send no id: results could not be told apart.
        call_id = sent_id or f"call_{uuid.uuid4().hex[:24]}"
        arguments = begun.more(arguments)
        return CallPiece(index=begun.number, call_id=call_id, name=name, arguments=arguments)

    def _is_another(self, known: _Begun, name: str, sent_id: str, arguments: str) -> bool:
        """Whether a name at the index of a call begins another one."""
        if name != known.name:
            return True
        if sent_id and known.sent_id and not self._ids_change:
            self._ids_change = sent_id != known.sent_id and bool(known.arguments) and not known.is_whole()
            return sent_id != known.sent_id and not self._ids_change
        return bool(arguments.strip()) and known.is_whole()


def _tokens_of(reported: Any, offset: int, num_top: int | None, shown: Callable[[str], str]) -> list[WrittenToken]:
    """Log-probabilities in the format of chats (`content`) or of completions (parallel lists).

    A hidden token has no text (`shown`), as the engine transformers gives it.
    """
    if num_top is None or not isinstance(reported, dict):
        return []
    if (content := reported.get("content")) is not None:
        rows = [
            (one["token"], one["logprob"], [(t["token"], t["logprob"]) for t in one.get("top_logprobs") or ()])
            for one in content
        ]
    else:
        tokens, values = reported.get("tokens") or [], reported.get("token_logprobs") or []
        tops = reported.get("top_logprobs") or [{}] * len(tokens)
        rows = [
            (token, value, list((top or {}).items())) for token, value, top in zip(tokens, values, tops, strict=True)
        ]
    found = []
    for name, value, top in rows:
        token = shown(name)
        likeliest = sorted(top, key=lambda pair: -float(pair[1]))[:num_top]
        found.append(
            WrittenToken(
                chosen=TokenLikelihood(token=token, log_probability=float(value)),
                offset=offset,
                top=tuple(
                    TokenLikelihood(token=shown(other), log_probability=float(number)) for other, number in likeliest
                ),
            )
        )
        offset += len(token)
    return found
