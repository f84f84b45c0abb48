"""/glossary: every word that pages explain by a "?", by topic."""

from __future__ import annotations

from itertools import groupby

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.text.glossary import TERMS
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import Visitor

router = APIRouter()


@router.get("/glossary")
def glossary(request: Request, _caller: Visitor) -> Response:
    """All terms."""
    topics = [(topic, list(terms)) for topic, terms in groupby(TERMS, key=lambda term: term.topic)]
    return render(request, "glossary/page.html", {"topics": topics, "num_terms": len(TERMS)})
