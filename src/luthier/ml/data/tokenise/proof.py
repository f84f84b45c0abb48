"""Prove where the learned answers are in the text that a chat template makes of a conversation.

A template is a program that nobody checked. Some strip reasoning from earlier turns, some drop tool calls or tools,
some move the system prompt when a turn is added. A mask that is laid over such a text marks the wrong tokens, and
training continues as if nothing were wrong. So nothing is assumed. Of each learned turn the conversation is rendered
up to it with the generation prompt (what the model sees when it must answer), and through it (`answer_text.py`). Where
the whole conversation begins with all of these texts, it is one sequence in which all answers are learned. Where the
template writes a turn in another way once others follow it, the conversation is cut: each answer is learned in a
sequence of its own, which ends with it; or, where asked, these are joined into one (`join_answers`).

Joined, every answer is as it is written when it is the last, behind the prompt that it has then, and only what the
template writes between two answers is taken from the prompt of the later one. The template itself is not changed. Its
texts are cut where renderings of two different earlier answers begin to be the same. The price: a later answer is
learned behind earlier ones in a form that inference would not show (with their thoughts, or ended in another way). What
differs is found and handed on, so that it can be shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.answer_text import (
    EXCERPT_CHARACTERS,
    AnswerText,
    Turn,
    answer_text,
    missing_calls,
    stands_in,
)
from luthier.ml.data.tokenise.template import Template

# Two answers that end differently, so that what two renderings end with alike is what the template writes after them.
_PROBES = ("Spruce-wood", "maple 7")
_UNITS = re.compile(r"\{(?:answer|thought|system)\}|<[^<>\s]{1,40}>|\w+|.", re.DOTALL)  # tags are compared as a whole
_SWITCH = re.compile(r"/[a-z_]+")  # as Nemotron's and SmolLM3's templates have them in a system turn
_MAX_SHOWN = 120
_DO = "leave data.reset_template out: the row is then learned in one sequence for each answer"


def join_answers(
    conversation: Conversation, turns: Sequence[Turn], answers: Sequence[AnswerText], template: Template
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """Join the texts of all answers of a conversation.

    Args:
        conversation: the whole conversation.
        turns: its learned answers, in order.
        answers: the text of each, as it is when it is the last turn.
        template: renders the turns between them.

    Returns:
        The joined text; for each answer how many characters its own text is moved in it; and the differences from what
        inference would show, as text without repeats.

    Raises:
        TemplateError: it cannot be found what the template writes between two answers.
    """
    text, shifts = answers[0].text, [0]
    differs: list[str] = []
    for before, turn, earlier, answer in zip(turns, turns[1:], answers, answers[1:], strict=False):
        prompt = answer.text[: answer.prompt]
        between = _between(before, turn, earlier, prompt, conversation, template)
        shown = prompt[: len(prompt) - len(between)]
        differs.extend(_difference(before, earlier, shown, conversation, template))
        text += between
        # The end of the prompt is now at len(text), so each offset of this answer moves by the same amount.
        shifts.append(len(text) - answer.prompt)
        text += answer.text[answer.prompt :]
    return text, tuple(shifts), tuple(dict.fromkeys(differs))


def _between(
    before: Turn, turn: Turn, earlier: AnswerText, prompt: str, conversation: Conversation, template: Template
) -> str:
    """What is between the end of an answer and the next one: the turns between, and the generation prompt."""
    # What follows the answer when it is the last turn, and what follows it once other turns come.
    as_last = _after(before, conversation.up_to(before.index + 1), template, begins=False)
    as_earlier = _after(before, conversation.up_to(turn.index), template, begins=True)
    if as_last is None or as_earlier is None or not prompt.endswith(as_earlier):
        raise before.error(
            "what the template writes after this answer depends on the answer itself, so the answers of the row cannot "
            "be joined into one sequence",
            prompt,
            _DO,
        )
    closing = template.closing(before.message)
    ended = next((end for end in (as_last + closing, as_last) if earlier.text.endswith(end)), None)
    if ended is not None:
        # The end of the turn is already in the earlier answer's text and must not be written a second time.
        for end in (ended, as_last):
            if as_earlier.startswith(end):
                return as_earlier[len(end) :]
        # The two ends differ (a last turn may close with other white space): compare them token by token, since a cut
        # inside a special token would make plain text of it.
        alike = _alike(as_last, as_earlier, template)
        rest, of_user = as_earlier[len(alike) :], _end_of_user(template)
        if of_user and rest.startswith(of_user):
            return rest[len(of_user) :]
        if alike:
            return rest
    raise before.error(
        "where the end of this answer lies cannot be found once other turns follow it, so the answers of the row "
        "cannot be joined into one sequence",
        as_earlier,
        _DO,
    )


def _after(turn: Turn, conversation: Conversation, template: Template, *, begins: bool) -> str | None:
    """What the template writes after an answer, whatever the answer is; None where that cannot be known.

    Args:
        turn: the answer.
        conversation: its turns, with those that come after the answer.
        template: renders both.
        begins: with the generation prompt at the end.
    """
    texts = []
    for probe in _PROBES:
        messages = list(conversation.messages)
        messages[turn.index] = _with_probe(turn.message, probe)
        other = conversation.model_copy(update={"messages": tuple(messages)})
        try:
            texts.append(template.render(other, add_generation_prompt=begins))
        except TemplateError:
            return None
    after = _common_end(*texts)
    # A whole text that both end with means the answer is written nowhere: the template drops it.
    return None if after in texts else after


def _with_probe(message: Message, probe: str) -> Message:
    """The message with another answer; of one that calls tools, with another argument of the last call."""
    if not message.tool_calls:
        return message.model_copy(update={"content": probe, "reasoning": None})
    *others, last = message.tool_calls
    function = {**last["function"], "arguments": json.dumps({"wood": probe})}
    return message.model_copy(update={"reasoning": None, "tool_calls": (*others, {**last, "function": function})})


def _common_end(one: str, other: str) -> str:
    num = _num_alike(one[::-1], other[::-1])
    return one[len(one) - num :]


def _alike(one: str, other: str, template: Template) -> str:
    """The beginning that two texts share, in whole tokens."""
    (ids, places), (others, _) = template.encode(one), template.encode(other)
    end = 0
    for number, other_number, (_, stop) in zip(ids, others, places, strict=False):
        if number != other_number:
            break
        end = stop
    return one[:end] if other.startswith(one[:end]) else ""


def _end_of_user(template: Template) -> str:
    """What the template ends a user's turn with; empty where that cannot be known."""
    texts = []
    for probe in _PROBES:
        try:
            texts.append(template.render(Conversation(messages=(Message(role="user", content=probe),))))
        except TemplateError:
            return ""
    end = _common_end(*texts)
    return "" if end in texts else end


