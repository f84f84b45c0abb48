"""The dataset as Croissant, the JSON-LD that dataset searches and loaders read (MLCommons, Croissant format 1.0)."""

from __future__ import annotations

import re
from typing import Any, Final

from luthier.ml.data.card.facts import CardRequest, FileFacts
from luthier.ml.data.rows.columns import ValueType

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"
_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_MEDIA_TYPES: Final = {
    "jsonl": "application/jsonlines",
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/x-parquet",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xls": "application/vnd.ms-excel",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
}
_TYPES: Final = {"text": "sc:Text", "integer": "sc:Integer", "number": "sc:Float", "boolean": "sc:Boolean"}
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def croissant(request: CardRequest) -> dict[str, Any]:
    """The document: a file with its digest and a set of records a split, each field with its type.

    Nested objects and lists of objects become sub-fields, one level deep. What Croissant has no type for (values of
    more than one type, deeper nesting, names that no JSON path can hold) is named in the description of the set.
    """
    made: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": request.name,
        "description": request.description or _description(request),
    }
    if request.licence_known:
        made["license"] = request.licence_known
    if request.languages_known:
        made["inLanguage"] = list(request.languages_known)
    made["distribution"] = [_file_object(file) for file in request.files]
    made["recordSet"] = [_record_set(file) for file in request.files]
    return made


def _description(request: CardRequest) -> str:
    num_rows = sum(file.num_rows for file in request.files)
    shape = (request.audit.shape or "no known").replace("_", " ")
    return f"{num_rows:,} rows of {shape} shape in {', '.join(file.path.name for file in request.files)}."


def _file_object(file: FileFacts) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path.name,
        "name": file.path.name,
        "contentUrl": file.path.name,
        "contentSize": f"{file.num_bytes} B",
        "encodingFormat": _MEDIA_TYPES[file.format],
        "sha256": file.sha256,
    }


def _record_set(file: FileFacts) -> dict[str, Any]:
    fields, left_out = [], []
    for name, column in file.columns.items():
        field = _field(file, name, column)
        if field is None:
            left_out.append(f"{name} ({column.in_words()})")
        else:
            fields.append(field)
    text = f"{file.num_rows:,} rows of {file.path.name}."
    if left_out:
        text += f" Fields of the file that are not described here: {', '.join(left_out)}."
    return {"@type": "cr:RecordSet", "@id": file.split, "name": file.split, "description": text, "field": fields}


def _field(file: FileFacts, name: str, column: ValueType) -> dict[str, Any] | None:
    source = _source(file, name)
    made: dict[str, Any] = {"@type": "cr:Field", "@id": f"{file.split}/{name}", "name": f"{file.split}/{name}"}
    kind, items = column.type, column.items
    if source is None:
        return None
    if kind in _TYPES:
        return {**made, "dataType": _TYPES[kind], "source": source}
    if kind == "list" and items is not None and items.type in _TYPES:
        return {**made, "dataType": _TYPES[items.type], "repeated": True, "source": source}
    members = column.members if kind == "object" else items.members if kind == "list" and items is not None else {}
    # A null among the objects of a list has no sub-fields, which the format cannot express.
    if kind == "list" and (items is None or items.type != "object" or "null" in items.kinds):
        return None
    inner, left_out = _sub_fields(made["@id"], source, members, is_list=kind == "list")
    if not inner:
        return None
    if left_out:
        made["description"] = f"Holds further values that are not described here: {', '.join(left_out)}."
    return {**made, **({"repeated": True} if kind == "list" else {}), "subField": inner}


def _sub_fields(
    parent: str, source: dict[str, Any], members: dict[str, ValueType], *, is_list: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    inner, left_out = [], []
    for name, member in members.items():
        is_scalar_list = member.type == "list" and member.items is not None and member.items.type in _TYPES
        # A list inside of a list would be repeated twice, which a field cannot express.
        described = member.items if is_scalar_list and not is_list and member.items is not None else member
        if described.type not in _TYPES or not _PLAIN.fullmatch(name):
            left_out.append(f"{name} ({member.in_words()})")
            continue
        inner.append(
            {
                "@type": "cr:Field",
                "@id": f"{parent}/{name}",
                "name": f"{parent}/{name}",
                "dataType": _TYPES[described.type],
                **({"repeated": True} if described is not member else {}),
                "source": {**source, "transform": {"jsonPath": name}},
            }
        )
    return inner, left_out


def _source(file: FileFacts, name: str) -> dict[str, Any] | None:
    """Where a field is in its file; None where the format is read by a path that cannot hold the name."""
    # JSON Lines, CSV and Parquet are read by column name; a JSON file needs a path, which allows plain names alone.
    if file.format != "json":
        return {"fileObject": {"@id": file.path.name}, "extract": {"column": name}}
    if not _PLAIN.fullmatch(name):
        return None
    return {"fileObject": {"@id": file.path.name}, "extract": {"jsonPath": f"[*].{name}"}}
