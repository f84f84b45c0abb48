"""Rows of models that search: a query and its documents, as the tokens that a head reads.

An embedding model reads each text by itself, with the prompt of its side before it; a reranker reads query and document
together, as a conversation. Behind each text lies one slot token that nothing ever looks at (`heads`): the loss mask
marks it alone where the head reads the state of the last token, and every token but the first where it reads the mean
over all, since training takes the states *before* learned tokens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import DataError, RecipeError
from luthier.core.published_head import OwnEmbedding, OwnReranker, PairFormat, Pooling
from luthier.core.recipe import ObjectiveRecipe
from luthier.core.task_head import TaskHead
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.tokenise.heads import FittedHead
from luthier.ml.evaluation.retrieval import SearchRow, search_row

if TYPE_CHECKING:
    from luthier.ml.data.tokenise.template import Template


def search_head(
    objective: ObjectiveRecipe,
    examples: Sequence[Example],
    width: int,
    *,
    own: OwnEmbedding | None = None,
    end_text: str = "",
    scores: OwnReranker | None = None,
) -> FittedHead:
    """The head of a model that searches: as the recipe asks for it, since rows decide nothing of it.

    Args:
        objective: rank or embed.
        examples: the training rows.
        width: of the model's hidden states.
        own: embed: how the base model makes vectors by its own files, which decides what the recipe leaves open.
        end_text: embed: what the tokenizer of the base puts behind every text.
        scores: rank: how the base model scores a pair by its own files.

    Raises:
        RecipeError: a vector is to be cut to more than the model's width.
    """
    if objective.name == "rank":
        if scores is None:
            return FittedHead(TaskHead(kind="rank", width=width))
        head = TaskHead(kind="rank", width=width, pair_format=scores.pair_format, query_prompt=scores.instruction)
        return FittedHead(head, ("the head starts as that of the base model, a published reranker",))
    if too_long := [size for size in objective.dimensions or () if size > width]:
        raise RecipeError(
            f"objective.dimensions {too_long[0]:,}",
            expected=f"lengths of at most {width:,}, the width of this model's states",
            do="name shorter ones, or choose a wider base model",
        )
    dimensions = tuple(sorted({width, *objective.dimensions}, reverse=True)) if objective.dimensions else ()
    made_as = own or OwnEmbedding(pooling="mean")
    head = TaskHead(
        kind="embed",
        width=width,
        pooling=objective.pooling or made_as.pooling,
        dimensions=dimensions,
        query_prompt=made_as.query_prompt if objective.query_prompt is None else objective.query_prompt,
        document_prompt=made_as.document_prompt if objective.document_prompt is None else objective.document_prompt,
        end_text=end_text,
        max_tokens=made_as.max_tokens,
    )
    return FittedHead(head, (*_notes_of_own(head, own), *_notes_of_repeats(examples)))


def _notes_of_own(head: TaskHead, own: OwnEmbedding | None) -> tuple[str, ...]:
    """What is read as the files of the base model say, or in another way than they say."""
    notes = []
    if own is not None:
        given = replace(own, pooling=head.pooling, query_prompt=head.query_prompt, document_prompt=head.document_prompt)
        notes.append(
            "pooling and prompts as the files of the base model say (1_Pooling, config_sentence_transformers.json)"
            if given == own
            else f"the files of the base model say pooling {own.pooling}, query prompt {own.query_prompt!r} and "
            f"document prompt {own.document_prompt!r}; the recipe says otherwise"
        )
        if not own.is_normalised:
            notes.append("vectors are trained and served with length 1; those of the base model have another")
    if head.max_tokens is not None:
        notes.append(f"of a text the first {head.max_tokens:,} tokens are read, as the base model was published")
    if head.end_text:
        notes.append(f"each text ends with {head.end_text}, as the tokenizer of the base model ends it")
    return tuple(notes)


def _notes_of_repeats(examples: Sequence[Example]) -> tuple[str, ...]:
    rows = [row for example in examples if (row := search_row(example)) is not None]
    counts = Counter(row.positive for row in rows)
    num = sum(count for count in counts.values() if count > 1)
    if not num:
        return ()
    return (
        f"{num:,} of {len(rows):,} rows share their document with another row: where two of them fall into one step, "
        "neither is a negative of the other",
    )


def tokenise_for_ranking(
    example: Example, template: Template, pair_format: PairFormat = "turns", instruction: str = ""
) -> tuple[TokenisedExample, ...]:
    """The relevant and the irrelevant document, each with the query.

    Args:
        example: the row.
        template: encodes the texts.
        pair_format: how a pair is read.
        instruction: of a published reranker.

    Raises:
        DataError: the row is no query with two different documents.
        TemplateError: the template fails on it.
    """
    from luthier.ml.inference.models.own_reranker import pair_ids

    row = _checked_row(example)
    if row.negative is None:
        raise _bad(example, "", "names no irrelevant document", "chosen and rejected, two documents of one query")
    return tuple(
        replace(
            _tokenised(example, pair_ids(template, row.query, text, pair_format, instruction), "last"),
            is_wanted=is_wanted,
        )
        for text, is_wanted in ((row.positive, True), (row.negative, False))
    )


def tokenise_for_embedding(
    example: Example,
    template: Template,
    *,
    query_prompt: str,
    document_prompt: str,
    pooling: Pooling,
    end_text: str = "",
) -> tuple[TokenisedExample, ...]:
    """The query, its document, and the document that does not answer it where the row names one.

    Args:
        example: the row.
        template: encodes the texts.
        query_prompt: text before each query.
        document_prompt: text before each document.
        pooling: which states make the vector: it decides which tokens are marked.
        end_text: text behind each query and document.

    Raises:
        DataError: the row is no query with a document, or two of its texts are the same.
    """
    row = _checked_row(example)
    texts = [query_prompt + row.query, document_prompt + row.positive]
    if row.negative is not None:
        texts.append(document_prompt + row.negative)
    return tuple(_tokenised(example, template.encode(text + end_text)[0], pooling) for text in texts)


def _tokenised(example: Example, ids: Sequence[int], pooling: Pooling) -> TokenisedExample:
    if not ids:
        raise _bad(example, "", "has a text without a token", "text in every field")
    num = len(ids)
    # num tokens and the slot: [0] * num + [1] for the last state, [0] + [1] * num for the mean over all.
    mask = bytes([*bytes(num), 1]) if pooling == "last" else bytes([0]) + b"\1" * num
    # Any id serves as the slot: the last one is in every vocabulary.
    return TokenisedExample(example.id, array("i", [*ids, ids[-1]]), mask)


def _checked_row(example: Example) -> SearchRow:
    row = search_row(example)
    if row is None:
        expected = "one user turn (the query) and one assistant turn (the document), each with text"
        raise _bad(example, "", "is no query with a document", expected)
    # Such a pair has the highest similarity from the start and teaches nothing.
    if row.query.strip() == row.positive.strip():
        raise _bad(
            example, row.query, "has the same text on both sides", "a query and a document that differ", "document"
        )
    if row.negative is not None and row.negative.strip() in (row.positive.strip(), row.query.strip()):
        raise _bad(
            example,
            row.negative,
            "has an irrelevant document that is also the relevant one, or the query",
            "three different texts",
            "rejected",
        )
    return row


def _bad(example: Example, value: str, reason: str, expected: str, field: str = "") -> DataError:
    return DataError(
        f"{example.id} {reason}",
        expected=expected,
        do="correct the row or take it out; data.columns maps other names, such as {prompt: anchor, completion: "
        "positive}",
        problems=[problem_of(example.id, value=shorten(value), reason=reason, field=field)],
    )
