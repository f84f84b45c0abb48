"""What an answer of llama.cpp is held to: a grammar of a JSON schema, or of the tools that it may or must call."""

from __future__ import annotations

import json
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.stream import TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.ml.inference.tool_calls import COMPACT, ToolForm

_DIALECT: Final = "%llguidance {}\n"


def grammar_of(request: TextRequest, form: ToolForm | None, server: LlamaServer) -> str | None:
    """What the answer is held to, in llguidance's dialect, which this build of llama.cpp takes; None for nothing."""
    if form is not None and (request.tool_choice == "required" or request.json_schema is not None):
        return _DIALECT + form.grammar(request, lambda text: _token_id(server, text))
    if request.json_schema is None:
        return None
    check_schema(request.json_schema)
    return f"{_DIALECT}start: %json {json.dumps({**request.json_schema, 'x-guidance': COMPACT})}\n"


def _token_id(server: LlamaServer, text: str) -> int | None:
    ids = server.tokenize(text, add_special=False)
    # One token: the mark is special in this vocabulary, and the grammar can name its id.
    return ids[0] if len(ids) == 1 else None


def no_grammar() -> RequestError:
    """What is said where llama.cpp does not follow a grammar."""
    return RequestError(
        "a JSON schema, of the answer or of a tool's arguments, that llama.cpp does not follow",
        expected="a schema with the words that its grammars know (type, properties, items, enum, pattern ...)",
        do="make the schema simpler, or check that it is a valid one",
    )
