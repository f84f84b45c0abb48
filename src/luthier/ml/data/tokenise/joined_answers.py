"""One sequence for the answers of a conversation whose earlier turns the template rewrites.

Under such a template no rendering holds all answers as they are learned, so a row takes one sequence an answer. Here
these are joined into one: every answer is as it is written when it is the last, behind the prompt that it has then,
and only what the template writes between two answers is taken from the prompt of the later one. The template itself is
not changed. Its texts are cut where renderings of two different earlier answers begin to be the same.

The price: a later answer is learned behind earlier ones in a form that inference would not show (with their thoughts,
or ended in another way). What differs is found and handed on, so that it can be shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.answer_text import AnswerText, Turn
from luthier.ml.data.tokenise.template import Template

# Two answers that end differently, so that what two renderings end with alike is what the template writes after them.
_PROBES = ("Spruce-wood", "maple 7")
_UNITS = re.compile(r"\{(?:answer|thought|system)\}|<[^<>\s]{1,40}>|\w+|.", re.DOTALL)  # tags are compared as a whole
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
    """What the template writes after an answer, whatever the answer is; None where that cannot be told.

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
    """What the template ends a user's turn with; empty where that cannot be told."""
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
