"""Rendering of conversations as text, and tokenisation of that text.

Two kinds. `chat`: the template of the model, rendered by transformers in its jinja sandbox. `plain`: a fixed layout for
base models without a template, for any number of turns:

    every system and user message      its content, then a line feed
    every assistant message            its content, then the end-of-text token

so the prompt of an answer is everything before it, and the generation prompt is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError, TemplateError
from luthier.core.ids import sha256_bytes, sha256_document
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.piece_encoding import PieceEncoder
from luthier.ml.inference.models.templates.jinja_sandbox import (
    FIXED_DAY,
    TemplateNames,
    checked_options,
    names_of,
    reads_clock,
    use_bounded_sandbox,
)
from luthier.ml.inference.models.templates.loaded_templates import (
    LOADED,
    chosen_kind,
    generation_stop_ids,
    names_pairs,
    template_key,
)
from luthier.ml.inference.models.templates.message_forms import (
    AS_USUAL,
    CALLS,
    EndProbe,
    MessageForms,
    TurnEnd,
    measure_forms,
    parsed_call,
)
from luthier.ml.inference.models.templates.plain_rendering import PlainRenderer
from luthier.ml.inference.models.templates.probe import check_template
from luthier.ml.inference.models.templates.thought_writing import (
    ThoughtWriting,
    measure_writing,
    split_thought,
    tags_of_prompts,
)
from luthier.ml.inference.models.token_counter import TokenBytes

_RENDER_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip
use_bounded_sandbox()
_TAGGED = re.compile(r"<|\[")  # without one of these a text has no tagged reasoning
_PROBE_QUESTION, _PROBE_ANSWER = "Which wood?", "Spruce-wood"


def template_digest(template: str | dict[str, str] | None) -> str:
    """The digest of a template's text; without a template, of the name of the plain layout."""
    if not template:
        return sha256_bytes(b"plain")
    return sha256_document(template) if isinstance(template, dict) else sha256_bytes(template.encode())


