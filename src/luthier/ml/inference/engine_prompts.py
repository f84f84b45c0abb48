"""Prompts for engines: turns rewritten for the template, tools in the prompt, token ids.

A recipe may rewrite system turns, tools and reasoning for templates that do not support them:

    data.system: fold           the system text, a blank line, then the first user turn
    data.tools: as_text         tools as text in the system turn, calls and their results as text, as the server does
                                for templates without tools (`ml/inference/tool_calls/as_text.py`)
    data.reasoning: as_text     <think>, the reasoning, </think>, then the answer, all as content
    data.reasoning: drop        the answer without its reasoning

None of this is automatic: by default a row that the template cannot render is rejected. Rewriting is idempotent, so
that rows of a run and conversations of a client are treated the same.

For engines that take tokens and return text, tools are written into the prompt and calls are parsed from the answer; a
prompt that cannot fit is rejected before tokenisation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from luthier.core.conversation import AS_THEY_ARE, Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import OverlongError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.ports import Prompt
from luthier.core.stream import CallPiece, EndReason, TextRequest, WrittenToken, joined_calls
from luthier.ml.inference.models.templates.thought_writing import TAGS, ThoughtWriting, split_thought
from luthier.ml.inference.tool_calls.as_text import with_calls_as_text, with_tools_as_text
from luthier.ml.inference.tool_calls.call_spans import CallSpans
from luthier.ml.inference.tool_calls.channels import CallReader
from luthier.ml.inference.tool_calls.forms import ToolForm, form_of

if TYPE_CHECKING:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_START, _END = TAGS[0]
_WRITING = ThoughtWriting("content", f"{_START}\n", f"\n{_END}\n\n")
_SYSTEM = ("system", "developer")
_Prepared = TypeVar("_Prepared")
_LEAST_ROOM_TOKENS: Final = 256
"""Room for an answer that a conversation is shortened for, where the request may have so many."""


def text_of(template: ChatTemplate) -> str:
    """The text of a chat template, or the concatenation of all templates of a tokenizer; empty for the plain layout."""
    # Marks of calls are searched in it, of which some are not ASCII.
    return json.dumps(template.tokenizer.chat_template or "", ensure_ascii=False) if template.kind == "chat" else ""


def rewritten_examples(opted: OptedTurns, examples: Sequence[Example], template: ChatTemplate) -> Sequence[Example]:
    """The rewritten examples, both sides of a pair; unchanged if nothing is requested."""
    if opted == AS_THEY_ARE:
        return examples
    return tuple(map(example_rewriter(opted, template), examples))


def example_rewriter(opted: OptedTurns, template: ChatTemplate) -> Callable[[Example], Example]:
    """What rewrites one example."""
    form = form_of(text_of(template))
    return lambda example: _example(opted, example, form)


def rewritten(opted: OptedTurns, conversation: Conversation, form: ToolForm) -> Conversation:
    """One conversation, rewritten.

    Args:
        opted: which turns are rewritten and how.
        conversation: not modified.
        form: the model's tool call format.
    """
    if opted.reasoning is not None:
        messages = tuple(_thought(opted, message) for message in conversation.messages)
        conversation = conversation.model_copy(update={"messages": messages})
    # Before folding: the description of the tools goes into the system turn, which is folded next.
    if opted.tools_as_text:
        conversation = with_tools_as_text(conversation, form)
    return _folded(conversation) if opted.folds_system else conversation


def _example(opted: OptedTurns, example: Example, form: ToolForm) -> Example:
    sides = {"conversation": example.conversation, "rejected": example.rejected}
    changed = {name: rewritten(opted, side, form) for name, side in sides.items() if side is not None}
    return example.model_copy(update=changed)


def _thought(opted: OptedTurns, message: Message) -> Message:
    if message.role != "assistant":
        return message
    thought, answer = message.reasoning, message.content or ""
    # A row may have its reasoning in tags in the content: it is moved or dropped like one in a field.
    if thought is None:
        thought, answer = split_thought(answer, _WRITING)
    if thought is None:
        return message
    if opted.reasoning == "as_text":
        answer = f"{_WRITING.before}{thought.strip()}{_WRITING.between}{answer}"
    return message.model_copy(update={"content": answer, "reasoning": None})


def _folded(conversation: Conversation) -> Conversation:
    """System text before the first user turn; a new user turn if there is none."""
    system = [message.content for message in conversation.messages if message.role in _SYSTEM and message.content]
    rest = [message for message in conversation.messages if message.role not in _SYSTEM]
    if not system:
        return conversation
    words = "\n\n".join(system)
    place = next((n for n, message in enumerate(rest) if message.role == "user"), None)
    if place is None:
        rest.insert(0, Message(role="user", content=words))
    else:
        rest[place] = rest[place].model_copy(update={"content": f"{words}\n\n{rest[place].content or ''}"})
    return conversation.model_copy(update={"messages": tuple(rest)})


def _shows_tools(template: ChatTemplate) -> bool:
    """Whether prompts name the tools: some templates read them elsewhere, as Phi-4-mini's in the system message."""
    if "tools" not in text_of(template):
        return False
    name = "price_of_wood"
    function = {"name": name, "description": "Of a wood.", "parameters": {"type": "object", "properties": {}}}
    question = {"role": "user", "content": "Which wood?"}
    text = template.attempt(None, [question], ({"type": "function", "function": function},), opens=True)
    # A template that fails says so of the request itself.
    return text is None or name in text


