"""How a conversation becomes the model's text, and that text its tokens.

Two kinds. `chat`: the template that comes with the model, rendered by transformers in its jinja sandbox. `plain`: for
base models, which have none; one fixed layout, for any number of turns:

    every system and user message      its content, then a line feed
    every assistant message            its content, then the end-of-text token

so the prompt of an answer is simply everything before it, and the generation prompt adds nothing.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation, Message
from luthier.core.digest import sha256_bytes, sha256_document
from luthier.core.errors import RequestError, TemplateError
from luthier.core.json_limits import loads
from luthier.core.library_errors import library_reason
from luthier.models.bounded_jinja import use_bounded_sandbox
from luthier.models.loading import load_tokenizer
from luthier.models.template_probe import check_template
from luthier.models.token_bytes import TokenBytes

_RENDER_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip
use_bounded_sandbox()
_PROBE_QUESTION, _PROBE_ANSWER = "Which wood?", "Spruce-wood"

# Some templates write today's date. A run that is resumed tomorrow must see the tokens that it saw today, so they get
# one fixed day; models take it as the day of the conversation.
_FIXED_DAY = datetime.date(2025, 1, 1)
_DAY_CALL = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


def template_digest(template: str | dict[str, str] | None) -> str:
    """The digest of a template's text; without a template, of the name of the plain layout."""
    if not template:
        return sha256_bytes(b"plain")
    return sha256_document(template) if isinstance(template, dict) else sha256_bytes(template.encode())


