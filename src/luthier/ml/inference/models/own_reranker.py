"""A published reranker: the layer that makes its score, and a pair as it reads it.

The score of a model that answers by tokens (`yes` and `no`) is the logit of one token, or that without the logit of
another. Logits are the last state times the output layer, so the score is one row, or the difference of two rows, and
the model needs no output layer to rank: it is a task head like that of a run.

Its files say how a pair is written where its chat template has the roles `query` and `document`, as vLLM and
sentence-transformers call it. Otherwise both texts are joined as the tokenizer joins pairs, as both libraries do then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from jinja2 import TemplateError as JinjaError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ModelSourceError, TemplateError
from luthier.core.published_head import (
    SCORE_WEIGHT,
    OwnReranker,
    PairFormat,
    own_reranker,
    read_document,
    text_part,
)
from luthier.ml.inference.models.templates.loaded_templates import names_pairs
from luthier.ml.inference.models.weights import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_OUTPUT: Final = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output)\.(weight|bias)$")
_EMBEDDINGS: Final = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in)\.weight$")


class PairTemplate(Protocol):
    """What writes and encodes a pair: a chat template with its tokenizer."""

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        ...

    def render(self, conversation: Conversation, /) -> str:
        """The conversation as text."""
        ...

    def encode_all(self, texts: Sequence[str], /) -> list[list[int]]:
        """The token ids of each text."""
        ...


def own_score(folder: str | Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """The matrix [1, width] and the bias [1] in float32 that make the score of a published reranker.

    Args:
        folder: of the model.
        tokenizer: its own.

    Raises:
        ModelSourceError: it is none, its weights lack what makes the score, or its tokenizer a token.
    """
    place = Path(folder)
    scores = own_reranker(place)
    if scores is None:
        raise _without(place, "files that say how it scores a pair")
    if not scores.tokens:
        matrix = _tensor(place, re.compile(f"^{re.escape(SCORE_WEIGHT)}$"), None)
        if matrix is None:
            raise _without(place, SCORE_WEIGHT)
        bias = _tensor(place, re.compile(r"^score\.bias$"), None)
        return matrix, torch.zeros(1) if bias is None else bias
    ids = [_token_id(place, one, tokenizer) for one in scores.tokens]
    rows = _output_rows(place, ids)
    bias = _tensor(place, re.compile(_OUTPUT.pattern.replace("weight|", "")), ids)
    shift = torch.zeros(len(ids)) if bias is None else bias
    if len(ids) == 1:
        return rows, shift
    return rows[:1] - rows[1:], shift[:1] - shift[1:]


def pair_ids(
    template: PairTemplate, query: str, document: str, pair_format: PairFormat, instruction: str = ""
) -> list[int]:
    """The tokens of a query with a document, as a reranker reads them.

    Args:
        template: of the model.
        query: the query.
        document: the document.
        pair_format: as of its head.
        instruction: as of `OwnReranker`.

    Raises:
        TemplateError: the template cannot write the pair.
    """
    text = pair_text(template, query, document, pair_format, instruction)
    if text is None:
        return [int(one) for one in template.tokenizer(instruction + query, document)["input_ids"]]
    return list(template.encode_all([text])[0])


def pair_text(
    template: PairTemplate, query: str, document: str, pair_format: PairFormat, instruction: str = ""
) -> str | None:
    """The text of a query with a document; None where no text has the tokens by which the tokenizer joins them.

    Args:
        template: of the model.
        query: the query.
        document: the document.
        pair_format: as of its head.
        instruction: as of `OwnReranker`.

    Raises:
        TemplateError: the template cannot write the pair.
    """
    if pair_format == "turns":
        turns = (Message(role="user", content=query), Message(role="assistant", content=document))
        return template.render(Conversation(messages=turns))
    written = pair_template(template.tokenizer)
    if written is None:
        return None
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    if instruction:
        messages.insert(0, {"role": "system", "content": instruction})
    try:
        return str(
            template.tokenizer.apply_chat_template(
                messages, chat_template=written, tokenize=False, add_generation_prompt=pair_format == "own_opened"
            )
        )
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, JinjaError) as error:
        raise TemplateError(
            f"the chat template fails at a query with a document: {str(error) or type(error).__name__}",
            expected="a template that writes the roles query and document, as the published reranker was trained",
            do="repair chat_template.jinja in the model's folder",
        ) from error


def pair_template(tokenizer: Any) -> str | None:
    """The chat template that names the roles query and document; None where a tokenizer has no such one."""
    given = tokenizer.chat_template
    texts: Sequence[Any] = list(given.values()) if isinstance(given, dict) else [given]
    return next((str(one) for one in texts if one and names_pairs(str(one))), None)


def describe_own_pairs(tokenizer: Any, scores: OwnReranker) -> str:
    """How a published reranker reads pairs, in a phrase for people.

    Args:
        tokenizer: of the model.
        scores: what its files say.
    """
    before = f", after {scores.instruction!r}" if scores.instruction else ""
    if pair_template(tokenizer) is not None:
        return f"pairs as the chat template of the base model writes query and document{before}"
    return (
        f"query and document as the tokenizer joins pairs{before}: the chat template of the base model has no roles "
        "query and document, so if its card names another format, put it there as chat_template.jinja"
    )


def _token_id(place: Path, token: int | str, tokenizer: PreTrainedTokenizerFast) -> int:
    if isinstance(token, int):
        return token
    found = tokenizer.backend_tokenizer.encode(token, add_special_tokens=False).ids
    if len(found) != 1:
        raise ModelSourceError(
            f"{place}: {token!r} in classifier_from_token is {len(found)} tokens",
            expected="a text that the model's tokenizer makes one token of",
            do="correct config.json, or name ids: true_token_id and false_token_id of a LogitScore part",
        )
    return int(found[0])


def _output_rows(place: Path, ids: Sequence[int]) -> Tensor:
    """Rows [ids, width] of the layer that writes text; tied ones are those of the embeddings."""
    found = _tensor(place, re.compile(_OUTPUT.pattern.replace("|bias", "")), ids)
    config = read_document(place / "config.json")
    # Transformers ties them where a config does not say otherwise.
    is_tied = text_part(config).get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    if found is None or is_tied:
        found = _tensor(place, _EMBEDDINGS, ids) if is_tied else None
    if found is None:
        raise _without(place, "an output layer (lm_head)")
    return found


def _tensor(place: Path, name: re.Pattern[str], rows: Sequence[int] | None) -> Tensor | None:
    """A tensor in float32, or some of its rows; None where the weights have none of that name."""
    try:
        for path in weight_files(place):
            with safe_open(path, framework="pt") as file:
                key = next((one for one in sorted(file.keys()) if name.search(one)), None)
                if key is None:
                    continue
                if rows is None:
                    whole: Tensor = file.get_tensor(key).float()
                    return whole
                part = file.get_slice(key)
                num = int(part.get_shape()[0])
                if wrong := [one for one in rows if not 0 <= one < num]:
                    raise ModelSourceError(
                        f"{place}: the token {wrong[0]} of the score, and {num:,} tokens",
                        expected="tokens of the model",
                        do="pull the model again, or correct its file",
                    )
                return torch.cat([part[one : one + 1] for one in rows]).float()
    except (OSError, SafetensorError) as error:
        raise ModelSourceError(
            f"{place}: {type(error).__name__}: {error}", expected="readable weights", do="pull the model again"
        ) from error
    return None


def _without(place: Path, what: str) -> ModelSourceError:
    return ModelSourceError(
        f"{place} is without {what}", expected="the files of a published reranker", do="pull the model again"
    )
