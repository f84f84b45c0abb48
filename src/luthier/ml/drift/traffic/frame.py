"""Exchanges as rows of a table: the same columns in memory, in lines of JSON and in Parquet files."""

from __future__ import annotations

import io
import json
from typing import Final

import polars as pl
from pydantic import ValidationError

from luthier.ml.drift.traffic.lines import exchange_of

SCHEMA: Final[dict[str, pl.DataType]] = {
    "exchange_id": pl.String(),
    "project_id": pl.String(),
    "at": pl.Float64(),
    "model": pl.String(),
    "target": pl.String(),
    "is_canary": pl.Boolean(),
    "user_digest": pl.String(),
    "status": pl.Int64(),
    "error_code": pl.String(),
    "finish_reason": pl.String(),
    "num_prompt_tokens": pl.Int64(),
    "num_new_tokens": pl.Int64(),
    "seconds": pl.Float64(),
    "first_token_seconds": pl.Float64(),
    "cost_usd": pl.Float64(),
    "messages": pl.String(),
    "answer": pl.String(),
    "num_masked": pl.Int64(),
    "has_text": pl.Boolean(),
}
"""The fields of an Exchange, `messages` as JSON text; `has_text` can be read without reading the text."""
TEXTS: Final = ("messages", "answer")


def frame_of_lines(data: bytes) -> tuple[pl.DataFrame, int]:
    """Lines of JSON as a table, and how many lines were broken: of those that end, and one that a kill cut off."""
    try:
        # The fast path: only a broken line makes it worth parsing one by one.
        return pl.read_ndjson(io.BytesIO(data), schema=SCHEMA), 0
    except pl.exceptions.PolarsError:
        rows, num_broken = [], 0
        for line in data.split(b"\n"):
            if line.strip():
                try:
                    row = json.loads(line)
                    exchange_of(row)
                    rows.append(row)
                except (ValueError, TypeError, AttributeError, ValidationError):
                    num_broken += 1
        return pl.DataFrame(rows, schema=SCHEMA), num_broken