class ToolFormat:
    """How tools enter one model's prompt, and how its calls are parsed.

    Args:
        template: Text of the model's chat template; empty for none.
        special: Special tokens of its vocabulary.
        shows_tools: Whether its prompts name the tools that may be called; None takes one that reads a variable of
            that name for one that does.
    """

    def __init__(self, template: str, special: Iterable[str] = (), *, shows_tools: bool | None = None) -> None:
        self._knows_tools = "tools" in template if shows_tools is None else shows_tools
        self._knows_calls = "tool_calls" in template
        self._form, self._special = form_of(template), frozenset(special)
        self._hidden = dict[frozenset[str], re.Pattern[str] | None]()

    @classmethod
    def of(cls, template: ChatTemplate) -> ToolFormat:
        """That of a template with its tokenizer."""
        added = template.tokenizer.added_tokens_decoder.values()
        special = (token.content for token in added if token.special)
        return cls(text_of(template), special, shows_tools=_shows_tools(template))

    def has_special_marks(self, form: ToolForm | None) -> bool:
        """Whether calls are marked by special tokens, which decoding usually omits.

        Args:
            form: The call format; None if nothing may be called.
        """
        return form is not None and (form.has_special_marks or not self._special.isdisjoint(form.marks))

    def hidden(self, form: ToolForm | None, shown: Sequence[str]) -> re.Pattern[str] | None:
        """The special tokens that are no part of a text where a server writes all of them; None for none.

        Args:
            form: The call format, whose marks are part of it.
            shown: Others that are.
        """
        tokens = self._special.difference(shown, () if form is None else form.marks)
        if tokens not in self._hidden:
            # The longest first: one may begin with another.
            pattern = "|".join(re.escape(one) for one in sorted(tokens, key=lambda one: (-len(one), one)) if one)
            self._hidden[tokens] = re.compile(pattern) if pattern else None
        return self._hidden[tokens]

    def form(self, asked: TextRequest) -> ToolForm | None:
        """The call format, if there is anything to call.

        Raises:
            RequestError: a call is required but impossible.
        """
        if asked.tool_choice == "required" and not asked.tools:
            raise RequestError("a tool must be called, and there is none", expected="tools", do="send tools")
        return self._form if asked.tools else None

    def conversation(self, asked: TextRequest) -> Conversation:
        """The conversation to render: without tools that may not be called, and with tools described in the system
        message if the template does not support them; if it supports tools and no calls, with calls as text.

        Turns that were rewritten in training are rewritten in the same way.
        """
        assert asked.conversation is not None
        return self.written(asked.conversation.model_copy(update={"tools": asked.tools}), asked.opted_turns)

    def written(self, conversation: Conversation, opted: OptedTurns) -> Conversation:
        """The conversation with tools and calls as text where the template would drop them silently.

        Args:
            conversation: not modified.
            opted: which turns were rewritten in training, and are rewritten here.
        """
        as_text = opted.tools_as_text or not self._knows_tools
        conversation = rewritten(opted.model_copy(update={"tools_as_text": as_text}), conversation, self._form)
        return conversation if as_text or self._knows_calls else with_calls_as_text(conversation, self._form)


