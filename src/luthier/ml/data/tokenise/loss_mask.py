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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from luthier.core.dataset import Example, Overlong, TokenisedExample
from luthier.core.errors import DataError, OverlongError, RowProblem, TemplateError
from luthier.core.ports import Progress
from luthier.core.recipe import ObjectiveRecipe
from luthier.core.task_head import SEARCH_KINDS, Pooling, TaskHeadKind
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.files.sequences import SequenceWriter
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.answer_text import argument_texts
from luthier.ml.data.tokenise.heads import tokenise_prompt
from luthier.ml.data.tokenise.proof import ProvedText, prove
from luthier.ml.data.tokenise.search import tokenise_for_embedding, tokenise_for_ranking
from luthier.ml.data.tokenise.template import Template, encode_with_cuts
from luthier.ml.data.tokenise.token_store import Unit, row_writer


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Rows ready to train on, in the order of the examples, and the ids of examples that were left out or cut.

    Attributes:
        examples: the rows; those of one example follow one another. A tuple, or a sequence in files where they are
            larger than memory.
        dropped_ids: examples that were left out as too long.
        truncated_ids: examples that lost tokens or rows because they were too long.
        kept: indices of the examples that the rows belong to, ascending.
        rows_per_example: 2 for preference pairs, whose chosen and rejected side follow one another.
        row_counts: rows of each kept example, where conversations are cut; else empty.
    """

    examples: Sequence[TokenisedExample]
    dropped_ids: tuple[str, ...]
    truncated_ids: tuple[str, ...]
    kept: Sequence[int]
    rows_per_example: int = 1
    row_counts: Sequence[int] = ()


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
        query_prompt: embed: text before each query.
        document_prompt: embed: text before each document.
    """

    reasoning: bool | None = None
    only_last: bool = False
    joins: bool = False
    task_head: TaskHeadKind | None = None
    pooling: Pooling = "last"
    query_prompt: str = ""
    document_prompt: str = ""

    @classmethod
    def of_search(cls, objective: ObjectiveRecipe, head: TaskHeadKind) -> Learning:
        """What a model that searches reads of its rows.

        Args:
            objective: as the recipe has it.
            head: its kind, rank or embed.
        """
        return cls(
            task_head=head,
            pooling=objective.pooling or "mean",
            query_prompt=objective.query_prompt or "",
            document_prompt=objective.document_prompt or "",
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
    if example.rejected is None and example.is_wanted is None:
        return _tokenise_rows(example, template, learning)
    rows = tuple(_tokenise_side(side, template, learning) for side in example.sides)
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
        return tokenise_for_ranking(example, template)
    if learning.task_head == "embed":
        return tokenise_for_embedding(
            example,
            template,
            query_prompt=learning.query_prompt,
            document_prompt=learning.document_prompt,
            pooling=learning.pooling,
        )
    return (tokenise_prompt(example, template),)


def tokenise(example: Example, template: Template, learning: Learning = PLAIN) -> TokenisedExample:
    """Token ids and loss mask of one example, of whatever length; of one that must be cut, those of its last answer.

    Raises:
        TemplateError: the template renders the conversation in a way on which no mask can be proved.
        DataError: nothing would be learned, or a turn holds the template's own end-of-turn text.
    """
    return _tokenise_rows(example, template, replace(learning, only_last=True))[-1]


def _tokenise_side(side: Example, template: Template, learning: Learning) -> TokenisedExample:
    """The one row of a completion that is wanted or not.

    Raises:
        TemplateError: it would have to be cut.
    """
    rows = _tokenise_rows(side, template, learning)
    if len(rows) > 1:
        raise TemplateError(
            f"{side.id}: a completion of {len(rows)} answers, and the template rewrites earlier turns once others "
            "follow, or the tokenizer joins an answer with the text before it",
            expected="one answer to prefer, or a template that leaves earlier turns as they were",
            do="move all turns of the completion but the last answer into the prompt",
        )
    return rows[0]


def _tokenise_rows(example: Example, template: Template, learning: Learning) -> Unit:
    if example.conversation is None:
        return (_tokenise_text(example, template),)
    _check_no_control_text(example, template)
    proved = prove(
        example.id,
        example.conversation,
        template,
        learn_reasoning=learning.reasoning,
        only_last=learning.only_last,
        joins=learning.joins,
    )
    rows = [row for text in proved for row in _rows_of(example, text, template)]
    # prove() returns one text here, but the tokenizer had to cut it: only_last then keeps the row of the last answer.
    return tuple(rows[-1:] if learning.only_last and len(proved) == 1 < len(rows) else rows)


def _rows_of(example: Example, proved: ProvedText, template: Template) -> Unit:
    """The row of a text; or one for each answer, where a token that had to be cut would be in a later prompt.

    Inference would encode that prompt without the cut, so that the answer would be learned behind other tokens.
    """
    if len(proved.spans) < 2 or proved.is_joined:  # joined ones follow prompts that inference would not show
        return (_with_mask(example, proved, template),)
    with contextlib.suppress(TemplateError):  # a part between two answers that cannot be encoded apart
        row = _with_mask(example, proved, template)
        # The usual case, checked first: nothing had to be cut, so one encoding replaces one for each answer.
        if list(row.input_ids) == template.encode(proved.text)[0]:
            return (row,)
        # A cut token after the last prompt harms nothing: compare every prompt with its encoding at inference.
        prompts = [template.encode(proved.text[: span.prompt])[0] for span in proved.spans]
        if all(list(row.input_ids[: len(prompt)]) == prompt for prompt in prompts):
            return (row,)
    parts = [replace(proved, text=proved.text[: span.end], spans=(span,)) for span in proved.spans]
    return tuple(_with_mask(example, part, template) for part in parts)


def _with_mask(example: Example, proved: ProvedText, template: Template) -> TokenisedExample:
    # All three borders of a span get a cut: the prompt's end too, since inference encodes the prompt alone.
    borders = sorted({border for span in proved.spans for border in (span.prompt, span.start, span.end)})
    ids, marks = encode_with_cuts(proved.text, borders, template)
    # [num_tokens] bytes, 0 for context and 1 for learned.
    mask = bytearray(len(ids))
    places = dict(zip(borders, marks, strict=True))
    for span in proved.spans:
        start, end = places[span.start], places[span.end]
        if end <= start:
            raise TemplateError(
                f"{example.id}: the tokenizer writes no token for an answer",
                expected="at least one token for each learned answer",
                do="look at the row with `luthier data preview`",
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


def _tokenise_text(example: Example, template: Template) -> TokenisedExample:
    text = example.text or ""
    # A text that another piece continues gets no end token, and one that was written with an end no second one.
    if not example.goes_on and not text.endswith(template.end_texts):
        text += template.end_of_text
    ids, _ = template.encode(text)
    return _checked(example, ids, bytearray(b"\1" * len(ids)))


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
    """A turn that holds the end-of-turn text would end there for the model, whatever the template says."""
    messages = example.conversation.messages if example.conversation is not None else ()
    for index, message in enumerate(messages):
        texts = [("content", message.content), ("reasoning_content", message.reasoning)]
        texts += [("tool_calls", one) for call in message.tool_calls for one in argument_texts(call)]
        for name, text in texts:
            if text is None or template.end_of_turn not in text:
                continue
            at = text.index(template.end_of_turn)
            reason = f"holds the end-of-turn text {template.end_of_turn!r} of the template, which would end the turn"
            value = shorten(text[max(0, at - 20) : at + 30])
            problem = problem_of(example.id, value=value, reason=reason, field=f"messages[{index}].{name}")
            raise DataError(
                f"{example.id} holds control text of the template",
                expected="content without control text",
                do="remove it from the row: the template writes it itself",
                problems=[problem],
            )


def tokenise_all(
    examples: Sequence[Example],
    template: Template,
    *,
    max_length_tokens: int,
    overlong: Overlong,
    progress: Progress,
    learning: Learning = PLAIN,
    spill: Spill | None = None,
) -> Tokenised:
    """Tokenise examples and do with those over `max_length_tokens` what `overlong` says.

    "error" refuses, "drop" leaves them out, "truncate" cuts tokens off the end; a row that would lose every learned
    token is dropped instead, since nothing could be learned from it. The two sides of a preference stay or go together,
    and go where what is left of them is the same. Of a conversation that was cut, answers that are wholly cut off go,
    and the others stay; with `learning.only_last` the row goes where its last answer does.

    Args:
        examples: the rows.
        template: writes conversations as text.
        max_length_tokens: the longest row that is kept whole.
        overlong: what is done with longer rows.
        progress: shows the rows.
        learning: which turns are learned.
        spill: the budget of memory, and where rows beyond it go; None keeps all of them in memory.

    Raises:
        OverlongError: rows are too long and `overlong` is "error"; all of them are in `problems`.
        DataError: rows with nothing to learn, or no row is left.
        TemplateError: the template renders a conversation in a way on which no mask can be proved.
        StorageFullError: the rows need more memory than the budget and more disk than there is.
    """
    made = _Collected(row_writer(spill), max_length_tokens, overlong, learning)
    problems: list[RowProblem] = []
    with progress.task("Tokenising", total=len(examples), unit="rows") as task:
        for example in examples:
            try:
                # A TemplateError stops at the first row, since every row would repeat it; a DataError is about one row,
                # so all are collected.
                made.add(tokenise_sides(example, template, learning))
            except DataError as error:
                problems.extend(error.problems)
            task.advance()
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(examples):,} rows cannot be trained on",
            expected="something to learn in every row, no control text of the template, no two sides alike",
            do="repair or remove these rows",
            problems=problems,
        )
    return made.tokenised()


