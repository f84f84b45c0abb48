"""An answer as bytes at once: what FastAPI is handed as an object it checks again, on another thread."""

from __future__ import annotations

from fastapi import Response
from pydantic import BaseModel


def written(answer: BaseModel) -> Response:
    """The JSON of an answer that was checked when it was made; for routes that are asked all the time."""
    return Response(answer.model_dump_json(), media_type="application/json")
