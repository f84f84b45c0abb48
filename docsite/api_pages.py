"""Pages about the HTTP API, from the server's own OpenAPI document: one page a tag, and one for all shapes."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]
HEAD = """# API

`luthier up` serves OpenAI's API under `/v1`, Luthier's own API under `/api/v1`, and the description of both at
`/openapi.json`. Limits, keys and the meaning of answers: [the server](../../docs/server.md). These pages are generated
from that description.

"""
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
ORDINARY = {"400", "401", "403", "404", "409", "413", "422", "429", "503", "507"}


def document() -> Document:
    """The OpenAPI document of this version."""
    from luthier.platform.home.context import Context
    from luthier.server.api import create_app

    with tempfile.TemporaryDirectory() as home, Context.open(Path(home)) as context:
        return create_app(context).openapi()


def pages() -> dict[str, str]:
    """Markdown by file name: `index.md` with all addresses, a page for each tag, `shapes.md`."""
    whole = document()
    by_tag: dict[str, list[tuple[str, str, Document]]] = defaultdict(list)
    for path, verbs in whole["paths"].items():
        for verb, operation in verbs.items():
            by_tag[_file(operation)].append((verb.upper(), path, operation))
    index = HEAD + "| request | what it does | |\n|---|---|---|\n"
    for name, operations in by_tag.items():
        for verb, path, operation in operations:
            index += f"| `{verb} {path}` | {_first(operation)} | [{name}]({name}.md) |\n"
    shapes = whole["components"]["schemas"]
    made = {f"{name}.md": "\n\n".join(_tag_page(name, operations)) + "\n" for name, operations in by_tag.items()}
    return {"index.md": index, **made, "shapes.md": "\n\n".join(_shapes_page(shapes)) + "\n"}


def _file(operation: Document) -> str:
    return str((operation.get("tags") or ["server"])[0]).replace(" ", "-").lower()


def _first(operation: Document) -> str:
    return _cell(str(operation.get("description") or operation["summary"]).partition("\n\n")[0])


def _tag_page(name: str, operations: list[tuple[str, str, Document]]) -> Iterator[str]:
    yield f"# {name.replace('-', ' ').capitalize()}"
    for verb, path, operation in operations:
        yield f"## `{verb} {path}`"
        yield str(operation.get("description") or operation["summary"])
        yield from _parameters(operation.get("parameters", []))
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"Body (`{kind}`): {_type(content.get('schema', {}))}"
        yield from _answers(operation["responses"])


def _parameters(parameters: list[Document]) -> Iterator[str]:
    if parameters:
        rows = [
            f"| `{one['name']}` | {one['in']} | {_type(one.get('schema', {}))} | {_note(one | one.get('schema', {}))} |"
            for one in parameters
        ]
        yield "| parameter | in | type | |\n|---|---|---|---|\n" + "\n".join(rows)


def _answers(responses: Document) -> Iterator[str]:
    good = {code: answer for code, answer in responses.items() if code not in ORDINARY}
    rows = []
    for code, answer in good.items():
        types = [f"{_type(one.get('schema', {}))} (`{kind}`)" for kind, one in answer.get("content", {}).items()]
        rows.append(f"| {code} | {', '.join(types) or 'nothing'} |")
    if rows:
        yield "| answer | |\n|---|---|\n" + "\n".join(rows)
    if refused := sorted(code for code in responses if code in ORDINARY):
        yield f"Refusals: {', '.join(refused)}, as {_link('ErrorAnswer')}."


def _shapes_page(shapes: Document) -> Iterator[str]:
    yield "# Shapes"
    yield "What bodies and answers hold. **Bold** fields are always there."
    for name, shape in sorted(shapes.items(), key=lambda one: _short(one[0])):
        yield f"## {_short(name)} {{ #{name.lower()} }}"
        if shape.get("description"):
            yield str(shape["description"])
        if fields := shape.get("properties"):
            needed = set(shape.get("required", []))
            rows = [f"| {_field(key, key in needed)} | {_type(one)} | {_note(one)} |" for key, one in fields.items()]
            yield "| field | type | |\n|---|---|---|\n" + "\n".join(rows)
        else:
            yield f"Type: {_type(shape)}"


def _type(schema: Document) -> str:
    """The type in words, with links to shapes."""
    if "$ref" in schema:
        return _link(str(schema["$ref"]).rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(kind)


def _field(name: str, is_needed: bool) -> str:
    return f"**`{name}`**" if is_needed else f"`{name}`"


def _note(schema: Document) -> str:
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    notes = [f"{word} {schema[key]}" for key, word in bounds.items() if key in schema]
    if schema.get("default") is not None:
        notes.append(f"default `{schema['default']}`")
    return _cell("; ".join([*([str(schema["description"])] if schema.get("description") else []), *notes]))


def _link(name: str) -> str:
    return f"[{_short(name)}](shapes.md#{name.lower()})"


def _short(name: str) -> str:
    return name.rpartition("__")[2]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