class _Collected:
    """The rows that are left of units, as they are tokenised.

    Args:
        rows: takes the rows.
        max_length_tokens: most tokens of a row.
        overlong: what is done with longer ones.
        learning: what is learned of them.
    """

    def __init__(
        self, rows: SequenceWriter[TokenisedExample], max_length_tokens: int, overlong: Overlong, learning: Learning
    ) -> None:
        self._rows, self._learning = rows, learning
        self._max_length_tokens, self._overlong = max_length_tokens, overlong
        # Arrays, not lists: 4 or 8 bytes a row, of which there may be millions.
        self._counts, self._kept = array("i"), array("q")
        self._dropped: list[str] = []
        self._truncated: list[str] = []
        self._too_long: list[tuple[str, int]] = []
        # The texts of a search row stay or go together, as the two sides of a pair do.
        self._is_search = learning.task_head in SEARCH_KINDS
        self._num_units, self._is_pair = 0, self._is_search

    def add(self, unit: Unit) -> None:
        """Add what is left of a unit."""
        place, longest = self._num_units, max(row.num_tokens for row in unit)
        self._num_units += 1
        if place == 0:
            self._is_pair = self._is_search or unit[0].is_wanted is not None
        left = unit
        if longest > self._max_length_tokens:
            if self._overlong == "error":
                self._too_long.append((unit[0].id, longest))
                return
            left = what_is_left(unit, self._max_length_tokens, self._overlong, self._learning)
            (self._truncated if left else self._dropped).append(unit[0].id)
            if not left:
                return
        for row in left:
            self._rows.append(row)
        self._counts.append(len(left))
        self._kept.append(place)

    def tokenised(self) -> Tokenised:
        """All of them.

        Raises:
            OverlongError: some are too long, and that is an error.
            DataError: no row is left.
        """
        if self._too_long:
            raise _overlong_error(self._too_long, self._num_units, self._max_length_tokens)
        if not self._kept:
            raise DataError(
                f"no row is left: {len(self._dropped):,} of {self._num_units:,} rows were dropped as longer than "
                f"{self._max_length_tokens:,} tokens",
                expected="at least one row to train on",
                do="raise training.max_length_tokens, or shorten the rows",
                problems=[problem_of(row_id, value="", reason="was dropped") for row_id in self._dropped],
            )
        rows, are_single = self._rows.sequence(), set(self._counts) == {1}
        # Tuples where all is in memory: they are compared and hashed.
        kept, counts = (
            (tuple(self._kept), tuple(self._counts)) if isinstance(rows, tuple) else (self._kept, self._counts)
        )
        return Tokenised(
            rows,
            tuple(self._dropped),
            tuple(self._truncated),
            kept,
            counts[0] if self._is_pair else 1,
            # Pairs always have two rows, which rows_per_example says; units of one row need no counts.
            () if self._is_pair or are_single else counts,
        )


