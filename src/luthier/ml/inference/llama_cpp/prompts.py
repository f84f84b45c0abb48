"""What a request gives llama.cpp: token ids, so that nothing is added on the way, and a grammar for the answer.

With the tokenizer of the model next to its GGUF file, conversations are written by Luthier's template, as they were
when the model was trained, and the file must give the same tokens for the same text. A GGUF file alone has a template
and its own tokenizer; llama.cpp applies both. The grammar is that of a JSON schema, or of the tools that the answer
may or must call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from luthier.core.conversation import Message
from luthier.core.errors import RequestError, TemplateError, UnsupportedError
from luthier.core.ports import THINKING_TOKENS
from luthier.core.recipe import TemplateOption
from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.ml.inference.engine_prompts import ToolFormat, check_bytes, check_one_prompt, checked, ids_of
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.models.gguf.files import GgufHeader
from luthier.ml.inference.models.templates.jinja_sandbox import filled_names, own_name, reads_clock, without_clock
from luthier.ml.inference.models.templates.thinking import TAGS
from luthier.ml.inference.models.templates.thinking_probe import (
    default_switches,
    measured_format,
    options_of,
    tags_in,
    thinking_switches,
)
from luthier.ml.inference.thoughts import NO_THINKING, RequestTemplates, Thinking
from luthier.ml.inference.tool_calls.forms import ToolForm
from luthier.ml.inference.tool_calls.grammars import COMPACT

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_TAIL_TOKENS: Final = 32
# All bytes but the letters and digits of ASCII.
_NO_LETTERS: Final = bytes(byte for byte in range(256) if not chr(byte).isascii() or not chr(byte).isalnum())
_PROBE: Final = "The front of a violin (1715, 35.5 cm) isn't made of maple: it's spruce. Grüße, naïve café!\n\n"


class PromptReader(Protocol):
    """Turns requests into token ids, from any thread.

    Raises:
        RequestError, TemplateError: a request that cannot be written.
        OverlongError: no answer would fit.
    """

    tools: ToolFormat

    def ids(self, request: TextRequest) -> list[int]: ...
    def text_ids(self, text: str) -> list[int]: ...
    def thinking(self, request: TextRequest, ids: Sequence[int]) -> Thinking: ...
    def use(self, server: LlamaServer) -> None: ...


def dayless_template(header: GgufHeader) -> str | None:
    """What llama.cpp must render with in place of the file's own template; None where that never uses the date.

    It would write today's date, and set variables to it: prompts would be others tomorrow, and others than in training.
    """
    # Only the default template is read: files may hold others by name.
    text = str(header.values.get("tokenizer.chat_template") or "")
    return without_clock(text) if reads_clock(text) or filled_names(text) else None


class TemplateReader:
    """Luthier's own template and the model's own tokenizer."""

    def __init__(self, template: ChatTemplate, server: LlamaServer) -> None:
        self._template, self._context_tokens = template, server.context_tokens
        self._templates = RequestTemplates(template)
        self.tools = ToolFormat.of(template)
        # Letters, digits, accents and blank lines: where tokenizers of one family part.
        ours, theirs = template.encode(_PROBE)[0], server.tokenize(_PROBE, add_special=True)
        # A first token that the file alone puts before plain text (SmolLM2's, whose chat template writes it itself)
        # does not matter: prompts reach llama.cpp as these ids, and nothing is added to them.
        theirs = theirs[1:] if theirs[1:] == ours else theirs
        if ours != theirs:
            differ = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
            raise RequestError(
                f"the tokenizer next to the GGUF file makes {len(ours)} tokens of a probe, the file {len(theirs)}; "
                f"they differ from token {differ + 1} on",
                expected="the tokenizer that the file was made with",
                do="export the model again, or move the GGUF file into a separate folder to use its own tokenizer",
            )

    def ids(self, request: TextRequest) -> list[int]:
        """Token ids of the request, up to where the answer begins."""
        template = self._template if request.conversation is None else self._templates.of(request)[0]
        return ids_of(template, self.tools, request, self._context_tokens)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that follows others."""
        return list(self._template.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def thinking(self, request: TextRequest, ids: Sequence[int]) -> Thinking:
        """Of the thought of an answer; its budget as if there were room for all of it."""
        if request.conversation is None:
            return NO_THINKING
        return self._templates.of(request)[1].of_answer(ids, request.max_thinking_tokens, self._context_tokens)

    def use(self, server: LlamaServer) -> None:
        """Nothing: the tokenizer is here."""


class FileReader:
    """The template and the tokenizer of the GGUF file, applied by llama.cpp.

    The server was opened with `dayless_template`, so that a prompt is the same on every day. llama.cpp sets
    `enable_thinking` by itself, regardless of the template's default; so that default is sent with each prompt.

    Args:
        header: Of the file.
        server: Over the file.
        context_tokens: The most that a prompt may have; None for what the server has room for.
        keeps_defaults: False leaves to llama.cpp what it sets by itself.
    """

    def __init__(
        self,
        header: GgufHeader,
        server: LlamaServer,
        *,
        context_tokens: int | None = None,
        keeps_defaults: bool = True,
    ) -> None:
        self._server, self._context_tokens = server, context_tokens
        self._longest = header.longest_in_list.get("tokenizer.ggml.tokens", 0)
        self._text = str(header.values.get("tokenizer.chat_template") or "")
        self._defaults: dict[str, TemplateOption] = {}
        if keeps_defaults:
            self._defaults.update(default_switches(self._text, {}))
        self.tools = ToolFormat(self._text)
        bos = str(server.ask("props").get("bos_token") or "")
        self._bos = server.tokenize(bos, add_special=False) if bos else []

    def ids(self, request: TextRequest) -> list[int]:
        """Token ids of the request, up to where the answer begins; one beginning-of-text token at most."""
        context_tokens = self._context_tokens or self._server.context_tokens
        if request.token_ids is not None:
            return checked(list(request.token_ids), context_tokens)
        text = self._render(request) if request.conversation is not None else request.text or ""
        check_bytes(self._least_tokens(text), context_tokens)
        ids = self._server.tokenize(text, add_special=True)
        # Template and tokenizer may each write a beginning-of-text token.
        is_twice = len(self._bos) == 1 and ids[:2] == self._bos * 2
        return checked(ids[1:] if is_twice else ids, context_tokens)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that follows others."""
        return self._server.tokenize(text, add_special=False)

    def thinking(self, request: TextRequest, ids: Sequence[int]) -> Thinking:
        """Of the thought of an answer; its budget as if there were room for all of it."""
        if request.conversation is None:
            return NO_THINKING
        known = measured_format(self._text, {}, self._options(request))
        tail = str(self._server.ask("detokenize", {"tokens": list(ids[-_TAIL_TOKENS:])})["content"])
        form = known or TAGS
        asked = request.max_thinking_tokens
        most = 0 if form.prompt_closes else asked if asked is not None else THINKING_TOKENS if known else 0
        return Thinking(form, form.is_open(tail), most, () if known is None else tags_in(known.delimiters))

    def _options(self, request: TextRequest) -> dict[str, TemplateOption]:
        is_known = bool(request.thinks) and measured_format(self._text, {}, {}) is not None
        requested = thinking_switches(self._text, {}, thinks=request.thinks, is_known=is_known)
        requested |= options_of(self._text, {}, request.template_options, request.reasoning_effort)
        return self._defaults | request.trained_options | requested

    def _least_tokens(self, text: str) -> int:
        """By the letters of ASCII alone: a file may have no token for other bytes, and tokens that take in blanks."""
        if not self._longest:
            return 0
        num_letters = len(text.encode(errors="replace").translate(None, _NO_LETTERS))
        return -(-num_letters // self._longest)

    def use(self, server: LlamaServer) -> None:
        """The model was opened again."""
        self._server = server

    def _render(self, request: TextRequest) -> str:
        if not self._text:
            raise TemplateError(
                "a conversation for a GGUF file without a chat template",
                expected="a plain text, or a file that contains the template of its model",
                do="ask for a completion of a text, or export the model again with its chat template",
            )
        conversation = self.tools.conversation(request)
        body: dict[str, Any] = {"messages": [_message(message) for message in conversation.messages]}
        if conversation.tools:
            body["tools"] = list(conversation.tools)
        if options := self._options(request):
            body["chat_template_kwargs"] = {own_name(name): value for name, value in options.items()}
        return str(self._server.ask("apply-template", body)["prompt"])


def open_reader(
    model: Path, header: GgufHeader, server: LlamaServer, kind: Literal["auto", "chat", "plain"]
) -> PromptReader:
    """The reader for a GGUF file: with the tokenizer in its folder where there is one.

    Args:
        model: the GGUF file.
        header: its metadata, with the file's own template.
        server: renders that template, and tokenizes.
        kind: `auto` takes the template in the folder, else that of the file.

    Raises:
        RequestError: `plain` for a file without a tokenizer next to it, or a tokenizer of another model.
    """
    if (model.parent / "tokenizer.json").is_file():
        from luthier.ml.inference.models.templates.chat_template import ChatTemplate

        return TemplateReader(ChatTemplate.load(model.parent, kind), server)
    if kind == "plain":
        raise RequestError(
            f"template 'plain' for {model}, which has no tokenizer next to it",
            expected="tokenizer.json and tokenizer_config.json in the folder of the GGUF file",
            do="copy them there, or use the template of the file ('auto')",
        )
    return FileReader(header, server)


def _message(message: Message) -> dict[str, Any]:
    document = message.model_dump(mode="json", exclude_none=True, exclude={"weight", "learn_reasoning", "reasoning"})
    if message.reasoning is not None:
        document["reasoning_content"] = message.reasoning
    if not message.tool_calls:
        document.pop("tool_calls", None)
    return {"content": "", **json.loads(json.dumps(document))}


_DIALECT: Final = "%llguidance {}\n"


def grammar_of(request: TextRequest, form: ToolForm | None, server: LlamaServer) -> str | None:
    """What the answer is held to, in llguidance's dialect, which this build of llama.cpp takes; None for nothing.

    Args:
        request: with the schema of the answer, or tools.
        form: how the model writes calls of tools; None for a model without tools.
        server: names the ids of special tokens.

    Raises:
        RequestError: the schema cannot be followed.
    """
    if form is not None and (request.tool_choice == "required" or request.json_schema is not None):
        return _DIALECT + form.grammar(request, lambda text: _token_id(server, text))
    if request.json_schema is None:
        return None
    check_schema(request.json_schema)
    return f"{_DIALECT}start: %json {json.dumps({**request.json_schema, 'x-guidance': COMPACT})}\n"


def _token_id(server: LlamaServer, text: str) -> int | None:
    ids = server.tokenize(text, add_special=False)
    # One token: the mark is special in this vocabulary, and the grammar can name its id.
    return ids[0] if len(ids) == 1 else None


def no_grammar() -> RequestError:
    """The message where llama.cpp does not follow a grammar."""
    return RequestError(
        "a JSON schema, of the answer or of a tool's arguments, that llama.cpp does not follow",
        expected="a schema with the words that its grammars know (type, properties, items, enum, pattern ...)",
        do="make the schema simpler, or check that it is a valid one",
    )


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request as token ids.

    Attributes:
        request: as it came.
        ids: tokens of its prompt.
        max_new_tokens: of thought and answer.
        form: how it calls tools; None for a model that calls none.
        grammar: what the answer is held to; None for nothing.
        thinking: how the answer thinks.
    """

    request: TextRequest
    ids: list[int]
    max_new_tokens: int
    form: ToolForm | None
    grammar: str | None
    thinking: Thinking


def check_request(request: TextRequest, vocabulary: int, *, drafts: bool) -> None:
    """Check a request before its prompt is read.

    Args:
        request: to be answered.
        vocabulary: tokens of the model.
        drafts: whether the server drafts tokens.

    Raises:
        RequestError: not one prompt, or a token that the model does not have.
        UnsupportedError: likelihoods of drafted tokens.
    """
    check_one_prompt(request)
    if request.num_top is not None and drafts:
        raise UnsupportedError(
            "likelihoods of tokens from an engine with speculative decoding",
            expected="a request without logprobs: llama.cpp gives none for tokens that were drafted",
            do="leave logprobs out, or have the server started without speculative_config",
            param="logprobs",
        )
    biased = [token for token, _ in request.sampling.logit_bias]
    if biased and not 0 <= min(biased) <= max(biased) < vocabulary:
        raise RequestError(
            f"logit_bias for tokens {min(biased)} to {max(biased)}",
            expected=f"ids of this model's own tokenizer, 0 to {vocabulary - 1}",
            do="leave the others out",
        )


def check_ids(ids: Sequence[int] | None, vocabulary: int) -> None:
    """Check the tokens of a prompt; None is not checked.

    Args:
        ids: of the prompt.
        vocabulary: tokens of the model.

    Raises:
        RequestError: there are none, or one that the model does not have.
    """
    if ids is not None and (not ids or min(ids) < 0 or max(ids) >= vocabulary):
        raise RequestError(
            f"a prompt of {len(ids)} tokens" + (f", ids {min(ids)} to {max(ids)}" if ids else ""),
            expected=f"at least one token, each from 0 to {vocabulary - 1}",
            do="correct the prompt",
        )
