"""Selection of few-shot examples.

Few-shot prompting is the inexpensive alternative to fine-tuning, so a tuned model has to beat it.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.core.conversation import Conversation, Message, split_tags
from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.ids import canonical_json, sha256_document

_OPENING_ROLES = ("system", "developer")


def choose_shots(
    pool: Sequence[Example], num: int, seed: int, *, held_out: Sequence[Example] = ()
) -> tuple[Example, ...]:
    """Choose examples for a prompt; deterministic in its arguments.

    They come from the shorter half of the pool (by characters of the conversation, so that several fit into a context
    and the answers are still typical), in the order of a hash of seed and content, which is independent of the order of
    the pool. Longer ones follow only if that half is too small, shortest first. Equal conversations are used once, and
    never one whose prompt is also in `held_out`.

    Args:
        pool: rows to choose from, such as the training rows.
        num: how many examples, 0 or more.
        seed: of the choice.
        held_out: the rows to be evaluated.

    Raises:
        RequestError: fewer than `num` examples are available.
    """
    usable = usable_shots(pool, held_out)
    if num < 0 or len(usable) < num:
        raise RequestError(
            f"{num} few-shot examples asked, {len(usable)} of {len(pool)} rows can be shown",
            expected="rows with a text answer, different from each other and from the held-out rows",
            do="ask for fewer few-shot examples, or take them from a larger file",
        )
    return tuple(usable[key] for key in _in_order(usable, seed)[0][:num])


def choose_draws(
    pool: Sequence[Example], num: int, seed: int, *, num_draws: int, held_out: Sequence[Example] = ()
) -> tuple[tuple[Example, ...], ...]:
    """Several disjoint choices of `num` examples; the first is that of `choose_shots`.

    Disjoint draws show the variation between draws. All of them come from the shorter half of the pool, so there are
    fewer than `num_draws` if that half is too small.

    Args:
        pool: rows to choose from, such as the training rows.
        num: examples of a draw, at least 1.
        seed: of the choice.
        num_draws: draws, at least 1.
        held_out: the rows to be evaluated.

    Raises:
        RequestError: fewer than `num` examples are available.
    """
    first = choose_shots(pool, num, seed, held_out=held_out)
    usable = usable_shots(pool, held_out)
    order, num_short = _in_order(usable, seed)
    starts = range(num, min(num_draws * num, num_short) - num + 1, num)
    return (first, *(tuple(usable[key] for key in order[start : start + num]) for start in starts))


def num_draws_of(num_shown: int, num: int, num_draws: int) -> int:
    """The number of draws of `num` examples, at most `num_draws`, that `choose_draws` makes from that many rows."""
    # The shorter half including the median: if all lengths differ, this many are not longer than the median.
    return max(1, min(num_draws, (num_shown + 1) // 2 // max(1, num)))


def _in_order(usable: dict[str, Example], seed: int) -> tuple[list[str], int]:
    """The keys in drawing order, and the number of them in the shorter half."""
    sizes = {key: _num_characters(example) for key, example in usable.items()}
    middle = statistics.median(sizes.values()) if sizes else 0
    drawn = {key: sha256_document([seed, key]) for key in usable}
    # Everything up to the median ties in size, so the hash alone orders the shorter half.
    order = sorted(usable, key=lambda key: (max(sizes[key], middle), drawn[key]))
    return order, sum(size <= middle for size in sizes.values())


def num_usable(pool: Sequence[Example], *, held_out: Sequence[Example] = ()) -> int:
    """The number of examples available to `choose_shots`."""
    import numpy as np

    # Digests in place of the rows and their keys: 16 bytes a row, of which there may be millions.
    digests = bytearray()
    for example in _usable(pool, held_out):
        conversation = _conversation(example)
        # Equal where the keys are, and found in a fifth of the time.
        tools = canonical_json(conversation.tools) if conversation.tools else ""
        content = (tools, *map(_content_of, conversation.messages))
        digests += hashlib.sha256(repr(content).encode()).digest()[:16]
    keys = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    keys = keys[np.lexsort(keys.T)]
    return int((keys[1:] != keys[:-1]).any(axis=1).sum()) + 1 if len(keys) else 0


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example with the shots' turns after its own system prompt and before its first other turn.

    Shots lose their system prompts and reasoning, and their assistant turns get weight 0: they are context and never
    scored, so `reference`, `prompt` and `learned_bytes` still refer to the example's own answer.

    Raises:
        RequestError: the example or a shot is plain text, or the example is among the shots.
    """
    if not shots:
        return example
    conversation = _conversation(example)
    if any(_key(shot) == _key(example) for shot in shots):
        raise RequestError(
            f"{example.id} is one of its own few-shot examples",
            expected="shots from other rows: this one would show the model its answer",
            do="choose the shots with held_out=the rows to be evaluated",
        )
    # System turns stay in front: many templates reject later ones.
    num_opening = 0
    while num_opening < len(conversation.messages) and conversation.messages[num_opening].role in _OPENING_ROLES:
        num_opening += 1
    shown = [turn for shot in shots for turn in shown_turns(shot)]
    shown_in = {
        side: Conversation(
            messages=(*whole.messages[:num_opening], *shown, *whole.messages[num_opening:]), tools=whole.tools
        )
        for side, whole in (("conversation", conversation), ("rejected", example.rejected))
        if whole is not None
    }
    return example.model_copy(update=shown_in)


def usable_shots(pool: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Example]:
    """The available rows, each conversation once: with a text answer, and with a prompt that is in no held-out row."""
    usable: dict[str, Example] = {}
    for example in _usable(pool, held_out):
        # The first of equal conversations is kept, so that copies do not increase their chance.
        usable.setdefault(_key(example), example)
    return usable


def _usable(pool: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Example]:
    asked = {_prompt_key(example) for example in held_out}
    return (example for example in pool if example.reference and not (asked and _prompt_key(example) in asked))


def shown_turns(shot: Example) -> list[Message]:
    """The turns of an example as a prompt has them: without its system prompt and reasoning."""
    turns = [message for message in _conversation(shot).messages if message.role not in _OPENING_ROLES]
    return [_without_thought(turn) if turn.role == "assistant" else turn for turn in turns]


def _without_thought(turn: Message) -> Message:
    """The turn as context, without reasoning: examples show only the form of an answer."""
    content = turn.content if turn.content is None else split_tags(turn.content)[1]
    return turn.model_copy(update={"weight": 0, "content": content, "reasoning": None, "learn_reasoning": None})


def _conversation(example: Example) -> Conversation:
    if example.conversation is None:
        raise RequestError(
            f"{example.id} is plain text",
            expected="a row with a prompt and an answer",
            do="leave few-shot examples out for plain text",
        )
    return example.conversation


def _num_characters(example: Example) -> int:
    return sum(len(message.content or "") for message in _conversation(example).messages)


def _key(example: Example) -> str:
    return canonical_json(_conversation(example).model_dump(mode="json"))


def _prompt_key(example: Example) -> tuple[tuple[Any, ...], ...] | None:
    """What the turns before the last learned answer are, without tools."""
    conversation = example.conversation
    if conversation is None or (last := conversation.last_answer) is None:
        return None
    return tuple(map(_content_of, conversation.messages[:last]))


def _content_of(message: Message) -> tuple[Any, ...]:
    """All of a turn; calls as JSON, since the order of their keys means nothing."""
    calls = canonical_json(message.tool_calls) if message.tool_calls else ""
    return (
        message.role,
        message.content,
        message.name,
        message.tool_call_id,
        message.weight,
        message.reasoning,
        message.learn_reasoning,
        calls,
    )
