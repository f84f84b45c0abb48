"""/v1/rerank as Jina and vLLM have it, and /v2/rerank as Cohere's clients send it: documents in order of relevance.

Both read the same fields. Cohere's answer has no texts and counts tokens in `meta`, and documents are cut to 4,096
tokens where a request says nothing; what was cut is in `meta.warnings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from luthier.core.access import Caller
from luthier.core.frozen_model import StrictModel
from luthier.core.stream import Pooled
from luthier.core.text.counted import counted
from luthier.features.serving.api.pooling import (
    ANSWERS,
    MAX_INPUTS,
    PooledRun,
    PoolingBody,
    respond_pooled,
    shown_indices,
    usage_of,
)
from luthier.features.serving.head_answers import ranking_request
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext

router = APIRouter(tags=["embeddings"])
_COHERE_TOKENS: Final = 4096


class RerankDocument(StrictModel):
    """A document that is not plain text."""

    text: str


class RankingBody(PoolingBody):
    """What both addresses read.

    Attributes:
        query: The query.
        documents: Texts to be ordered.
        top_n: How many of the most relevant documents to return; None for all.
        max_tokens_per_doc: Longer documents are cut to so many tokens, and the response names them; None: none is cut.
    """

    query: str
    documents: Annotated[list[str | RerankDocument], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]
    top_n: int | None = Field(default=None, ge=1)
    max_tokens_per_doc: int | None = Field(default=None, ge=1)

    @property
    def texts(self) -> list[str]:
        """The documents as text."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class RerankBody(RankingBody):
    """The request body of `/v1/rerank`.

    Attributes:
        return_documents: Whether the response repeats their texts.
    """

    return_documents: bool = True


class CohereRerankBody(RankingBody):
    """The request body of `/v2/rerank`.

    Attributes:
        max_tokens_per_doc: As of Cohere, 4,096 by default.
    """

    max_tokens_per_doc: int | None = Field(default=_COHERE_TOKENS, ge=1)


@router.post("/v1/rerank", responses=ANSWERS, response_class=Response)
async def create_ranking(body: RerankBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """The documents with their relevance to the query, 0 to 1, the most relevant first."""

    def shown(run: PooledRun) -> dict[str, Any]:
        texts = body.texts
        results = [
            one | ({"document": {"text": texts[one["index"]]}} if body.return_documents else {})
            for one in _ordered(run.pooled, body.top_n)
        ]
        found = {"id": run.exchange.exchange_id, "model": body.model, "results": results, "usage": usage_of(run.pooled)}
        return found | ({"truncated": list(run.pooled.truncated)} if run.pooled.truncated else {})

    return await _respond(request, context, caller, body, shown)


@router.post("/v2/rerank", responses=ANSWERS, response_class=Response)
async def create_ranking_for_cohere(
    body: CohereRerankBody, request: Request, context: HomeContext, caller: Asker
) -> Response:
    """The same as Cohere's clients read it: the answer has no texts, and `meta` counts tokens and has warnings."""

    def shown(run: PooledRun) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "api_version": {"version": "2"},
            "tokens": {"input_tokens": run.pooled.num_prompt_tokens},
        }
        if run.pooled.truncated:
            meta["warnings"] = [_cut_note(run.pooled, body)]
        return {"id": run.exchange.exchange_id, "results": _ordered(run.pooled, body.top_n), "meta": meta}

    return await _respond(request, context, caller, body, shown)


async def _respond(request: Request, context: Context, caller: Caller, body: RankingBody, shown: Any) -> Response:
    pairs = [(body.query, text) for text in body.texts]
    return await respond_pooled(
        request,
        context,
        caller,
        body,
        "rerank",
        lambda _, head: ranking_request(head, pairs, body.max_tokens_per_doc),
        shown,
        cut=lambda pooled: _cut_note(pooled, body),
    )


def _ordered(pooled: Pooled, top_n: int | None) -> list[dict[str, Any]]:
    """The most relevant documents first; equally relevant ones keep their order."""
    relevance = [one[0] for one in pooled.outputs]
    best = sorted(range(len(relevance)), key=lambda place: -relevance[place])[:top_n]
    return [{"index": place, "relevance_score": relevance[place]} for place in best]


def _cut_note(pooled: Pooled, body: RankingBody) -> str:
    many = f"{len(pooled.truncated):,} of {counted(len(pooled.outputs), 'document')}"
    return f"{many} cut to {body.max_tokens_per_doc:,} tokens (max_tokens_per_doc): index {shown_indices(pooled)}"
