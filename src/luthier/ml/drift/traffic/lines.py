"""An exchange as one line of JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.core.records.traffic import Exchange


def row_of(exchange: Exchange) -> dict[str, Any]:
    """An exchange as a row."""
    row = exchange.model_dump(mode="python")
    if exchange.messages is not None:
        row["messages"] = json.dumps(exchange.messages, ensure_ascii=False, separators=(",", ":"))
    return row | {"has_text": exchange.has_text}


def exchange_of(row: Mapping[str, Any]) -> Exchange:
    """The exchange of a row."""
    known = {name: value for name, value in row.items() if name in Exchange.model_fields}
    if known.get("messages") is not None:
        known["messages"] = tuple(json.loads(known["messages"]))
    return Exchange(**known)


def line_of(exchange: Exchange) -> bytes:
    """An exchange as a line of JSON. Halves of surrogate pairs, which no file can hold, become question marks."""
    text = json.dumps(row_of(exchange), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"
