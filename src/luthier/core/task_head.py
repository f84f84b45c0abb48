"""A task head: what a tuned model has in place of writing text, and what its file `head.json` says.

A head reads hidden states of the last layer. It gives classes with probabilities (classify), a number (regress), the
relevance of a document to a query (rank), or a vector (embed).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.frozen_model import FrozenModel, SparseModel
from luthier.core.published_head import (
    OwnEmbedding,
    PairFormat,
    is_reranker,
    only_embeds,
    own_embedding,
    own_reranker,
    read_document,
    text_part,
)
from luthier.core.published_head import Pooling as Pooling

TaskHeadKind = Literal["classify", "regress", "rank", "embed"]
SEARCH_KINDS: Final[tuple[TaskHeadKind, ...]] = ("rank", "embed")
"""Heads of models that search documents; they learn from queries with documents, not from answers."""

TASK_HEAD_FILE: Final = "head.json"
TASK_HEAD_WEIGHTS: Final = "head.safetensors"
HEAD_DOCUMENT: Final = "task_head.json"
"""The head in an export for other programs: kind, labels in the order of the outputs, prompts."""
_SHOWN: Final = 8
_LISTED: Final = 50
"""Classes on a separate line, where one model is requested."""


class NumberFormat(FrozenModel):
    """How answers write a number.

    Attributes:
        before, after: the text around it, such as a unit.
        decimals: digits behind the decimal mark.
        has_commas: whether thousands are separated.
        decimal_mark, thousands_mark: the signs before decimals and between thousands.
    """

    before: str = ""
    after: str = ""
    decimals: int = 0
    has_commas: bool = False
    decimal_mark: str = "."
    thousands_mark: str = ","


class TaskHead(SparseModel):
    """What `head.json` contains, next to an adapter or the weights of a model.

    Attributes:
        format_version: of the file.
        kind: what the head gives.
        width: of the hidden states that it reads.
        pooling: which states it reads. classify and regress read the state of the last token of the prompt, where the
            model would begin its answer.
        labels: classify: the classes in the order of the outputs, each as most training rows spell it.
        label_counts: classify: training rows of each class, in that order.
        num_rows: classify, several labels with balanced weights: training rows; 0 without weights, and in heads of
            versions that gave one weight to each row.
        is_multi_label: classify: whether a row has any number of labels, each with its own probability (sigmoid);
            otherwise exactly one (softmax).
        label_separator: classify, several labels: what separates labels in an answer; empty where answers are JSON
            lists.
        threshold: classify, several labels: the probability from which on a label is given.
        temperature: classify and rank: what logits are divided by before they become probabilities; fitted on the
            validation rows (Guo et al., 2017, arXiv:1706.04599), 1 where there were none.
        offset, scale: regress: the number is offset + scale x output: mean and standard deviation of the training rows.
        lowest, highest: regress: the range of the training rows.
        number_format: regress: how answers write the number.
        dimensions: embed: lengths to which a vector may be cut (Matryoshka), the whole width
            included, in falling order.
        query_prompt, document_prompt: embed: what is put before a query and before a document. A published reranker
            has an instruction as `query_prompt`.
        end_text: embed: what is put behind every text: the token that the tokenizer of the base puts there by itself.
        pair_format: rank: how a query is read together with a document.
        is_normalised: embed: whether vectors have length 1; those of a published model have it where its files say so.
        max_tokens: embed: how many tokens of a text are read, as the files of a published model say; None for all.
    """

    later_fields = ("num_rows", "end_text", "pair_format", "is_normalised", "max_tokens")

    format_version: Literal[1] = 1
    kind: TaskHeadKind
    width: Annotated[int, Field(ge=1)]
    pooling: Pooling = "last"
    labels: tuple[str, ...] = ()
    label_counts: tuple[int, ...] = ()
    num_rows: Annotated[int, Field(ge=0)] = 0
    is_multi_label: bool = False
    label_separator: str = ", "
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    offset: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    lowest: float | None = None
    highest: float | None = None
    number_format: NumberFormat | None = None
    dimensions: tuple[int, ...] = ()
    query_prompt: str = ""
    document_prompt: str = ""
    end_text: str = ""
    pair_format: PairFormat = "turns"
    is_normalised: bool = True
    max_tokens: int | None = None

    @property
    def num_outputs(self) -> int:
        """Rows of the head's matrix; 0 for embeddings, which have none."""
        return {"classify": len(self.labels), "regress": 1, "rank": 1, "embed": 0}[self.kind]

    def labels_of(self, probabilities: Sequence[float]) -> list[str]:
        """The likeliest label of a row, or, where rows have several, all from the threshold on."""
        if not self.is_multi_label:
            # max takes the first of equals: the commonest class.
            return [self.labels[max(range(len(self.labels)), key=lambda number: probabilities[number])]]
        return [label for label, one in zip(self.labels, probabilities, strict=True) if one >= self.threshold]

    def label_text(self, probabilities: Sequence[float]) -> str:
        """What the training rows would write for a row of `probabilities`."""
        given = self.labels_of(probabilities)
        if not self.is_multi_label:
            return given[0]
        return self.label_separator.join(given) if self.label_separator else json.dumps(given, ensure_ascii=False)

    @property
    def has_one_answer(self) -> bool:
        """Whether a row's answer is one label or one number, so that it is right or wrong as a whole."""
        return self.kind == "regress" or (self.kind == "classify" and not self.is_multi_label)

    @property
    def loss_unit(self) -> str:
        """What the loss of its training is counted in."""
        units: dict[TaskHeadKind, str] = {
            "classify": "nats a row",
            "regress": "squared standard deviations a row",
            "rank": "nats a pair",
            "embed": "nats a query",
        }
        return units[self.kind]

    @property
    def summary(self) -> str:
        """What it gives, in a line: the commonest classes with their training rows, or the range of the numbers."""
        if self.kind == "regress":
            return f"numbers from {self.lowest:g} to {self.highest:g}, mean {self.offset:g}"
        if self.kind != "classify":
            return {"rank": "relevance of a document to a query", "embed": f"vectors of length {self.width:,}"}[
                self.kind
            ]
        several = ", any number of them a row" if self.is_multi_label else ""
        return f"{len(self.labels):,} classes{several}: {self._first_labels(_SHOWN)}"

    @property
    def facts(self) -> dict[str, str]:
        """What a person should know of it, by a name for people: what it gives, from which states, and how certain."""
        found = {"gives": what_it_gives(self.kind)}
        if self.kind == "classify":
            counted = "; in brackets: training rows" if self.label_counts else ""
            found["labels"] = self._first_labels(_LISTED) + counted
            if self.is_multi_label:
                found["labels of a row"] = f"any number, each from a probability of {self.threshold:g} on"
        elif self.kind == "regress":
            found["numbers"] = f"{self.summary[len('numbers ') :]} in the training rows"
        elif self.kind == "embed":
            found["dimensions"] = ", ".join(map(str, self.dimensions or (self.width,)))
        if self.kind in ("classify", "rank"):
            # 1 also where the validation rows were all right: there is nothing to fit it on then.
            is_fitted = self.temperature != 1.0
            found["temperature"] = f"{self.temperature:.4g}, " + (
                "fitted on the validation rows" if is_fitted else "not fitted: probabilities are as they were trained"
            )
        found["pooling"] = f"{self.pooling}: " + (
            "the state of the last token" if self.pooling == "last" else "the mean of the states of all tokens"
        )
        prompts = {
            "query prompt": self.query_prompt,
            "document prompt": self.document_prompt,
            "end of a text": self.end_text,
        }
        if self.kind == "rank":
            found["pairs"] = _PAIRS[self.pair_format]
            prompts = {"instruction": self.query_prompt}
        if not self.is_normalised:
            found["length of vectors"] = "not 1: the model was published without normalisation"
        if self.max_tokens is not None:
            found["longest text"] = f"{self.max_tokens:,} tokens; what is behind them is cut off"
        # Quoted, since spaces at the ends are part of a prompt.
        return found | {name: json.dumps(text, ensure_ascii=False) for name, text in prompts.items() if text}

    def _first_labels(self, most: int) -> str:
        """The commonest classes with their training rows."""
        shown = [f"{label} ({num:,})" for label, num in zip(self.labels, self.label_counts, strict=False)][:most]
        # A head may hold labels without counts.
        shown = shown or list(self.labels[:most])
        rest = len(self.labels) - len(shown)
        return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def is_task_model(folder: str | Path) -> bool:
    """Whether the folder of an adapter or model holds a task head, or a published reranker or embedding model without
    an output layer, so that it does not write text."""
    place = str(folder)
    return has_head_file(place) or only_embeds(place) or is_reranker(place)