def _difference(
    turn: Turn, answer: AnswerText, shown: str, conversation: Conversation, template: Template
) -> Iterator[str]:
    """How an answer that is seen from a later one differs from what inference shows there: as text, none if alike.

    Args:
        turn: the answer.
        answer: its text, with where it begins.
        shown: the prompt of the later answer, up to what the template writes between the two.
        conversation: of both.
        template: renders both.
    """
    at = _num_alike(answer.text[: answer.prompt], shown)
    # A difference inside a tag is moved to where the tag begins, so that "<think>" is shown whole.
    if (tag := shown.rfind("<", 0, at)) > shown.rfind(">", 0, at):
        at = tag
    ours, theirs = (_UNITS.findall(_marked(text[at:], turn, conversation, template)) for text in (answer.text, shown))
    start = _num_alike(ours, theirs)
    end = _num_alike(ours[start:][::-1], theirs[start:][::-1])
    added, missing = ("".join(units[start : len(units) - end]) for units in (ours, theirs))
    if added and missing:
        yield f"{_quoted(added)} in place of {_quoted(missing)}"
    elif added or missing:
        yield f"{_quoted(added)} added" if added else f"{_quoted(missing)} left out"


def _num_alike(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _quoted(text: str) -> str:
    shown = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 2]} ... {text[-_MAX_SHOWN // 2 :]}"
    return json.dumps(shown, ensure_ascii=False)


def _marked(text: str, turn: Turn, conversation: Conversation, template: Template) -> str:
    """The text with thought, answer and system text of the row by their names, so that rows can be compared."""
    thought, answer = template.parts_of(turn.message)
    named = {"{thought}": thought, "{answer}": answer}
    if conversation.messages[0].role in ("system", "developer"):
        named["{system}"] = conversation.messages[0].content
    # Longest first: an answer that is a part of the thought would else break the thought's own replacement.
    for name, value in sorted(named.items(), key=lambda one: -len(one[1] or "")):
        if value and value.strip():
            text = text.replace(value.strip(), name)
    return text


@dataclass(frozen=True, slots=True)
class Span:
    """What is learned of an answer: [start, end) in characters of the rendered text.

    Attributes:
        prompt: end of the prompt that inference sees, in characters.
        start: first learned character; prompt <= start.
        end: behind the last learned character.
    """

    prompt: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ProvedText:
    """A rendered conversation and its learned spans, ascending, never overlapping.

    A span ends with the end-of-turn text and the white space that closes the turn.

    Attributes:
        text: the rendered conversation.
        spans: the learned part of each answer.
        has_thought: an answer contains a thought.
        skips_thought: an answer continues without a thought where the prompt lets the model think.
        is_joined: its answers were put into one text by `joined_answers`.
        differs: how earlier answers of a joined text differ from what inference would show of them.
    """

    text: str
    spans: tuple[Span, ...]
    has_thought: bool = False
    skips_thought: bool = False
    is_joined: bool = False
    differs: tuple[str, ...] = ()


def prove(
    row_id: str,
    conversation: Conversation,
    template: Template,
    *,
    learn_reasoning: bool | None = None,
    only_last: bool = False,
    joins: bool = False,
) -> tuple[ProvedText, ...]:
    """Render a conversation and prove where its learned turns are: one text, or one for each learned turn.

    Args:
        row_id: id of the example, for error messages.
        conversation: the turns; those with `is_learned` are learned.
        template: renders the conversation.
        learn_reasoning: whether thoughts are learned, where a turn says nothing of its own; None learns those of the
            row, and none that the template inserts.
        only_last: the last answer alone, where answers cannot be in one text.
        joins: answers that the template does not write into one text are joined into one.

    Raises:
        TemplateError: the template drops or changes a turn, a tool or a call, or an answer cannot be located in what it
            renders.
    """
    num = len(conversation.messages)
    answers: list[AnswerText] = []
    turns: list[Turn] = []
    for index, message in enumerate(conversation.messages):
        if message.is_learned:
            turn = Turn(row_id, index, message, num)
            learns = learn_reasoning if message.learn_reasoning is None else message.learn_reasoning
            answers.append(answer_text(turn, conversation, template, learns))
            turns.append(turn)
    whole = _in_one(conversation, turns, answers, template)
    if whole is not None:
        _check_joined(turns, whole)
        check_context(row_id, conversation, whole.text, template)
        return (whole,)
    if joins and not only_last and len(answers) > 1:
        return (_joined(row_id, conversation, turns, answers, template),)
    made = []
    for turn, answer in list(zip(turns, answers, strict=True))[-1 if only_last else 0 :]:
        check_context(row_id, conversation.up_to(turn.index + 1), answer.text, template)
        made.append(_proved(answer.text, [answer]))
    return tuple(made)


def _in_one(
    conversation: Conversation, turns: Sequence[Turn], answers: Sequence[AnswerText], template: Template
) -> ProvedText | None:
    """The whole conversation with all answers in it; None where it does not begin with the text of each of them."""
    # An answer that is the last turn may have been given an end that the template leaves out, so its own text is used
    # instead of a fresh rendering.
    if turns and turns[-1].index == len(conversation.messages) - 1:
        text = answers[-1].text
        answers_rendered = answers[-1].is_rendered or len(answers) == 1
    else:
        text, answers_rendered = template.render(conversation), True
    # Every answer must be a prefix of the whole: only then does the template write earlier turns as inference saw them.
    if not answers_rendered or not all(text.startswith(answer.text) for answer in answers):
        return None
    return _proved(text, answers)


def _joined(
    row_id: str,
    conversation: Conversation,
    turns: Sequence[Turn],
    answers: Sequence[AnswerText],
    template: Template,
) -> ProvedText:
    """One text of all answers, each behind its own prompt and as it is when it is the last."""
    text, shifts, differs = join_answers(conversation, turns, answers, template)
    # Offsets of an answer in its own text, moved to where that text lies in the joined one.
    moved = [
        Span(shift + one.prompt, shift + one.start, shift + len(one.text))
        for shift, one in zip(shifts, answers, strict=True)
    ]
    for turn, answer in zip(turns, answers, strict=True):  # nothing is lost of what each answer needs
        check_context(row_id, conversation.up_to(turn.index + 1), answer.text, template)
    check_context(row_id, conversation.up_to(turns[-1].index + 1), text, template)
    made = replace(_proved(text, answers), spans=tuple(moved), is_joined=True, differs=differs)
    _check_joined(turns, made)
    return made


def _proved(text: str, answers: Sequence[AnswerText]) -> ProvedText:
    return ProvedText(
        text,
        tuple(Span(one.prompt, one.start, len(one.text)) for one in answers),
        has_thought=any(one.has_thought for one in answers),
        skips_thought=any(one.skips_thought for one in answers),
    )


def _check_joined(turns: Sequence[Turn], proved: ProvedText) -> None:
    # A prompt that ends inside the previous answer would mark tokens as both context and learned.
    for turn, span, before in zip(turns[1:], proved.spans[1:], proved.spans, strict=False):
        if span.prompt < before.end:
            raise turn.error(
                "the template joins this answer with the one before it",
                proved.text[max(0, span.prompt - EXCERPT_CHARACTERS) : span.end],
                "put a user turn between the two, or join them in the row",
            )


def check_context(row_id: str, conversation: Conversation, text: str, template: Template) -> None:
    """Nothing that the row holds as context may be lost: an answer to an unseen request teaches invention.

    Args:
        row_id: of the row, for errors.
        conversation: the turns and tools that the text is to show.
        text: as the template has rendered them.
        template: that rendered it.

    Raises:
        TemplateError: a turn, a call or a tool is not in the text.
    """
    num_messages = len(conversation.messages)
    for index, message in enumerate(conversation.messages):
        turn = Turn(row_id, index, message, num_messages)
        for missing in missing_calls(message, text):
            raise turn.error(
                f"{missing} of a tool call is not in the text: the template drops tool calls",
                text,
                "set data.tools: as_text, choose a base model whose template supports tools, or write the call into "
                "the content",
            )
        content = (message.content or "").strip()
        # Earlier answers are left to the template: some rightly strip their reasoning, at inference as well.
        if message.role == "assistant" or _is_written(content, text, template):
            continue
        if message.role == "tool" and stands_in(content, text):
            continue
        raise turn.error("the template drops or changes this turn", text, _without_role(message.role))
    if conversation.tools:
        _check_tools(row_id, conversation, text, template)


def _is_written(content: str, text: str, template: Template) -> bool:
    """Whether the text has what a turn says, but for switches that the template looks for and takes out (/no_think)."""
    if content in text:
        return True
    # Such a word is a constant of the template, so nothing that it does not know of can be lost.
    switches = sorted((one for one in template.names.fields if _SWITCH.fullmatch(one)), key=len, reverse=True)
    if not any(switch in content for switch in switches):
        return False
    parts = re.split("|".join(map(re.escape, switches)), content)
    return all(part.strip() in text for part in parts)


def _without_role(role: str) -> str:
    """What to do where a template has no place for a role."""
    if role in ("system", "developer"):
        return "set data.system: fold (its text is put before the first user turn), or move it there in the rows"
    if role in ("tool", "function"):
        return "set data.tools: as_text, or choose a base model whose template supports tools"
    return "choose a base model whose template supports this role, or move the text into a user turn"


def _check_tools(row_id: str, conversation: Conversation, text: str, template: Template) -> None:
    # A tool's name may occur in the conversation itself, so the text must also differ from one without tools.
    without = template.render(Conversation(messages=conversation.messages))
    names = [str(tool["function"]["name"]) for tool in conversation.tools]
    missing = [name for name in names if name not in text]
    if without != template.render(conversation) and not missing:
        return
    raise TemplateError(
        f"{row_id}: the row has {len(names)} tools ({', '.join(names[:5])}) and the template does not write "
        f"{', '.join(missing[:5]) or 'them'}; it rendered {text[: 2 * EXCERPT_CHARACTERS]!r}...",
        expected="a template that shows the model the tools it may call: otherwise it would learn to call tools that "
        "it was never given",
        do="set data.tools: as_text (the tools are described in the system turn), choose a base model whose template "
        "supports tools, or remove `tools` from the rows",
    )
