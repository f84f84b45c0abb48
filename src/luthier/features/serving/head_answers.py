"""Requests and output formats of models with a task head, for the API, the page and the CLI."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import DataError, ModelSourceError, RequestError, error_from
from luthier.core.pooling import PoolingRequest
from luthier.core.published_head import OwnEmbedding, own_embedding, read_document, text_part
from luthier.core.stream import Failed, Pooled, Served, StreamEvent
from luthier.core.task_head import NumberFormat, TaskHead, has_head_file, refuse_other_use, what_it_gives
from luthier.core.text.written_numbers import write_number
from luthier.features.serving.loaded import choose_model
from luthier.features.serving.models import head_of
from luthier.features.serving.service import as_trained
from luthier.platform.home.context import Context


def prompt_of(text: str) -> Conversation:
    """A text as the only turn of a user."""
    return Conversation(messages=(Message(role="user", content=text),))


def embedding_request(
    served: Served,
    head: TaskHead | None,
    inputs: Sequence[str | tuple[int, ...]],
    dimensions: int | None = None,
    *,
    is_query: bool | None = None,
) -> PoolingRequest:
    """Texts to embed, in the format of the model's training: as its head says, else as the files of its base.

    Args:
        served: The model.
        head: Of the model; None if it has none.
        inputs: Texts, or token ids, which get no prompt.
        dimensions: Length of the vectors; None for the full length.
        is_query: Whether they are queries; None is unspecified and means documents.

    Raises:
        RequestError: the model was not trained for this length or kind of text, or its files describe vectors that are
            not computed here.
    """
    if head is None or head.kind != "embed" or not has_head_file(served.adapter_path or served.for_vectors.path):
        return _request_of_base(served, inputs, dimensions, is_query=is_query)
    known = head.dimensions or (head.width,)
    if dimensions is not None and dimensions not in known:
        raise RequestError(
            f"dimensions={dimensions}",
            expected=f"one of {', '.join(map(str, known))}, the lengths that this model was trained for",
            do="name one of them, or none for the whole vector",
        )
    before = head.query_prompt if is_query else head.document_prompt
    # Token ids are what the caller has tokenised, prompt included: nothing is put before them.
    # An empty text stays empty, for the engine to refuse it.
    texts = tuple(before + one + head.end_text if one and isinstance(one, str) else one for one in inputs)
    return PoolingRequest(inputs=texts, pooling=head.pooling, dimensions=dimensions, max_tokens=head.max_tokens)


def ranking_request(
    head: TaskHead | None, pairs: Sequence[tuple[str, str]], max_document_tokens: int | None = None
) -> PoolingRequest:
    """Pairs of a query and a document to score, in the format of the model.

    Args:
        head: Of the model; None if it has none, and the engine refuses the request.
        pairs: (query, document) of each.
        max_document_tokens: Longer documents are cut to so many tokens; None for no cutting.
    """
    asked = PoolingRequest(pairs=tuple(pairs), kind="rank", max_tokens=max_document_tokens)
    if head is None:
        return asked
    return asked.model_copy(update={"pair_format": head.pair_format, "instruction": head.query_prompt})


def _request_of_base(
    served: Served, inputs: Sequence[str | tuple[int, ...]], dimensions: int | None, *, is_query: bool | None
) -> PoolingRequest:
    """Vectors of a model without a head: those that the files of a published embedding model describe."""
    try:
        own = own_embedding(served.for_vectors.path)
    except ModelSourceError as error:
        raise RequestError(error.came, expected=error.expected, do=error.do) from error
    if own is None and is_query is not None:
        raise RequestError(
            "input_type for a model that was not trained to embed queries and documents",
            expected="a published embedding model, or one trained with objective: {name: embed}",
            do="leave input_type out",
        )
    own = own or OwnEmbedding(pooling="mean")
    before = own.query_prompt if is_query else own.document_prompt
    texts = tuple(before + one if one and isinstance(one, str) else one for one in inputs)
    return PoolingRequest(
        inputs=texts,
        pooling=own.pooling,
        dimensions=_known_dimensions(own, served.for_vectors.path, dimensions),
        is_normalised=own.is_normalised,
        max_tokens=own.max_tokens,
        adds_ending=True,
    )


def _known_dimensions(own: OwnEmbedding, folder: str, asked: int | None) -> int | None:
    """The length to which vectors are cut; None for the whole vector, whose length the answer is checked against."""
    if asked is None or asked in own.dimensions or own.has_any_dimension:
        return asked
    if own.dimensions and asked != text_part(read_document(Path(folder) / "config.json")).get("hidden_size"):
        raise RequestError(
            f"dimensions={asked}",
            expected=f"one of {', '.join(map(str, own.dimensions))} (matryoshka_dimensions in the model's config.json)",
            do="name one of them, or none for the whole vector",
        )
    return None


def classified(head: TaskHead, outputs: Sequence[float]) -> dict[str, Any]:
    """One input: `label`, `probs` in the order of the classes and `num_classes`, as vLLM names them.

    Multi-label models add `labels`; regression models add `value`, and `probs` is empty.
    """
    if head.kind == "regress":
        text = write_number(outputs[0], head.number_format or NumberFormat(decimals=3))
        return {"label": text, "value": outputs[0], "probs": [], "num_classes": 0}
    # [classes], calibrated; with several labels each is its own probability and they do not sum to 1.
    found: dict[str, Any] = {"probs": list(outputs), "num_classes": len(outputs)}
    if head.is_multi_label:
        found["labels"] = head.labels_of(outputs)
    return {"label": head.label_text(outputs)} | found


def example_request(model: str, head: TaskHead | None) -> tuple[str, dict[str, Any]]:
    """The route and an example body for requests to a model."""
    if head is None:
        return "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    if head.kind == "rank":
        return "/v1/rerank", {"model": model, "query": "Hello", "documents": ["Good morning", "A price list"]}
    return "/v1/embeddings" if head.kind == "embed" else "/v1/classify", {"model": model, "input": "Hello"}


_MAX_AT_ONCE: Final = 256
"""Inputs per request: results of a long file appear progressively, and an interrupt loses little."""
_COLUMNS: Final = ("prompt", "text", "input", "messages")


@dataclass(frozen=True, slots=True)
class Predictions:
    """The outputs of a model.

    Attributes:
        head: Of the model.
        rows: One document per input, in order: from `classified`, `score` (rank) or `embedding`; `truncated` of a text
            that was cut to the longest one that the model reads.
        num_tokens: Total of all inputs.
    """

    head: TaskHead
    rows: tuple[dict[str, Any], ...]
    num_tokens: int


def predict(
    context: Context,
    name: str,
    inputs: Sequence[Conversation],
    *,
    query: str | None = None,
    dimensions: int | None = None,
    is_query: bool | None = None,
) -> Predictions:
    """Run a model with a task head on inputs, for a local user.

    Args:
        context: The home.
        name: A run, a tuned model or the folder of one.
        inputs: Prompts; documents for a reranker, texts for an embedding model, each as a single turn.
        query: Rank: the query for the documents.
        dimensions: Embed: length of the vectors.
        is_query: Embed: whether the texts are queries.

    Raises:
        RequestError: The model generates text, an option is missing or not applicable, or an input does not fit.
        NotFoundError: There is no such model, run or adapter.
        ConflictError: A run has no result, or an export is damaged or unverified.
        ModelSourceError: A base model could not be fetched.
        WorkError: The engine process has ended.
    """
    served = choose_model(context, name)
    head = head_of(served)
    if head is None:
        refuse_other_use(name, None, "classify")
    assert head is not None
    _check_options(name, head, query=query, dimensions=dimensions, is_query=is_query)
    rows: list[dict[str, Any]] = []
    num_tokens = 0
    with context.progress.task("Reading", len(inputs), "inputs") as task:
        # One request after the other: the engine batches the inputs of a request itself.
        for first in range(0, len(inputs), _MAX_AT_ONCE):
            some = inputs[first : first + _MAX_AT_ONCE]
            pooled = _answer(context, served, _request(served, head, some, query, dimensions, is_query=is_query))
            cut = set(pooled.truncated)
            shown = (_shown(head, one) for one in pooled.outputs)
            rows += [one | {"truncated": True} if place in cut else one for place, one in enumerate(shown)]
            num_tokens += pooled.num_prompt_tokens
            task.advance(len(some))
    return Predictions(head, tuple(rows), num_tokens)


def _check_options(
    name: str, head: TaskHead, *, query: str | None, dimensions: int | None, is_query: bool | None
) -> None:
    gives = what_it_gives(head.kind)
    if head.kind == "rank" and query is None:
        raise RequestError(
            f"no query for the model {name}, which gives {gives}",
            expected="what the documents are compared with",
            do="give --query TEXT",
        )
    for option, value, kind in (
        ("--query", query, "rank"),
        ("--dimensions", dimensions, "embed"),
        ("--input-type", is_query, "embed"),
    ):
        if value is not None and head.kind != kind:
            raise RequestError(
                f"{option} for the model {name}, which gives {gives}",
                expected=f"{option} with a model trained with objective: {{name: {kind}}}",
                do=f"leave {option} out",
            )


def read_inputs(path: Path, column: str | None = None) -> list[Conversation]:
    """The prompts in a file of rows, each as text or turns; a final answer is omitted.

    Args:
        path: JSONL, JSON, CSV or Parquet.
        column: The field of the prompts; None uses the first of prompt, text, input and messages.

    Raises:
        NotFoundError: No such file.
        DataError: it cannot be read, or a row has no such text field.
    """
    from luthier.core.dataset import Row
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    found = []
    for number, row in enumerate(read_rows(open_source(path)), start=1):
        fields = row.fields if isinstance(row, Row) else {}
        own = column or next((one for one in _COLUMNS if one in fields), "")
        conversation = _conversation(fields.get(own))
        if conversation is None:
            raise DataError(
                f"row {number} of {path.name} has no text in {own or 'any of ' + ', '.join(_COLUMNS)}",
                expected="a text that is not empty, or turns as messages",
                do="correct the row, or name the field with --column",
            )
        found.append(conversation)
    return found


def _conversation(value: Any) -> Conversation | None:
    """The turns of a value; None if it is neither text nor turns."""
    if isinstance(value, str):
        return prompt_of(value) if value.strip() else None
    try:
        turns = [Message.model_validate(one) for one in value]
    except (TypeError, ValidationError):
        return None
    # Rows to train on end with the answer, which is what the head is to say.
    if turns and turns[-1].role == "assistant":
        turns.pop()
    return Conversation(messages=tuple(turns)) if turns else None


def _request(
    served: Served,
    head: TaskHead,
    inputs: Sequence[Conversation],
    query: str | None,
    dimensions: int | None,
    *,
    is_query: bool | None,
) -> PoolingRequest:
    if head.kind in ("classify", "regress"):
        return PoolingRequest(conversations=tuple(inputs), kind=head.kind)
    texts = tuple(one.messages[-1].content or "" for one in inputs)
    if head.kind == "rank":
        return ranking_request(head, [(query or "", text) for text in texts])
    return embedding_request(served, head, texts, dimensions, is_query=is_query)


def _shown(head: TaskHead, outputs: Sequence[float]) -> dict[str, Any]:
    if head.kind == "rank":
        return {"score": outputs[0]}
    return {"embedding": list(outputs)} if head.kind == "embed" else classified(head, outputs)


def _answer(context: Context, served: Served, request: PoolingRequest) -> Pooled:
    events: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()
    loaded, asked = as_trained(served, request)
    cancel = context.inference_client.ask(loaded, asked, events.put)
    try:
        event = events.get()
    finally:
        cancel()
    if isinstance(event, Failed):
        raise error_from(event.error)
    assert isinstance(event, Pooled)
    return event