class ChatTemplate:
    """One model's way to write conversations, with its tokenizer.

    Made by `load`. Attributes: kind; sha256 of the template text (or of the name "plain"); tokenizer; end_of_turn,
    the text of the token that ends an assistant's turn; end_of_turn_ids, the token ids that end a generation: the
    template's own first, then the tokenizer's and the generation config's; options, what the template is given beside
    the conversation, such as `enable_thinking`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        kind: Literal["chat", "plain"],
        *,
        stop_ids: tuple[int, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.kind: Literal["chat", "plain"] = kind
        self.options: Mapping[str, Any] = MappingProxyType(dict(options or {}))
        self._stop_ids = stop_ids
        self.sha256 = template_digest(tokenizer.chat_template if kind == "chat" else None)
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer file may ask for truncation or padding: both would change the data without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._token_bytes = TokenBytes(self._backend)
        self._knows_developer = "developer" in json.dumps(tokenizer.chat_template or "")
        own_id, self.end_of_turn = self._probe_end_of_turn()
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_of_turn_ids: tuple[int, ...] = tuple(dict.fromkeys((own_id, *eos, *stop_ids)))
        self._beginning = self._probe_beginning()

    @classmethod
    def load(
        cls,
        path: str | Path,
        kind: Literal["auto", "chat", "plain"] = "auto",
        *,
        is_new: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> ChatTemplate:
        """The template of a transformers folder; `auto` takes the model's own if it has one, else the plain layout.

        is_new: the model comes from elsewhere: its template is tried first in a process with bounds. options: what the
        template is given beside each conversation.

        Raises:
            RequestError: `chat` was asked for and the model has no template, or `plain` and it has no end token.
            TemplateError: the model's template cannot end a turn, or fails on the simplest conversation; or, of one
                that is new, takes too much.
        """
        tokenizer = load_tokenizer(path)
        if is_new:
            check_template(tokenizer.chat_template, tokenizer.special_tokens_map)
        if kind == "chat" and not tokenizer.chat_template:
            raise RequestError(
                f"template kind 'chat' for {path}, which has no chat template",
                expected="'plain' or 'auto' for a base model",
                do="set `template: plain`, or choose the instruction-tuned variant of the model",
            )
        chosen: Literal["chat", "plain"] = "plain" if kind == "plain" or not tokenizer.chat_template else "chat"
        return cls(tokenizer, chosen, stop_ids=_generation_stop_ids(Path(path)), options=options)

    def with_options(self, options: Mapping[str, Any]) -> ChatTemplate:
        """The same template with these options in place of its own; itself where they are the same."""
        if dict(options) == dict(self.options):
            return self
        return ChatTemplate(self.tokenizer, self.kind, stop_ids=self._stop_ids, options=options)

    def render(
        self, conversation: Conversation, *, add_generation_prompt: bool = False, writes_today: bool = False
    ) -> str:
        """The conversation as the model's text; with `add_generation_prompt`, up to where the next answer starts.

        The same on every day: templates that write the date get a fixed one, but for `writes_today`, which is what
        other runtimes do. Weights leave no trace.

        Raises:
            TemplateError: the template fails on it, or the plain layout cannot express it.
        """
        if self.kind == "plain":
            return self._render_plain(conversation)
        messages = [self._as_dict(index, message) for index, message in enumerate(conversation.messages)]
        try:
            return self._render_chat(messages, conversation.tools, add_generation_prompt, writes_today)
        except _RENDER_ERRORS as error:
            raise self._render_error(messages, conversation.tools, error) from error

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of the text, and for each the range of characters that it covers.

        Special tokens written in the text become special tokens; none is added, but for a beginning-of-text token
        where this tokenizer puts one and the text does not start with it: that one covers (0, 0).
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._beginning is None or encoding.ids[:1] == [self._beginning]:
            return encoding.ids, encoding.offsets
        return [self._beginning, *encoding.ids], [(0, 0), *encoding.offsets]

    def ids(self, text: str) -> list[int]:
        """The token ids of `encode`, without the characters that they cover.

        Other threads of this process run on while a long text is tokenised, which they do not in `encode`.
        """
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids if self._beginning is None or ids[:1] == [self._beginning] else [self._beginning, *ids]

    def least_tokens(self, text: str) -> int:
        """No fewer tokens than this has the text, by its bytes; 0 where that cannot be known of this tokenizer."""
        return self._token_bytes.least_tokens(text)

    def _render_plain(self, conversation: Conversation) -> str:
        if conversation.tools:
            raise TemplateError(
                f"a conversation with {len(conversation.tools)} tools for a model without a chat template",
                expected="messages only: the plain layout has no way to write tools",
                do="choose a model whose template knows tools, or leave `tools` out",
            )
        pieces = []
        for index, message in enumerate(conversation.messages):
            if message.tool_calls or message.role in ("tool", "function"):
                raise TemplateError(
                    f"message {index + 1} ({message.role}) calls a tool or answers for one",
                    expected="system, user and assistant messages with text: the plain layout has no others",
                    do="choose a model whose template knows tools, or take such rows out",
                )
            pieces.append((message.content or "") + (self.end_of_turn if message.role == "assistant" else "\n"))
        return "".join(pieces)

    def _render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: tuple[dict[str, Any], ...],
        add_generation_prompt: bool,
        writes_today: bool = False,
    ) -> str:
        schemas = list(tools) or None
        template = self.tokenizer.get_chat_template(tools=schemas)
        if not writes_today:
            template = _DAY_CALL.sub(lambda call: json.dumps(_FIXED_DAY.strftime(call["format"])), template)
        rendered = self.tokenizer.apply_chat_template(
            messages,
            tools=schemas,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.options,
        )
        return str(rendered)

    def _as_dict(self, index: int, message: Message) -> dict[str, Any]:
        """The message as templates expect it: arguments as an object, no weight, a role that the template knows."""
        role = "system" if message.role == "developer" and not self._knows_developer else message.role
        document: dict[str, Any] = {"role": role, "content": message.content or ""}
        if message.name is not None:
            document["name"] = message.name
        if message.tool_call_id is not None:
            document["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            document["tool_calls"] = [_parsed_call(index, call) for call in message.tool_calls]
        return document

    def _render_error(
        self, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...], error: Exception
    ) -> TemplateError:
        reason = str(error) or type(error).__name__
        return TemplateError(
            f"the chat template fails at {self._first_failing(messages, tools)}: {reason}",
            expected="a conversation that this model's template can write",
            do="change the row (order of roles, a system message, tools), or use `template: plain`",
        )

    def _first_failing(self, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...]) -> str:
        """Which message breaks the template: one whose conversation fails while that before it does not.

        Found by halving: a conversation of 2,048 messages is rendered 12 times, not 2,048.
        """

        def fails(count: int) -> bool:
            try:
                self._render_chat(messages[:count], tools, False)
            except _RENDER_ERRORS:
                return True
            return False

        sound, failing = 0, len(messages)
        if not fails(failing):
            return f"the end of {len(messages)} messages"
        while failing - sound > 1:
            middle = (sound + failing) // 2
            sound, failing = (sound, middle) if fails(middle) else (middle, failing)
        return f"message {failing} of {len(messages)} ({messages[failing - 1]['role']})"

    def _probe_end_of_turn(self) -> tuple[int, str]:
        """Id and text of the token that the template writes after an assistant's answer."""
        if self.kind == "plain":
            if self.tokenizer.eos_token_id is None:
                raise RequestError(
                    "a tokenizer without an end-of-text token for the plain layout",
                    expected="an eos_token, so that the model can learn where an answer ends",
                    do="choose another base model, or set eos_token in its tokenizer_config.json",
                )
            return self.tokenizer.eos_token_id, str(self.tokenizer.eos_token)
        text = self.render(_probe())
        tail = text[text.rfind(_PROBE_ANSWER) + len(_PROBE_ANSWER) :] if _PROBE_ANSWER in text else ""
        added = self.tokenizer.added_tokens_decoder
        for token_id in self._backend.encode(tail, add_special_tokens=False).ids:
            if token_id in added and added[token_id].content.strip():
                return token_id, added[token_id].content
        raise TemplateError(
            f"the chat template writes {tail[:80]!r} after an answer: no token that ends the turn",
            expected="a special token after the assistant's content, so that the model can learn where to stop",
            do="use `template: plain`, or repair chat_template.jinja in the model's folder",
        )

    def _probe_beginning(self) -> int | None:
        """The beginning-of-text token if encode must add it where a text lacks it, else None.

        It must where the tokenizer itself does so, unless a chat template leaves it out on purpose.
        """
        bos: int | None = self.tokenizer.bos_token_id
        if bos is None or self._backend.encode("a", add_special_tokens=True).ids[:1] != [bos]:
            return None
        if self.kind == "chat":
            first = self._backend.encode(self.render(_probe()), add_special_tokens=False).ids[:1]
            return bos if first == [bos] else None
        return bos


def _probe() -> Conversation:
    messages = (Message(role="user", content=_PROBE_QUESTION), Message(role="assistant", content=_PROBE_ANSWER))
    return Conversation(messages=messages)


def _parsed_call(index: int, call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object; OpenAI's format has them as JSON text."""
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            reason = library_reason(error)
            raise TemplateError(
                f"message {index + 1} calls {function.get('name')!r} with arguments {arguments[:80]!r}: {reason}",
                expected="arguments as JSON text",
                do="repair the row",
            ) from error
    return {**call, "function": function}


def _generation_stop_ids(folder: Path) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    if not file.is_file():
        return ()
    eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