def has_head_file(folder: str | Path) -> bool:
    """Whether the folder of an adapter or model holds the `head.json` of a run."""
    return (Path(folder) / TASK_HEAD_FILE).is_file()


def read_task_head(folder: str | Path) -> TaskHead:
    """What `head.json` says; of a published embedding model without an output layer, and of a published reranker, what
    its own files say.

    `end_text` of an embedding model is then empty: only its tokenizer knows it (`own_ending`).

    Raises:
        ModelSourceError: it is missing or damaged, or of a newer version; or files that describe what is not computed.
    """
    path = Path(folder) / TASK_HEAD_FILE
    if not path.is_file() and (only_embeds(folder) or is_reranker(folder)):
        return _head_of_published(Path(folder))
    try:
        return TaskHead.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ModelSourceError(
            f"{path}: {type(error).__name__}: {error}",
            expected="a head.json as Luthier writes it (format_version 1)",
            do="use the folder of a finished run with a task head, or copy the file again",
        ) from error


def task_head_in(folder: str | Path | None) -> TaskHead | None:
    """The head in the folder of an adapter or model; None without a folder, and where the model writes text.

    Raises:
        ModelSourceError: its file is damaged, or of a newer version.
    """
    return read_task_head(folder) if folder is not None and is_task_model(folder) else None


