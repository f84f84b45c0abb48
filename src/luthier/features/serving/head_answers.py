"""What models with a task head are asked, and how their outputs are shown: for the API, the page and the CLI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.records.task_head import TaskHead
from luthier.core.stream import PoolingRequest


def prompt_of(text: str) -> Conversation:
    """A text as the only turn of a user."""
    return Conversation(messages=(Message(role="user", content=text),))


def embedding_request(
    head: TaskHead | None,
    inputs: Sequence[str | tuple[int, ...]],
    dimensions: int | None = None,
    *,
    is_query: bool | None = None,
) -> PoolingRequest:
    """Texts to be made into vectors, as the model was trained for it.

    Args:
        head: Of the model; None where it has none.
        inputs: Texts, or their token ids, before which no prompt is put.
        dimensions: How many numbers of each vector are wanted; None for all.
        is_query: Whether they are queries; None where nothing was said, which means documents.

    Raises:
        RequestError: A length that the model was not trained for, or a kind of text that it knows nothing of.
    """
    if head is None or head.kind != "embed":
        if is_query is not None:
            raise RequestError(
                "input_type for a model that was not trained to embed queries and documents",
                expected="a model trained with objective: {name: embed}",
                do="leave input_type out",
            )
        return PoolingRequest(inputs=tuple(inputs))
    known = head.dimensions or (head.width,)
    if dimensions is not None and dimensions not in known:
        raise RequestError(
            f"dimensions={dimensions}",
            expected=f"one of {', '.join(map(str, known))}, the lengths that this model was trained for",
            do="name one of them, or none for the whole vector",
        )
    before = head.query_prompt if is_query else head.document_prompt
    texts = tuple(before + one if isinstance(one, str) else one for one in inputs)
    return PoolingRequest(inputs=texts, pooling=head.pooling, dimensions=dimensions)


def classified(head: TaskHead, outputs: Sequence[float]) -> dict[str, Any]:
    """One input: `label`, `probs` in the order of the classes and `num_classes`, as vLLM names them.

    Of a model with several labels a row also `labels`; of a model of numbers also `value`, and `probs` is empty.
    """
    if head.kind == "regress":
        return {"label": _number(head, outputs[0]), "value": outputs[0], "probs": [], "num_classes": 0}
    found: dict[str, Any] = {"probs": list(outputs), "num_classes": len(outputs)}
    if not head.is_multi_label:
        return {"label": head.labels[max(range(len(outputs)), key=outputs.__getitem__)]} | found
    given = [label for label, one in zip(head.labels, outputs, strict=True) if one >= head.threshold]
    return {"label": head.label_separator.join(given), "labels": given} | found


def _number(head: TaskHead, value: float) -> str:
    """As the answers of training write it."""
    form = head.number_format
    if form is None:
        return f"{value:g}"
    return f"{form.before}{value:{',' if form.has_commas else ''}.{form.decimals}f}{form.after}"
