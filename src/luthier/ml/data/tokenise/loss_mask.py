"""Examples become token ids and a loss mask: what is learned is exact, proved and visible.

Learned is everything the template writes for an assistant turn after the generation prompt: the answer, the end-of-turn
token, and the white space that closes the turn. Turns of weight 0 and all other turns are context. Of plain text every
token but the first is learned. How a mask is proved is in `proof.py`, how ids are made in `template.py`.

An example is one sequence of tokens. A conversation whose earlier turns the template rewrites becomes several, one for
each answer; so does one in which the tokenizer joins answers with what comes before them. They stay together as one
example. Where asked, those of a template that rewrites are joined into one (`proof.join_answers`).

Of an answer to choose from (`tokenise_option`) only its own tokens are scored, behind the prompt as the model meets it.
What ends a turn is not scored, since it is the same for all options. Gao et al., lm-evaluation-harness, likewise score
the continuation alone.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import DataError, TemplateError
from luthier.core.published_head import PairFormat, Pooling
from luthier.core.task_head import TaskHead, TaskHeadKind
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.tokenise.answer_text import argument_texts
from luthier.ml.data.tokenise.heads import tokenise_prompt
from luthier.ml.data.tokenise.proof import ProvedText, prove
from luthier.ml.data.tokenise.search import tokenise_for_embedding, tokenise_for_ranking
from luthier.ml.data.tokenise.template import (
    NOT_ENCODED,
    Encoded,
    Template,
    encode_ids,
    encode_with_cuts,
    ends_of,
)
from luthier.ml.data.tokenise.token_store import Unit


@dataclass(frozen=True, slots=True)
class Learning:
    """What is learned of a row beside its answers.

    Attributes:
        reasoning: whether thoughts are learned; None learns those of the rows, and none that the template inserts.
        only_last: learn only the last answer of a conversation that must be cut, for objectives that cannot use the
            others.
        joins: join the answers of a conversation that must be cut into one sequence.
        task_head: which head reads the rows in place of learning their answers; None learns the answers.
        pooling: embed: which states a vector is made of.
        query_prompt: embed: text before each query; rank: the instruction of a published reranker.
        document_prompt: embed: text before each document.
        end_text: embed: text behind each query and document.
        pair_format: rank: how a query is read with a document.
    """

    reasoning: bool | None = None
    only_last: bool = False
    joins: bool = False
    task_head: TaskHeadKind | None = None
    pooling: Pooling = "last"
    query_prompt: str = ""
    document_prompt: str = ""
    end_text: str = ""
    pair_format: PairFormat = "turns"

    @classmethod
    def of_search(cls, head: TaskHead) -> Learning:
        """What a model that searches reads of its rows.

        Args:
            head: of kind rank or embed.
        """
        return cls(
            task_head=head.kind,
            pooling=head.pooling if head.kind == "embed" else "mean",
            query_prompt=head.query_prompt,
            document_prompt=head.document_prompt,
            end_text=head.end_text,
            pair_format=head.pair_format,
        )


PLAIN: Final = Learning()


def tokenise_sides(example: Example, template: Template, learning: Learning = PLAIN) -> Unit:
    """The rows of one example, of whatever length: one, those of its answers where the template makes that necessary,
    or chosen and rejected of a preference pair.

    Raises:
        TemplateError: no mask can be proved, or a completion that is preferred or rated would have to be cut.
        DataError: nothing would be learned, a turn holds the template's end-of-turn text, or both sides of a pair
            become the same tokens.
    """
    if learning.task_head is not None:
        return _tokenise_for_head(example, template, learning)
    return encode_rendered(render_sides(example, template, learning), template, learning)


@dataclass(frozen=True, slots=True)
class Rendered:
    """An example as text, before it is encoded.

    Attributes:
        example: the row.
        sides: chosen and rejected of a preference pair, else the example itself; each with its texts, of which plain
            text has none.
    """

    example: Example
    sides: tuple[tuple[Example, tuple[ProvedText, ...]], ...]

    def texts(self, template: Template) -> Iterator[str]:
        """All that has to be encoded: each text up to each of its borders.

        Args:
            template: which has rendered it.
        """
        for side, proved in self.sides:
            if side.conversation is None:
                yield _plain_text(side, template)
            for one in proved:
                yield from (one.text[:end] for end in ends_of(one.text, _borders_of(one)))


def render_sides(example: Example, template: Template, learning: Learning = PLAIN) -> Rendered:
    """The texts of one example whose answers are learned.

    Raises:
        TemplateError: no mask can be proved.
        DataError: a turn holds the template's end-of-turn text.
    """
    sides = (example,) if _is_single(example) else example.sides
    return Rendered(example, tuple((side, _proved(side, template, learning)) for side in sides))


def _is_single(example: Example) -> bool:
    return example.rejected is None and example.is_wanted is None


def encode_rendered(
    rendered: Rendered, template: Template, learning: Learning = PLAIN, encoded: Encoded = NOT_ENCODED
) -> Unit:
    """The rows of one example; see `tokenise_sides`.

    Args:
        rendered: its texts.
        template: which has rendered it.
        learning: what is learned.
        encoded: the ids of its texts, as far as they are known.

    Raises:
        TemplateError: an answer cannot be encoded apart, or a completion that is preferred or rated has to be cut.
        DataError: nothing would be learned, or both sides of a pair become the same tokens.
    """
    example = rendered.example
    if _is_single(example):
        return _rows_of_side(*rendered.sides[0], template, learning, encoded)
    rows = tuple(_row_of_side(side, proved, template, learning, encoded) for side, proved in rendered.sides)
    if len(rows) > 1 and rows[0].input_ids == rows[1].input_ids:
        reason = "becomes the same tokens as chosen: there is nothing to prefer"
        raise DataError(
            f"{example.id}: both sides become the same {rows[0].num_tokens} tokens",
            expected="two different completions",
            do="remove the row",
            problems=[problem_of(example.id, value="", reason=reason, field="rejected")],
        )
    return rows


def _tokenise_for_head(example: Example, template: Template, learning: Learning) -> Unit:
    if learning.task_head == "rank":
        return tokenise_for_ranking(example, template, learning.pair_format, learning.query_prompt)
    if learning.task_head == "embed":
        return tokenise_for_embedding(
            example,
            template,
            query_prompt=learning.query_prompt,
            document_prompt=learning.document_prompt,
            end_text=learning.end_text,
            pooling=learning.pooling,
        )
    return (tokenise_prompt(example, template),)


def tokenise(example: Example, template: Template, learning: Learning = PLAIN) -> TokenisedExample:
    """Token ids and loss mask of one example, of whatever length; of one that must be cut, those of its last answer.

    Raises:
        TemplateError: the template renders the conversation in a way on which no mask can be proved.
        DataError: nothing would be learned, or a turn holds the template's own end-of-turn text.
    """
    last = replace(learning, only_last=True)
    return _rows_of_side(example, _proved(example, template, last), template, last, NOT_ENCODED)[-1]


def _row_of_side(
    side: Example, proved: tuple[ProvedText, ...], template: Template, learning: Learning, encoded: Encoded
) -> TokenisedExample:
    """The one row of a completion that is wanted or not.

    Raises:
        TemplateError: it would have to be cut.
    """
    rows = _rows_of_side(side, proved, template, learning, encoded)
    if len(rows) > 1:
        raise TemplateError(
            f"{side.id}: a completion of {len(rows)} answers, and the template rewrites earlier turns once others "
            "follow, or the tokenizer joins an answer with the text before it",
            expected="one answer to prefer, or a template that leaves earlier turns as they were",
            do="move all turns of the completion but the last answer into the prompt",
        )
    return rows[0]


def _proved(example: Example, template: Template, learning: Learning) -> tuple[ProvedText, ...]:
    """The texts of one side of an example; none of plain text."""
    if example.conversation is None:
        return ()
    _check_no_control_text(example, template)
    return prove(
        example.id,
        example.conversation,
        template,
        learn_reasoning=learning.reasoning,
        only_last=learning.only_last,
        joins=learning.joins,
    )


def _rows_of_side(
    example: Example, proved: tuple[ProvedText, ...], template: Template, learning: Learning, encoded: Encoded
) -> Unit:
    if example.conversation is None:
        ids = encode_ids(_plain_text(example, template), template, encoded)
        return (_checked(example, ids, bytearray(b"\1" * len(ids))),)
    rows = [row for text in proved for row in _rows_of(example, text, template, encoded)]
    # prove() returns one text here, but the tokenizer had to cut it: only_last then keeps the row of the last answer.
    return tuple(rows[-1:] if learning.only_last and len(proved) == 1 < len(rows) else rows)


def _rows_of(example: Example, proved: ProvedText, template: Template, encoded: Encoded) -> Unit:
    """The row of a text; or one for each answer, where a token that had to be cut would be in a later prompt.

    Inference would encode that prompt without the cut, so that the answer would be learned behind other tokens.
    """
    if len(proved.spans) < 2 or proved.is_joined:  # joined ones follow prompts that inference would not show
        return (_with_mask(example, proved, template, encoded),)
    with contextlib.suppress(TemplateError):  # a part between two answers that cannot be encoded apart
        row = _with_mask(example, proved, template, encoded)
        # The usual case, checked first: nothing had to be cut, so one encoding replaces one for each answer.
        if list(row.input_ids) == encode_ids(proved.text, template, encoded):
            return (row,)
        # A cut token after the last prompt harms nothing: compare every prompt with its encoding at inference.
        prompts = [encode_ids(proved.text[: span.prompt], template, encoded) for span in proved.spans]
        if all(list(row.input_ids[: len(prompt)]) == prompt for prompt in prompts):
            return (row,)
    parts = [replace(proved, text=proved.text[: span.end], spans=(span,)) for span in proved.spans]
    return tuple(_with_mask(example, part, template, encoded) for part in parts)


def _borders_of(proved: ProvedText) -> list[int]:
    # All three borders of a span get a cut: the prompt's end too, since inference encodes the prompt alone.
    return sorted({border for span in proved.spans for border in (span.prompt, span.start, span.end)})


def _with_mask(example: Example, proved: ProvedText, template: Template, encoded: Encoded) -> TokenisedExample:
    borders = _borders_of(proved)
    ids, marks = encode_with_cuts(proved.text, borders, template, encoded)
    # [num_tokens] bytes, 0 for context and 1 for learned.
    mask = bytearray(len(ids))
    places = dict(zip(borders, marks, strict=True))
    for span in proved.spans:
        start, end = places[span.start], places[span.end]
        if end <= start:
            raise TemplateError(
                f"{example.id}: the tokenizer writes no token for an answer",
                expected="at least one token for each learned answer",
                do="see the row with `luthier data preview`",
            )
        mask[start:end] = b"\1" * (end - start)
    row = _checked(example, ids, mask)
    if not (proved.has_thought or proved.skips_thought or proved.is_joined):
        return row
    return replace(
        row,
        has_thought=proved.has_thought,
        skips_thought=proved.skips_thought,
        is_joined=proved.is_joined,
        differs=proved.differs,
    )


def _plain_text(example: Example, template: Template) -> str:
    text = example.text or ""
    # A text that another piece continues gets no end token, and one that was written with an end no second one.
    if not example.goes_on and not text.endswith(template.end_texts):
        text += template.end_of_text
    return text


def _checked(example: Example, ids: list[int], mask: bytearray) -> TokenisedExample:
    mask[:1] = b"\0" * len(mask[:1])  # nothing comes before the first token, so nothing can predict it
    if 1 not in mask:
        problem = problem_of(example.id, value="", reason="has no token to learn")
        raise DataError(
            f"{example.id} has {len(ids)} tokens and none of them is learned",
            expected="an assistant turn whose weight is not 0, or text of two tokens or more",
            do="remove the row, or give its answer weight 1",
            problems=[problem],
        )
    # array("i") takes 4 bytes a token, a list of Python ints 8 and their objects.
    return TokenisedExample(example.id, array("i", ids), bytes(mask), is_wanted=example.is_wanted)


def _check_no_control_text(example: Example, template: Template) -> None:
    """A turn that contains the end-of-turn text would end there for the model, whatever the template says.

    An answer would end at any text that stops a generation, such as the end of a text beside that of a turn.
    """
    messages = example.conversation.messages if example.conversation is not None else ()
    for index, message in enumerate(messages):
        texts = [("content", message.content), ("reasoning_content", message.reasoning)]
        texts += [("tool_calls", one) for call in message.tool_calls for one in argument_texts(call)]
        ends = template.end_texts if message.is_learned else (template.end_of_turn,)
        for name, text in texts:
            end = next((one for one in ends if text is not None and _ends_at(one, text, template)), None)
            if text is None or end is None:
                continue
            at = text.index(end)
            reason = f"contains the end-of-turn text {end!r} of the template, which would end the turn"
            value = shorten(text[max(0, at - 20) : at + 30])
            problem = problem_of(example.id, value=value, reason=reason, field=f"messages[{index}].{name}")
            raise DataError(
                f"{example.id} contains control text of the template",
                expected="content without control text",
                do="remove it from the row: the template writes it itself",
                problems=[problem],
            )


def _ends_at(end: str, text: str, template: Template) -> bool:
    """Whether an end is in a text as a token: an ordinary word that stops a generation need not be one there."""
    if end not in text:
        return False
    named = (token.content for token in template.tokenizer.added_tokens_decoder.values())
    return end == template.end_of_turn or end in named


def with_answer(example: Example, text: str) -> Example:
    """The example with another last answer; where it is plain text, or has no answer, the text alone."""
    conversation = example.conversation
    if conversation is None or (last := conversation.last_answer) is None:
        return example.model_copy(update={"text": text, "conversation": None, "rejected": None})
    answer = conversation.messages[last].model_copy(update={"content": text, "tool_calls": (), "reasoning": None})
    messages = (*conversation.messages[:last], answer)
    return example.model_copy(
        update={"conversation": conversation.model_copy(update={"messages": messages}), "rejected": None}
    )


def tokenise_option(example: Example, option: str, template: Template) -> TokenisedExample:
    """The example's prompt with this option as its answer; only the option's own tokens have loss mask 1.

    Args:
        example: the prompt; its answer is replaced.
        option: text of the answer to score.
        template: renders and encodes.

    Raises:
        DataError: the option has no token of its own, or holds the template's end-of-turn text.
        TemplateError: no mask can be proved on what the template renders.
    """
    answered = with_answer(example, option)
    row = tokenise(answered, template)
    end = template.encode(template.end_of_text if answered.conversation is None else template.end_of_turn)[0][-1]
    # The last step from 0 to 1 in the mask: earlier answers of the conversation are learned too, but not scored.
    start = row.loss_mask.rfind(b"\0\1") + 1
    # The template may write white space behind the end-of-turn token; neither is scored.
    ends = [place for place in range(start, row.num_tokens) if row.input_ids[place] == end]
    stop = ends[-1] if ends else row.num_tokens
    if stop <= start:
        reason = "has no token of its own"
        raise DataError(
            f"{example.id}: the option {option!r} has no token",
            expected="text in every option",
            do="remove or correct the row",
            problems=[problem_of(example.id, value=option, reason=reason, field="options")],
        )
    return replace(row, loss_mask=row.loss_mask[:stop] + bytes(row.num_tokens - stop))
