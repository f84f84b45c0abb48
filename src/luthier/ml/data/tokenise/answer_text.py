"""One learned answer as text: the prompt that inference would see, and what the model has to write after it.

The prompt is what the template renders of the turns before the answer, with the generation prompt, whatever it does to
them. Where the template's rendering of the answered conversation begins with it, what follows is the answer. Where it
does not (a thought is opened by the prompt alone, a system prompt is beside the last user turn), the part of the
rendering that belongs to the answer is found behind the last turn before it, and put after the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.template import Template
from luthier.ml.inference.models.templates.thought_writing import PromptState, ThoughtWriting, length_of_tagged

EXCERPT_CHARACTERS = 50
_PLAIN_ANSWER = "Spruce-wood"


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A conversation up to an answer, as text.

    text[:prompt] is the prompt, text[start:] is learned. The text between them is context that the model does not see
    in the prompt, such as an empty thought that the template inserts.

    Attributes:
        text: the rendered turns through the answer, with the end of its turn.
        prompt: end of the prompt, in characters.
        start: where learning begins, in characters; prompt <= start.
        is_rendered: the template writes exactly this text, except for an end of the turn that it leaves out.
        has_thought: the answer contains a thought.
        skips_thought: the prompt lets the model think, and the answer continues without a thought.
    """

    text: str
    prompt: int
    start: int
    is_rendered: bool
    has_thought: bool = False
    skips_thought: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a row, for error messages about it.

    Attributes:
        row_id: id of the example.
        index: position of the turn in the conversation, from 0.
        message: the turn itself.
        num_messages: turns of the whole conversation.
    """

    row_id: str
    index: int
    message: Message
    num_messages: int

    def error(self, what: str, rendered: str, do: str) -> TemplateError:
        """What is wrong with how the template writes this turn."""
        if len(rendered) > 4 * EXCERPT_CHARACTERS:
            rendered = f"{rendered[: 2 * EXCERPT_CHARACTERS]} ... {rendered[-2 * EXCERPT_CHARACTERS :]}"
        return TemplateError(
            f"{self.row_id}, turn {self.index + 1} of {self.num_messages} ({self.message.role}): {what}; "
            f"it rendered {rendered!r}",
            expected="a template that writes each turn once, whole, after the prompt that the model sees: "
            "only then can a loss mask be trusted",
            do=do,
        )


def answer_text(turn: Turn, conversation: Conversation, template: Template, learns: bool | None) -> AnswerText:
    """The text of one answer, with proof of where the learned part begins.

    Args:
        turn: the answer.
        conversation: the whole conversation that holds the turn.
        template: renders the conversation.
        learns: whether its thought is learned; None learns a thought of the row, and no empty one of the template.

    Returns:
        Prompt and answer as one text, with the borders between them.

    Raises:
        TemplateError: the answer, its thought or its calls cannot be found in what the template writes.
    """
    if turn.index == 0 and template.kind == "chat":
        raise turn.error(
            "the conversation begins with an answer, and a chat template has no prompt for that",
            template.render(conversation),
            "put a user turn before it, or set weight 0 on it",
        )
    prompt = template.render(conversation.up_to(turn.index), add_generation_prompt=True)
    through = template.render(conversation.up_to(turn.index + 1))
    thought, answer = template.parts_of(turn.message)
    if thought is not None and template.thoughts is None:
        raise turn.error(
            "the row has a thought, and this template writes none",
            through,
            "set data.reasoning: as_text (the thought is written before the answer, between <think> and </think>) or "
            "data.reasoning: drop (the row is learned without it)",
        )
    # Many templates trim content, so that only the stripped answer can be searched for in their text.
    return _Found(turn, conversation, template, prompt, through, thought, answer.strip(), learns).text()


@dataclass(frozen=True, slots=True)
class _Found:
    """What the template gives for a turn, of which the text is made."""

    turn: Turn
    conversation: Conversation
    template: Template
    prompt: str
    through: str
    thought: str | None
    answer: str
    learns: bool | None

    def text(self) -> AnswerText:
        if self.through.startswith(self.prompt) and self._is_usable(self.through[len(self.prompt) :]):
            return self._as_rendered()
        return self._put_together()

    def _is_usable(self, piece: str) -> bool:
        """Whether the template's own text behind the prompt has the thought of the row, and closes an opened one."""
        # A template may write the prompt as a prefix and still drop the thought of the row; that text would teach the
        # model not to think, so it is put together instead.
        if self.thought is not None and not self._has_thought(piece):
            return False
        writing = self.template.thoughts
        if writing is None or writing.way != "content" or writing.state_of(self.prompt)[0] != "open":
            return True
        # Such a template leaves the tags to the content, and its prompt has written the first (Nemotron Nano 2). As it
        # is, an answer alone would be learned as a thought without end, and a thought would be opened twice.
        return writing.end in piece and not piece.lstrip().startswith(writing.start)

    def _as_rendered(self) -> AnswerText:
        """The template's own text begins with the prompt."""
        piece = self.through[len(self.prompt) :]
        # The checks come first: later steps search the piece for the answer with index(), which assumes that it is
        # there.
        self._check_answer(piece)
        piece = self._to_its_end(piece)
        self._check_begins(piece)
        writing = self.template.thoughts
        state: PromptState = "none" if writing is None else writing.state_of(self.prompt)[0]
        # With a thought in the row nothing is inserted: what looks like an empty thought would be part of the row's
        # own.
        empty = 0 if writing is None or self.thought is not None else writing.length_of_empty(piece, state)
        start = self._learned_from(empty)
        if self.learns is False:
            # a template that knows of no thoughts may have them in its text all the same
            start = length_of_tagged(piece) if self.thought is None else self._after_thought(piece)
            start = max(start, empty)
        skips = self.thought is None and writing is not None and _lets_think(writing, state)
        ended = piece + self._end_of(piece)
        at = len(self.prompt)
        return AnswerText(
            self.prompt + ended, at, at + start, is_rendered=True, has_thought=bool(self.thought), skips_thought=skips
        )

    def _put_together(self) -> AnswerText:
        """The prompt, and the part of the template's own text that belongs to the answer."""
        writing = self.template.thoughts
        state: PromptState
        state, bare = ("none", len(self.prompt)) if writing is None else writing.state_of(self.prompt)
        # Some write the closing tag alone (DeepSeek V3.1, GLM 4.7 without thinking): a thought behind it would follow
        # the end of one.
        is_closed = state == "closed" or (writing is not None and self.prompt.rstrip().endswith(writing.end))
        if self.thought is not None and is_closed:
            raise self.turn.error(
                "the row has a thought, and the prompt closes an empty one before the answer",
                self.prompt[-2 * EXCERPT_CHARACTERS :],
                self._how_to_open(),
            )
        # Rendered without the thought, the text behind the prompt is the bare answer; the thought is then written in
        # front of it in the form that the prompt asks for.
        plain = self.through if self.thought is None else self._without_thought()
        # prompt[:bare] ends before the thought that the prompt opens or closes: the rendered text lacks that part.
        body = plain[self._end_of_prompt(plain, self.prompt[:bare]) :]
        empty = 0 if writing is None else writing.length_of_empty(body, "none")
        if state == "open" and not empty and plain.startswith(self.prompt):
            # What the prompt opens is open in the rendered text, too.
            body = plain[len(self.prompt) :]
        # The prompt has already closed an empty thought, so the one that the template renders would be a second.
        ahead, inserted = "", body[:empty]
        body = body[empty:]
        if writing is not None and self.thought is not None:
            opening = "" if state == "open" else writing.before
            ahead, inserted = f"{opening}{self.thought}{writing.between}", ""
        elif writing is not None and state == "open":
            # as the template closes an empty thought, else as it closes any
            inserted = inserted.lstrip()[len(writing.start) :].lstrip() if empty else writing.between
        elif state == "closed":
            inserted = ""
        # Not in what is put ahead of it: a short answer could be part of the thought or of its tags.
        self._check_answer(body)
        body = self._to_its_end(body)
        body += self._end_of(body)
        start = self._learned_from(len(inserted))
        if self.thought is not None and self.learns is False:
            start = len(ahead)
        at = len(self.prompt)
        return AnswerText(
            self.prompt + inserted + ahead + body,
            at,
            at + start,
            is_rendered=False,
            has_thought=bool(self.thought),
            skips_thought=self.thought is None and writing is not None and _lets_think(writing, state),
        )

    def _learned_from(self, inserted: int) -> int:
        """Where learning begins behind the prompt: an empty thought of the template is learned only where asked."""
        return 0 if self.learns else inserted

    def _has_thought(self, piece: str) -> bool:
        assert self.thought is not None
        # The answer must follow the thought: found anywhere, a short answer could be a part of the thought.
        at = piece.find(self.thought)
        return at >= 0 and self.answer in piece[at + len(self.thought) :]

    def _without_thought(self) -> str:
        answer = self.template.parts_of(self.turn.message)[1]
        last = self.turn.message.model_copy(update={"reasoning": None, "content": answer})
        before = self.conversation.up_to(self.turn.index)
        return self.template.render(before.model_copy(update={"messages": (*before.messages, last)}))

    def _after_thought(self, piece: str) -> int:
        """Where the answer begins behind a thought: what the template writes without one is the end of the piece."""
        writing = self.template.thoughts
        assert writing is not None
        plain = self._without_thought()
        body = plain[self._end_of_prompt(plain, self.prompt[: writing.state_of(self.prompt)[1]]) :]
        body = body[writing.length_of_empty(body, "none") :]
        # An empty body is a suffix of every piece, so that it would prove nothing about the border.
        if not body or not piece.endswith(body):
            raise self.turn.error(
                "where the thought ends and the answer begins cannot be found",
                piece,
                "set learn_reasoning: true, or take the thought out of the row",
            )
        return len(piece) - len(body)

    def _end_of_prompt(self, text: str, prompt: str) -> int:
        """Where the answer begins in a text of the template that may write the turns before it in another way."""
        if text.startswith(prompt):
            return len(prompt)
        if (same := _end_but_for_space(text, prompt)) is not None:
            return same
        # The templates that get here change earlier turns, so the prompt is recognised by its last turn and what
        # follows it.
        last = (self.conversation.messages[self.turn.index - 1].content or "").strip() if self.turn.index else ""
        at = prompt.rfind(last) if last else -1
        anchor = prompt[at:] if at >= 0 else ""
        # From the right: the same words may occur in earlier turns.
        found = text.rfind(anchor) if anchor else -1
        if found < 0:
            raise self.turn.error(
                "what the template writes before the answer is not what the model sees when it must answer (the text "
                "up to the turn with the generation prompt is no beginning of the text through the turn)",
                difference(prompt, text),
                "check the template's generation prompt, and whether it adds or moves a system prompt; give the row a "
                "system turn of its own, or use another template (data.template: plain)",
            )
        return found + len(anchor)

    def _end_of(self, piece: str) -> str:
        """What the piece lacks to end the turn."""
        # Only behind the answer: the end text of an inserted turn before it does not stop the model.
        after = piece[piece.index(self.answer) + len(self.answer) :]
        if any(end in after for end in self.template.end_texts):
            return ""
        closing = self.template.closing(self.turn.message)
        if not closing:
            raise self.turn.error(
                f"the end-of-turn text {self.template.end_of_turn!r} does not follow the answer, so the model would "
                "never learn to stop",
                piece,
                "check the template and the tokenizer's end token, or use another template (data.template: plain)",
            )
        return closing

    def _to_its_end(self, piece: str) -> str:
        """The piece up to the token that ends a turn of calls.

        Some templates write an empty answer behind it (DeepSeek R1's, for a content that is empty and not null, which
        transformers leaves out). A model never writes that: its turn has ended.
        """
        calls = self.turn.message.tool_calls
        if not calls or self.answer:
            return piece
        start = piece.rfind(calls[-1]["function"]["name"])
        places = [(at, end) for end in self.template.end_texts if (at := piece.find(end, start)) >= 0]
        if not places:
            return piece
        at, end = min(places)
        return piece[: at + len(end)] if piece[at + len(end) :].strip() else piece

    def _check_answer(self, piece: str) -> None:
        """The piece must hold the answer and every tool call."""
        if self.answer not in piece:
            raise self.turn.error(
                "the answer is not in what the template wrote for it",
                piece,
                "see the row with `luthier data preview`; write the answer as the template wants it (some "
                "templates take reasoning apart), or use another template (data.template: plain)",
            )
        for missing in missing_calls(self.turn.message, piece):
            raise self.turn.error(
                f"{missing} of a tool call is not in what the template wrote: the template drops tool calls",
                piece,
                "set data.tools: as_text, choose a base model whose template supports tools, or write the call into "
                "the content",
            )

    def _check_begins(self, piece: str) -> None:
        """Where the prompt begins no answer, the answer must follow at once: the model would write its own header."""
        if self.template.kind != "chat":
            return
        # What the model writes first is the thought where there is one.
        said = self.answer if self.thought is None else self.thought
        if said and not self._head_of(piece, said):
            return  # nearly all rows: whether there is a generation prompt is another rendering
        before = self.conversation.up_to(self.turn.index)
        if self.template.render(before) != self.prompt:
            return
        if said or self._head_of(self._of_plain_answer(before), _PLAIN_ANSWER):
            raise self.turn.error(
                "the template has no generation prompt, so the model would have to begin its turn itself",
                piece,
                "add `{% if add_generation_prompt %}` with the beginning of an assistant's turn to the end of "
                "chat_template.jinja in the model's folder",
            )

    def _head_of(self, written: str, said: str) -> str:
        """What precedes the text that the model writes first, but for white space and tags of a thought."""
        head, writing = written[: written.find(said)], self.template.thoughts
        for part in (writing.start, writing.end) if writing is not None else ():
            # The tags that open or close a thought may precede the text; they belong to what the model writes.
            head = head.replace(part, "")
        return head.strip()

    def _of_plain_answer(self, before: Conversation) -> str:
        """What the template would write for an answer as text, in place of a call of a tool or of nothing."""
        answer = Message(role="assistant", content=_PLAIN_ANSWER)
        try:
            text = self.template.render(before.model_copy(update={"messages": (*before.messages, answer)}))
        except TemplateError:  # it takes no such answer here, so that there is nothing to tell it by
            return ""
        return text[len(self.prompt) :] if text.startswith(self.prompt) and _PLAIN_ANSWER in text else ""

    def _how_to_open(self) -> str:
        """The option that has the prompt leave the thought open, found by trying; else what to do without one."""
        before = self.conversation.up_to(self.turn.index)
        found = self.template.opening_option(before)
        leave = "set data.reasoning: drop, or take the thoughts out of the rows"
        if found is None:
            return leave
        return (
            f"set data.template_options: {{{found[0]}: {json.dumps(found[1])}}}, so that the model thinks; or {leave}"
        )