class ChatTemplate:
    """The chat template of a model, with its tokenizer.

    Made by `load`. Attributes: kind; sha256 of the template text (or of the name "plain"); tokenizer; end_of_turn, the
    text of the token that ends an assistant's answer; end_of_text, that of the tokenizer's own end, which ends a plain
    text; end_of_turn_ids, the token ids that end a generation: the template's own first, then the tokenizer's and the
    generation config's; end_texts, their texts; options, variables of the template such as `enable_thinking`.
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
        self.options: Mapping[str, Any] = checked_options(options or {})  # a plain dict: it is sent to other processes
        self._stop_ids = stop_ids
        self.sha256 = template_digest(tokenizer.chat_template if kind == "chat" else None)
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer file may ask for truncation or padding: both would change the data silently. Neither is written
        # where it is off: another thread may be encoding a long text, and a tokenizer that is read cannot be changed.
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        self._token_bytes = TokenBytes(self._backend)
        self._pieces = PieceEncoder(self._backend)
        self._renderer = PlainRenderer(tokenizer)
        self._knows_developer = "developer" in json.dumps(tokenizer.chat_template or "")
        self.no_tools: list[Any] | None = None  # the value passed when there are none
        self._forms = AS_USUAL
        self._unasked = ""  # what the template writes behind a conversation as if a generation prompt were asked for
        if kind == "chat":
            self._forms = self._measured_forms()
        self._end, self._call_end = self._probe_ends()
        self.end_of_turn = self._end.text
        # The template's own end token first: `end_of_turn_ids[0]` is what training learns and exports declare.
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        ids = (self._end.id, *eos, *stop_ids, self._call_end.id)
        self.end_of_turn_ids: tuple[int, ...] = tuple(dict.fromkeys(ids))
        self.end_texts: tuple[str, ...] = tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in self.end_of_turn_ids)
        self.end_of_text = str(tokenizer.convert_ids_to_tokens(eos[0])) if eos else self.end_of_turn
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
        """The template of a transformers folder; `auto` uses the model's template if there is one, else `plain`.

        One that this thread still uses is returned again (`loaded_templates`).

        is_new: the template is untrusted and is first tested in a process with limits. options: variables passed to the
        template with each conversation.

        Raises:
            RequestError: `chat` was requested and the model has no template, or `plain` and it has no end token.
            TemplateError: the model's template cannot end a turn, fails on the simplest conversation, or, with
                `is_new`, exceeds the limits.
        """
        key = template_key(Path(path), kind, options)
        if not is_new and (known := LOADED.get(key)) is not None:
            return known
        tokenizer = load_tokenizer(path)
        if is_new:
            check_template(tokenizer.chat_template, tokenizer.special_tokens_map)
        chosen = chosen_kind(kind, path, has_template=bool(tokenizer.chat_template))
        stop_ids = generation_stop_ids(Path(path))
        try:
            made = cls(tokenizer, chosen, stop_ids=stop_ids, options=options)
        except TemplateError:
            # A published reranker: its template writes a query with a document, and no conversation.
            if kind != "auto" or not names_pairs(str(tokenizer.chat_template)):
                raise
            made = cls(tokenizer, "plain", stop_ids=stop_ids, options=options)
        LOADED[key] = made
        return made

    def with_options(self, options: Mapping[str, Any]) -> ChatTemplate:
        """The same template with these options; itself if they are unchanged."""
        if dict(options) == dict(self.options):
            return self
        return ChatTemplate(self.tokenizer, self.kind, stop_ids=self._stop_ids, options=options)

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The conversation as text; with `add_generation_prompt`, and only then, up to where the next answer starts.

        Independent of the date: templates that write it get a fixed one. Message weights have no effect.

        Raises:
            TemplateError: the template fails, or the plain layout cannot express the conversation.
        """
        if self.kind == "plain":
            return self._render_plain(conversation)
        messages = self.documents(conversation)
        try:
            return self._render_chat(messages, conversation.tools, add_generation_prompt)
        except _RENDER_ERRORS as error:
            raise self._render_error(messages, conversation.tools, error) from error

    @property
    def fixed_day(self) -> str | None:
        """The fixed date passed to the template, as YYYY-MM-DD; None if it never reads the date."""
        is_dated = self.kind == "chat" and reads_clock(self.tokenizer.chat_template)
        return FIXED_DAY.date().isoformat() if is_dated else None

    def documents(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The messages as `render` passes them to the template, in the form that a client sends."""
        return self._forms.sent([self._as_dict(index, message) for index, message in enumerate(conversation.messages)])

    def attempt(
        self,
        text: str | None,
        messages: list[dict[str, Any]],
        tools: tuple[dict[str, Any], ...],
        *,
        opens: bool,
        options: Mapping[str, Any] | None = None,
    ) -> str | None:
        """The rendering by another runtime on the fixed date; None if it fails.

        Args:
            text: a template's text; None for this template with its options.
            messages: of the conversation.
            tools: definitions of tools.
            opens: whether a generation prompt is added.
            options: of the template's text.
        """
        try:
            if text is None:
                return self._render_chat(messages, tools, opens)
            found = str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=list(tools) or None,
                    chat_template=text,
                    tokenize=False,
                    add_generation_prompt=opens,
                    **(options or {}),
                )
            )
            return found if opens else found.removesuffix(self._unasked)
        except _RENDER_ERRORS:
            return None

    @cached_property
    def names(self) -> TemplateNames:
        """The names that the template reads; none for the plain layout."""
        if self.kind == "plain":
            return TemplateNames(frozenset(), frozenset())
        found = [names_of(text) for text in self._texts()]
        return TemplateNames(
            frozenset().union(*(one.options for one in found)), frozenset().union(*(one.fields for one in found))
        )

    @cached_property
    def thoughts(self) -> ThoughtWriting | None:
        """How the template writes an assistant's reasoning; None if it does not support any."""
        if self.kind == "plain":
            return None
        return measure_writing(self._attempt, self.names.fields, CALLS) or tags_of_prompts(self._prompts_by_option())

    def parts_of(self, message: Message) -> tuple[str | None, str]:
        """Reasoning and answer of an assistant turn, separated if the template supports reasoning."""
        content = message.content or ""
        if message.reasoning is not None:
            return message.reasoning.strip() or None, content
        if message.role != "assistant" or self.thoughts is None:
            return None, content
        return split_thought(content, self.thoughts)

    def closing(self, message: Message) -> str:
        """The end token to add if the template omits it; empty if the template writes one."""
        end = self._call_end if message.tool_calls else self._end
        return "" if end.is_written else end.text

    def opening_option(self, before: Conversation) -> tuple[str, bool] | None:
        """A boolean option that enables reasoning in the prompt after these turns; None if there is none."""
        for name in sorted(self.names.options):
            for value in (True, False):
                other = self.with_options({**self.options, name: value})
                if other.thoughts is None:
                    continue
                try:
                    prompt = other.render(before, add_generation_prompt=True)
                except TemplateError:
                    continue
                if other.thoughts.state_of(prompt)[0] != "closed":
                    return name, value
        return None

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of the text, and the character range of each.

        Special tokens in the text become special tokens. None is added, except a beginning-of-text token if this
        tokenizer adds one and the text does not start with it; its range is (0, 0).
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._beginning is None or encoding.ids[:1] == [self._beginning]:
            return encoding.ids, encoding.offsets
        return [self._beginning, *encoding.ids], [(0, 0), *encoding.offsets]

    def ids(self, text: str) -> list[int]:
        """The token ids of `encode`, without character ranges; other threads keep running, unlike in `encode`."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """As `ids` of each text, on all cores (RAYON_NUM_THREADS, or TOKENIZERS_PARALLELISM=false for one)."""
        found = self._pieces.encode_all(texts)
        first = self._beginning
        return found if first is None else [ids if ids[:1] == [first] else [first, *ids] for ids in found]

    def least_tokens(self, text: str) -> int:
        """A lower bound on the tokens of the text, from its bytes; 0 if this tokenizer allows none."""
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
        options: Mapping[str, Any] | None = None,
    ) -> str:
        text = self._renderer.render(
            self._forms.applied(messages),
            list(tools) or self.no_tools,
            {**self.options, **(options or {})},
            add_generation_prompt=add_generation_prompt,
        )
        return text if add_generation_prompt else text.removesuffix(self._unasked)

    def _as_dict(self, index: int, message: Message) -> dict[str, Any]:
        """The message as templates expect it: arguments as an object, no weight, a supported role."""
        role = "system" if message.role == "developer" and not self._knows_developer else message.role
        document: dict[str, Any] = {"role": role, "content": message.content or ""}
        if message.role == "assistant" and (message.reasoning is not None or _TAGGED.search(message.content or "")):
            document |= self._with_thought(message)
        if message.name is not None:
            document["name"] = message.name
        if message.tool_call_id is not None:
            document["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            document["tool_calls"] = [parsed_call(index, call) for call in message.tool_calls]
        return document

    def _render_error(
        self, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...], error: Exception
    ) -> TemplateError:
        reason = str(error) or type(error).__name__
        return TemplateError(
            f"the chat template fails at {self._first_failing(messages, tools)}: {reason}",
            expected="a conversation that this model's template can write",
            do="change the row (order of roles, a system message, tools); have the recipe write as text what the "
            "template has no place for (data.system: fold, data.tools: as_text); or use `template: plain`",
        )

    def _first_failing(self, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...]) -> str:
        """The message that breaks the template: the conversation fails with it but not without it.

        Found by bisection: a conversation of 2,048 messages is rendered 12 times, not 2,048.
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

    def _with_thought(self, message: Message) -> dict[str, Any]:
        """The fields of a message with its reasoning where the template reads it; dropped if it reads none."""
        writing = self.thoughts
        if writing is None:
            return {}
        thought, answer = self.parts_of(message)
        if thought is None:
            return {}
        if writing.way == "field":
            return {"content": answer, writing.field: thought}
        if writing.way == "blocks":
            blocks = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": answer}]
            return {"content": [block for block in blocks if block.get("text") != ""]}
        if message.reasoning is None:
            return {}
        return {"content": f"{writing.before}{thought}{writing.between}{answer}"}

    def _attempt(
        self, messages: list[dict[str, Any]], begins: bool, options: Mapping[str, Any] | None = None
    ) -> str | None:
        """The text of message objects, for probes; None if the template rejects them. options: additional ones."""
        try:
            return self._render_chat(messages, (), begins, options=options or {})
        except _RENDER_ERRORS:
            return None

    def _prompts_by_option(self) -> Iterator[str]:
        """A generation prompt with each option of the template on and off."""
        question = [{"role": "user", "content": _PROBE_QUESTION}]
        for name in sorted(self.names.options):
            for value in (True, False):
                if (prompt := self._attempt(question, True, {name: value})) is not None:
                    yield prompt

    def _texts(self) -> list[str]:
        template = self.tokenizer.chat_template
        return [str(text) for text in template.values()] if isinstance(template, dict) else [str(template)]

    def _probe_ends(self) -> tuple[TurnEnd, TurnEnd]:
        """The end tokens of an answer and of a tool call."""
        eos = self.tokenizer.eos_token_id
        if self.kind == "plain":
            if eos is None:
                raise RequestError(
                    "a tokenizer without an end-of-text token for the plain layout",
                    expected="an eos_token, so that the model can learn where an answer ends",
                    do="choose another base model, or set eos_token in its tokenizer_config.json",
                )
            end = TurnEnd(eos, str(self.tokenizer.eos_token), is_written=True)
            return end, end
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items()}
        stops = tuple(dict.fromkeys((*(() if eos is None else (eos,)), *self._stop_ids)))
        probe = EndProbe(
            self._attempt, special, lambda part: self._backend.encode(part, add_special_tokens=False).ids, stops
        )
        self._unasked = probe.unasked_prompt()
        text = self._render_probe()
        tail = text[text.rfind(_PROBE_ANSWER) + len(_PROBE_ANSWER) :]
        if _PROBE_ANSWER not in text:
            raise TemplateError(
                f"the chat template does not write the answer {_PROBE_ANSWER!r} unchanged: it writes {text[:200]!r}",
                expected="a template that writes what a turn says unchanged: else a model would learn another text",
                do="use `template: plain`, or repair chat_template.jinja in the model's folder",
            )
        answer = probe.of_answer(tail)
        if answer is None:
            raise TemplateError(
                f"the chat template writes {tail[:80]!r} after an answer: no token that ends the turn",
                expected="a special token after the assistant's content, or one that stops a generation "
                "(eos_token, generation_config.json), so that the model can learn where to stop",
                do="use `template: plain`, or repair chat_template.jinja in the model's folder",
            )
        return answer, probe.of_call(answer)

    def _measured_forms(self) -> MessageForms:
        """The message form of the template; templates that iterate over tools may need an empty list."""
        choices: tuple[list[Any] | None, ...] = (None, [])
        for schemas in choices:
            self.no_tools = schemas
            if (forms := measure_forms(self._attempt)) is not None:
                return forms
        self.no_tools = None
        return AS_USUAL

    def _render_probe(self) -> str:
        """Render a short conversation; templates that always iterate over tools get an empty list."""
        try:
            return self.render(_probe())
        except TemplateError:
            self.no_tools = []
            try:
                return self.render(_probe())
            except TemplateError:
                self.no_tools = None
            raise

    def _probe_beginning(self) -> int | None:
        """The beginning-of-text token if encode must add it to texts without it, otherwise None.

        It must if the tokenizer itself does, unless a chat template omits it on purpose.
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
