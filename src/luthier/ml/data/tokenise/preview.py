"""What a model will see and learn of one example: its text, cut where its tokens are cut, learned parts marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.task_head import TaskHead
from luthier.ml.data.tokenise.heads import target_text
from luthier.ml.data.tokenise.template import Template, decode

Side = Literal["chosen", "rejected", "wanted", "not wanted"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_TOKENS_A_CHARACTER = 8


@dataclass(frozen=True, slots=True)
class Span:
    """One token, or the few tokens that share one character, with its text.

    Attributes:
        text: the characters that the tokens cover.
        learned: at least one of the tokens has loss mask 1.
        token_ids: ids of the tokens.
    """

    text: str
    learned: bool
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """One example as the model gets it. The texts of the spans joined are the whole text (cut if truncated).

    Attributes:
        id: id of the example.
        spans: the text in pieces, in order.
        num_tokens: tokens of the sequence.
        num_trained_tokens: tokens with loss mask 1.
        num_truncated_tokens: tokens that were cut off the end.
        side: which side of a preference it is; None for other examples.
        part: which one of how many sequences of its row, where the template needs one for each answer.
        joined: of a row whose answers were joined into one sequence, how earlier ones differ from what inference shows;
            None for others.
        input_ids: the sequence as it is trained: spans put tokens that share a character together, this does not.
        loss_mask: 1 for each token that is learned, 0 for others.
        target: what a task head learns at the end of the prompt: labels or a number, as answers write them; None where
            answers are learned.
    """

    id: str
    spans: tuple[Span, ...]
    num_tokens: int
    num_trained_tokens: int
    num_truncated_tokens: int
    side: Side | None = None
    part: tuple[int, int] | None = None
    joined: tuple[str, ...] | None = None
    input_ids: tuple[int, ...] = ()
    loss_mask: tuple[int, ...] = ()
    target: str | None = None

    @property
    def text(self) -> str:
        """The whole text that the tokens represent."""
        return "".join(span.text for span in self.spans)

    @property
    def learned_text(self) -> str:
        """The text of the learned tokens."""
        return "".join(span.text for span in self.spans if span.learned)


def preview_sides(example: Example, unit: Sequence[TokenisedExample], template: Template) -> tuple[Preview, ...]:
    """An example as `preview` shows it; of a preference first the chosen side, then the rejected one; of a conversation
    that is cut, each of its sequences."""
    if example.rejected is None and len(unit) > 1:
        num = len(unit)
        return tuple(replace(preview(example, row, template), part=(number, num)) for number, row in enumerate(unit, 1))
    names: Sequence[Side | None] = (None,)
    if example.rejected is not None:
        names = ("chosen", "rejected")
    elif example.is_wanted is not None:
        names = ("wanted" if example.is_wanted else "not wanted",)
    return tuple(
        replace(preview(side, row, template), side=name)
        for side, row, name in zip(example.sides, unit, names, strict=True)
    )


def preview_head_row(example: Example, tokenised: TokenisedExample, template: Template, head: TaskHead) -> Preview:
    """The prompt that a task head reads, cut into tokens; the slot behind it is shown as what the head should give.

    Args:
        example: the row.
        tokenised: the same row, with the slot as its last token.
        template: renders the prompt.
        head: names the classes, or the unit of numbers.
    """
    prompt = replace(
        tokenised, input_ids=tokenised.input_ids[:-1], loss_mask=tokenised.loss_mask[:-1], num_truncated_tokens=0
    )
    text = template.render(example.prompt, add_generation_prompt=True) if example.prompt is not None else ""
    spans = _spans(prompt, text, template)
    target = target_text(tokenised.target, head)
    slot = Span(f"\N{RIGHTWARDS ARROW} {target}", True, tuple(tokenised.input_ids[-1:]))
    return Preview(
        example.id,
        (*spans, slot),
        tokenised.num_tokens,
        tokenised.num_trained_tokens,
        tokenised.num_truncated_tokens,
        input_ids=tuple(tokenised.input_ids),
        loss_mask=tuple(tokenised.loss_mask),
        target=target,
    )


def preview(example: Example, tokenised: TokenisedExample, template: Template) -> Preview:
    """Cut an example's text into its tokens. Tokens that share a character (bytes of a CJK sign) stay together."""
    return Preview(
        example.id,
        _spans(tokenised, _text(example, template), template),
        tokenised.num_tokens,
        tokenised.num_trained_tokens,
        tokenised.num_truncated_tokens,
        joined=tokenised.differs if tokenised.is_joined else None,
        input_ids=tuple(tokenised.input_ids),
        loss_mask=tuple(tokenised.loss_mask),
    )


def _spans(tokenised: TokenisedExample, text: str, template: Template) -> tuple[Span, ...]:
    ids = list(tokenised.input_ids)
    groups = _groups_by_offsets(text, ids, template)
    if groups is None:
        groups = _groups_by_decoding(ids, template)
    spans, position = [], 0
    for piece, count in groups:
        learned = 1 in tokenised.loss_mask[position : position + count]
        spans.append(Span(piece, learned, tuple(ids[position : position + count])))
        position += count
    return tuple(spans)


def _text(example: Example, template: Template) -> str:
    if example.conversation is not None:
        return template.render(example.conversation)
    text = example.text or ""
    return text if text.endswith(template.end_texts) else text + template.end_of_text


def _groups_by_offsets(text: str, ids: Sequence[int], template: Template) -> list[tuple[str, int]] | None:
    """(text, number of tokens) by character offsets; None where the ids are not those of the text encoded at once.

    A token that represents no character of the text (a BOS token) is shown as its own name.
    """
    whole, offsets = template.encode(text)
    # Only a prefix has to match: a truncated row has fewer tokens than its text.
    if whole[: len(ids)] != list(ids):
        return None
    groups: list[tuple[str, int]] = []
    reached = 0
    for index, (_, end) in enumerate(offsets[: len(ids)]):
        # Some tokenizers trim white space from offsets; from `reached` on, no character is lost in the preview.
        if end > reached:
            groups.append((text[reached:end], 1))
            reached = end
        elif reached == 0:
            groups.append((decode(template, [ids[index]]), 1))
        else:  # one more token of the same character
            groups[-1] = (groups[-1][0], groups[-1][1] + 1)
    return groups


def _groups_by_decoding(ids: Sequence[int], template: Template) -> list[tuple[str, int]]:
    groups: list[tuple[str, int]] = []
    start = 0
    while start < len(ids):
        count = 1
        piece = decode(template, list(ids[start : start + 1]))
        # Bytes that are no whole character decode to U+FFFD: take more tokens until they are. The limit stops at bytes
        # that never become valid.
        while _REPLACEMENT in piece and count < _MAX_TOKENS_A_CHARACTER and start + count < len(ids):
            longer = decode(template, list(ids[start : start + count + 1]))
            piece, count = longer, count + 1
        groups.append((piece, count))
        start += count
    return groups