def readable_task_head_in(folder: str | Path | None) -> TaskHead | None:
    """As `task_head_in`, for lists of models: None for a damaged head too, which is an error for that model alone."""
    with contextlib.suppress(ModelSourceError):
        return task_head_in(folder)
    return None


def _head_of_published(place: Path) -> TaskHead:
    width = text_part(read_document(place / "config.json")).get("hidden_size")
    if not isinstance(width, int) or width < 1:
        raise ModelSourceError(
            f"hidden_size {width!r} in config.json",
            expected="the width of the model's states",
            do="pull the model again",
        )
    if (scores := own_reranker(place)) is not None:
        return TaskHead(kind="rank", width=width, pair_format=scores.pair_format, query_prompt=scores.instruction)
    own = own_embedding(place) or OwnEmbedding(pooling="mean")
    return TaskHead(
        kind="embed",
        width=width,
        pooling=own.pooling,
        query_prompt=own.query_prompt,
        document_prompt=own.document_prompt,
        dimensions=tuple(sorted({width, *own.dimensions}, reverse=True)) if own.dimensions else (),
        is_normalised=own.is_normalised,
        max_tokens=own.max_tokens,
    )


_PAIRS: Final[dict[PairFormat, str]] = {
    "turns": "the query as the user's turn, the document as the assistant's",
    "own": "as the files of the published model say",
    "own_opened": "as the files of the published model say",
}
_GIVES: Final[dict[TaskHeadKind, str]] = {
    "classify": "classes with probabilities",
    "regress": "numbers",
    "rank": "the relevance of documents to a query",
    "embed": "vectors of texts",
}
_ROUTES: Final[dict[TaskHeadKind, str]] = {
    "classify": "POST /v1/classify",
    "regress": "POST /v1/classify",
    "rank": "POST /v1/rerank or /v1/score",
    "embed": "POST /v1/embeddings",
}


def what_it_gives(kind: TaskHeadKind) -> str:
    """A phrase for people: what a model with such a head gives."""
    return _GIVES[kind]


def how_it_is_asked(kind: TaskHeadKind) -> str:
    """The route and the command that ask such a model."""
    return f"{_ROUTES[kind]}, or luthier predict"


def refuse_other_use(model: str, own: TaskHeadKind | None, asked: TaskHeadKind | None) -> None:
    """Refuse to have a model do what it does not do.

    Args:
        model: its name, for the message.
        own: the kind of its head; None where it writes text. Vectors can be had of such a model as well.
        asked: the kind of head that is needed; None for text.

    Raises:
        RequestError: it does something else; the message says what to call instead.
    """
    if own == asked or (own is None and asked == "embed"):
        return
    wanted = "text" if asked is None else _GIVES[asked]
    gives = "writes text" if own is None else f"gives {_GIVES[own]}, and nothing else"
    trained = "any model without a task head" if asked is None else f"one trained with objective: {{name: {asked}}}"
    raise RequestError(
        f"{wanted} of the model {model}, which {gives}",
        expected=f"a model that gives {wanted}: {trained}",
        do="POST /v1/chat/completions or /v1/completions, or luthier chat" if own is None else how_it_is_asked(own),
    )