def prompts_with_tools(prompts: Sequence[Prompt], template: ChatTemplate, opted: OptedTurns) -> list[Prompt]:
    """The prompts with tools and calls as text where the template would drop them, as the server answers them.

    Args:
        prompts: conversations or texts.
        template: of the model; the plain layout refuses tools.
        opted: which turns were rewritten in training.
    """
    if template.kind == "plain":
        return list(prompts)
    tools = ToolFormat.of(template)
    found = []
    for prompt in prompts:
        if prompt.conversation is not None:
            prompt = prompt.model_copy(update={"conversation": tools.written(prompt.conversation, opted)})
        found.append(prompt)
    return found


class WholeAnswers:
    """Takes calls of tools out of whole answers, as engines that stream do.

    Args:
        template: of the model.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._tools = ToolFormat.of(template)

    def marks(self, prompt: Prompt) -> tuple[str, ...]:
        """The special tokens that mark calls in the answer to a prompt, and that decoding usually hides."""
        form = self._form(prompt)
        return () if form is None or not self._tools.has_special_marks(form) else form.marks

    def split(self, prompt: Prompt, text: str) -> tuple[str, tuple[dict[str, Any], ...]]:
        """The text of an answer without its calls, and the calls in OpenAI's format.

        Args:
            prompt: the answered prompt, with the tools that may be called.
            text: the answer without its thought.
        """
        form = self._form(prompt)
        if form is None:
            return text, ()
        reader = form.reader(TextRequest(conversation=prompt.conversation))
        said, pieces = reader.add(text)
        rest, more = reader.end()
        calls = joined_calls([*pieces, *more])
        # Ids follow from prompt and answer, so that equal work gives equal rows.
        asked = prompt.model_dump(mode="json", include={"conversation"}) if calls else None
        ids = [f"call_{sha256_document([asked, text, number])[:24]}" for number in range(len(calls))]
        return said + rest, tuple(call | {"id": own} for call, own in zip(calls, ids, strict=True))

    def _form(self, prompt: Prompt) -> ToolForm | None:
        if prompt.conversation is None:
            return None
        return self._tools.form(TextRequest(conversation=prompt.conversation))


class CallsInText:
    """Parses calls from the text of one answer.

    Args:
        asked: the request that the answer belongs to.
        form: the call format; None if nothing may be called.
        hidden: special tokens in the text of a server that are no part of the answer; None for none.

    Attributes:
        for_stops: another reader of the same calls, in which stop texts do not count; None where there are none.
    """

    def __init__(self, asked: TextRequest, form: ToolForm | None, hidden: re.Pattern[str] | None = None) -> None:
        self._hidden = hidden
        self._reader: CallReader | None = None if form is None else form.reader(asked)
        self.for_stops: CallReader | None = form.reader(asked) if form is not None and asked.stop else None
        self._places: CallSpans | None = None
        if self._reader is not None and asked.num_top is not None:
            self._reader = self._places = CallSpans(self._reader)
        # OpenAI reports a call of the tool that the request itself named as an ordinary end.
        self._reports_calls = asked.tool_name is None

    def shown(self, text: str) -> str:
        """A piece of a server's text, in which special tokens are whole, without those that are hidden."""
        return text if self._hidden is None else self._hidden.sub("", text)

    def split(self, text: str, *, is_last: bool) -> tuple[str, tuple[CallPiece, ...]]:
        """Process more text; returns what is certain so far: plain text and parts of calls."""
        if self._reader is None:
            return text, ()
        emitted, calls = self._reader.add(text)
        if is_last:
            rest, more = self._reader.end()
            emitted, calls = emitted + rest, [*calls, *more]
        return emitted, tuple(calls)

    def text_tokens(
        self, tokens: Sequence[WrittenToken], num_thought: int, start: int, *, is_last: bool
    ) -> tuple[WrittenToken, ...]:
        """These tokens without those of calls; one of which that is not certain yet comes with a later piece.

        Args:
            tokens: of the thought, then of the answer, whose text was processed by `split`.
            num_thought: how many of them are of the thought.
            start: the place of the answer's first character, as their places are counted.
            is_last: whether the answer has ended.
        """
        if self._places is None:
            return tuple(tokens)
        return (*tokens[:num_thought], *self._places.text_tokens(tokens[num_thought:], start, is_last=is_last))

    def reason(self, reason: EndReason) -> EndReason:
        """The finish reason of the answer, taking its calls into account."""
        has_called = self._reader is not None and self._reader.num_calls > 0 and self._reports_calls
        return "tool_calls" if reason == "stop" and has_called else reason