def _lets_think(writing: ThoughtWriting, state: PromptState) -> bool:
    """Whether a model would think after this prompt, as far as its template shows."""
    return state == "open" or (state == "none" and writing.way != "content")


def _end_but_for_space(text: str, prompt: str) -> int | None:
    """Where a text continues that begins with a prompt except for white space; None where it does not."""
    # Both texts are walked without their white space; linear, since prompts may be as long as the context.
    solid = "".join(prompt.split())
    at = seen = 0
    while seen < len(solid) and at < len(text):
        if not text[at].isspace():
            if text[at] != solid[seen]:
                return None
            seen += 1
        at += 1
    if seen < len(solid):
        return None
    # White space that the prompt ends with belongs to the prompt, not to the answer.
    space = prompt[len(prompt.rstrip()) :]
    return at + len(space) if text.startswith(space, at) else at


def missing_calls(message: Message, text: str) -> Iterator[str]:
    """The parts of a turn's tool calls that a text does not hold."""
    for call in message.tool_calls:
        function = call["function"]
        if function["name"] not in text:
            yield f"the name {function['name']!r}"
        for leaf in argument_texts(call):
            if not stands_in(leaf, text):
                yield f"the argument {leaf!r}"


def argument_texts(call: Mapping[str, Any]) -> Iterator[str]:
    """All texts in the arguments of a call, names of arguments included."""
    return _leaves(json.loads(call["function"]["arguments"]))


def _leaves(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys included. Numbers are left out: 1.0 may rightly be written 1."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def stands_in(part: str, text: str) -> bool:
    """Whether `part` is in `text` as it is or as JSON writes it."""
    # As it is, as JSON with Unicode, and as JSON in ASCII with escapes: templates use tojson with either setting.
    forms = (part.strip(), json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any(form in text for form in forms)


def difference(one: str, other: str) -> str:
    """The place where two texts part, as each continues."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    # Half an excerpt before the difference, so that a reader can find the place in the template.
    start = max(0, at - EXCERPT_CHARACTERS // 2)
    return f"{one[start : at + EXCERPT_CHARACTERS]} <<< against >>> {other[start : at + EXCERPT_CHARACTERS]}"