def _overlong_error(too_long: Sequence[tuple[str, int]], num_units: int, max_length_tokens: int) -> OverlongError:
    row_id, longest = max(too_long, key=lambda found: found[1])
    reason = f"is longer than {max_length_tokens:,} tokens"
    verb = "is" if len(too_long) == 1 else "are"
    return OverlongError(
        f"{len(too_long):,} of {num_units:,} rows {verb} longer than {max_length_tokens:,} tokens; "
        f"the longest is {row_id} with {longest:,}",
        expected=f"at most training.max_length_tokens = {max_length_tokens:,} tokens a row",
        do="raise training.max_length_tokens (up to the model's context), or say what to do with such rows: "
        "training.on_overlong: drop | truncate",
        problems=[problem_of(row_id, value=f"{tokens:,} tokens", reason=reason) for row_id, tokens in too_long],
    )


def what_is_left(unit: Unit, max_length_tokens: int, overlong: Overlong, learning: Learning) -> Unit:
    """The rows of an example that is too long, cut; none where it is dropped.

    Args:
        unit: all rows of the example.
        max_length_tokens: most tokens of a row.
        overlong: drop or truncate.
        learning: what is learned of it.
    """
    if overlong == "drop":
        return ()
    # What is left then ends with an earlier answer, which would be taken for the one to another question.
    if learning.only_last and any(row.num_prompt_tokens >= max_length_tokens for row in unit):
        return ()
    cut = tuple(_cut(row, max_length_tokens) for row in unit)
    if unit[0].is_wanted is None and learning.task_head not in SEARCH_KINDS:
        return tuple(row for row in cut if 1 in row.loss_mask)
    # Sides that differ only behind the cut have equal likelihood: their preference loss has no gradient.
    is_same = len(cut) > 1 and cut[0].input_ids == cut[1].input_ids
    return () if is_same or any(1 not in row.loss_mask for row in cut) else cut


def _cut(row: TokenisedExample, num_tokens: int) -> TokenisedExample:
    if row.num_tokens <= num_tokens:
        return row
    return replace(
        row,
        input_ids=row.input_ids[:num_tokens],
        loss_mask=row.loss_mask[:num_tokens],
        num_truncated_tokens=row.num_tokens - num_tokens,
    )


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