def ids_of(template: ChatTemplate, tools: ToolFormat, request: TextRequest, context_tokens: int) -> list[int]:
    """The token ids of a request, rendered by a template.

    Args:
        template: of the model, with the options of the request.
        tools: how tools are written into the prompt.
        request: conversation, text or token ids.
        context_tokens: of the model.

    Raises:
        RequestError: the prompt is empty.
        OverlongError: no room for even one token of an answer.
        TemplateError: the template cannot render the conversation.
    """
    if request.token_ids is not None:
        return checked(list(request.token_ids), context_tokens)
    if request.conversation is not None:
        text = template.render(tools.conversation(request), add_generation_prompt=True)
    else:
        text = request.text or ""
    check_bytes(template.least_tokens(text), context_tokens)
    return checked(template.ids(text), context_tokens)


def check_one_prompt(request: TextRequest) -> None:
    """Reject a request with no prompt, or with several.

    Raises:
        RequestError: not exactly one of conversation, text and token_ids is given.
    """
    if sum(one is not None for one in (request.conversation, request.text, request.token_ids)) != 1:
        raise RequestError(
            "not exactly one of conversation, text and token_ids", expected="exactly one", do="set one of them"
        )


def check_bytes(least_tokens: int, context_tokens: int) -> None:
    """Reject a text that cannot fit, for any tokens.

    Args:
        least_tokens: a lower bound on its number of tokens.
        context_tokens: of the model.

    Raises:
        OverlongError: it cannot fit.
    """
    if least_tokens >= context_tokens:
        raise overlong(least_tokens, context_tokens, "at least ")


def checked(ids: list[int], context_tokens: int) -> list[int]:
    """The ids, after checks.

    Raises:
        RequestError: there is none.
        OverlongError: they leave no room.
    """
    if not ids:
        raise RequestError("an empty prompt", expected="at least one token", do="write something")
    if len(ids) >= context_tokens:
        raise overlong(len(ids), context_tokens)
    return ids


def overlong(num_tokens: int, context_tokens: int, about: str = "") -> OverlongError:
    """The error for a prompt that is too long.

    Args:
        num_tokens: of the prompt.
        context_tokens: of the model.
        about: words before the number: `at least `, where tokens were estimated from bytes.
    """
    return OverlongError(
        f"a prompt of {about}{num_tokens:,} tokens",
        expected=f"fewer than the {context_tokens:,} of the context, so that an answer fits",
        do="shorten the prompt",
        num_tokens=num_tokens,
        most_tokens=context_tokens,
    )


def fitted(
    request: TextRequest, prepare: Callable[[TextRequest], _Prepared], room_of: Callable[[_Prepared], int]
) -> _Prepared:
    """The prepared request; with `drops_oldest`, of as much of the conversation as leaves room for an answer.

    A turn is left out from a user's message up to the next one, so that calls of tools stay with their results. System
    messages and the last turn stay.

    Args:
        request: from a client.
        prepare: makes tokens of it.
        room_of: new tokens that a prepared request may have.

    Raises:
        OverlongError: not even the last turn leaves room, or nothing may be left out.
        RequestError: the prompt is empty.
        TemplateError: the template cannot write the conversation.
    """
    if not request.drops_oldest or request.conversation is None:
        return prepare(request)
    wanted = min(request.max_new_tokens, _LEAST_ROOM_TOKENS)
    candidates = [request, *_shortened(request, request.conversation)]
    made: _Prepared | None = None
    # The longest that fits, by bisection: each try writes and tokenises the conversation.
    low, high = 0, len(candidates)
    middle = 0
    while low < high:
        try:
            found = prepare(candidates[middle])
        except OverlongError:
            low = middle + 1
        else:
            if room_of(found) >= wanted or middle == len(candidates) - 1:
                made, high = found, middle
            else:
                low = middle + 1
        middle = (low + high) // 2
    # Where nothing fits, the shortest has been tried last.
    return prepare(candidates[-1]) if made is None else made


def _shortened(request: TextRequest, conversation: Conversation) -> list[TextRequest]:
    """The request without its oldest turns, the fewest first."""
    found, messages = list[TextRequest](), conversation.messages
    for place, message in enumerate(messages):
        system = tuple(one for one in messages[:place] if one.role in _SYSTEM)
        if message.role == "user" and len(system) < place:
            rest = conversation.model_copy(update={"messages": (*system, *messages[place:])})
            dropped = {"conversation": rest, "num_dropped": place - len(system)}
            found.append(request.model_copy(update=dropped))
    return found
