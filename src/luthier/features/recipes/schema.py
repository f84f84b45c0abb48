"""The JSON Schema of recipes, for editors: keys, values, plug-ins of this installation, and what each key means.

A recipe names it in a comment that the YAML language server of editors reads:

    # yaml-language-server: $schema=recipe.schema.json
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from luthier.core.aliases import RECIPE_KEYS
from luthier.core.recipe import Recipe
from luthier.core.text.plain_yaml import write_yaml

FILE_NAME: Final = "recipe.schema.json"
LINE: Final = f"# yaml-language-server: $schema={FILE_NAME}\n"
_TITLE: Final = "Luthier recipe"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_FIELD: Final = re.compile(r"^    (?P<names>[a-z0-9_]+(?:, [a-z0-9_]+)*): (?P<text>.*)$")
_SHORT_FORMS: Final[dict[str, dict[str, Any]]] = {
    "OptimizerRecipe": {"type": "string"},
    "CanariesRecipe": {"type": "integer", "minimum": 1, "maximum": 1000},
    "GoodEnoughRecipe": {"type": "number"},
    "OptimisedPromptRecipe": {"type": "integer", "minimum": 0},
    "TrackerRecipe": {"type": "string"},
}
"""What may be written in place of a mapping: `optimizer: muon`. Validators read these before pydantic sees them."""


def recipe_schema() -> dict[str, Any]:
    """The schema as a document of JSON; keys are those that people type, old ones are marked as deprecated."""
    schema: dict[str, Any] = Recipe.model_json_schema()
    models = _models(Recipe)
    definitions: dict[str, Any] = schema.get("$defs", {})
    for name, section in (("Recipe", schema), *definitions.items()):
        _tidy(section, models.get(name))
    for old, new in RECIPE_KEYS.items():
        _rename(schema, old, new.rpartition(".")[2])
    for name, short in _SHORT_FORMS.items():
        if name in definitions:
            whole = definitions[name]
            if name == "OptimizerRecipe" or name == "TrackerRecipe":
                short = short | {"enum": whole["properties"]["name"]["enum"]}
            definitions[name] = {"anyOf": [short, whole], "description": whole.pop("description", "")}
    return {"$schema": _DIALECT, "title": _TITLE} | {key: value for key, value in schema.items() if key != "title"}


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def write_schema(folder: Path) -> Path | None:
    """Write the schema into a folder of recipes; None where a file of another kind has its name.

    Raises:
        OSError: The folder cannot be written.
    """
    path, text = folder / FILE_NAME, schema_text()
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("title") != _TITLE:
            return None
        if found == json.loads(text):
            return path
    path.write_text(text, encoding="utf-8")
    return path


def recipe_file_text(document: dict[str, Any]) -> str:
    """A recipe as YAML, with the line that names its schema."""
    return LINE + write_yaml(document)


def _models(spec: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """A spec and those inside of it, by their names."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [spec]
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one.__name__ not in found:
                found[one.__name__] = one
                waiting += [info.annotation for info in one.model_fields.values()]
        else:
            waiting += list(getattr(one, "__args__", ()))
    return found


def _tidy(section: dict[str, Any], model: type[BaseModel] | None) -> None:
    """Take out the titles that pydantic makes of names, and describe each key as its docstring does."""
    section.pop("title", None)
    texts = {} if model is None else _field_texts(model)
    if model is not None:
        section["description"] = (inspect.getdoc(model) or "").partition("\n")[0]
    for name, field in section.get("properties", {}).items():
        field.pop("title", None)
        # None is what a key that is left out means; nobody writes it.
        choices = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
        if len(choices) == 1:
            field.pop("anyOf")
            field |= choices[0]
        elif choices:
            field["anyOf"] = choices
        if field.get("default", ...) is None:
            del field["default"]
        if name in texts:
            field["description"] = texts[name]


def _field_texts(model: type[BaseModel]) -> dict[str, str]:
    """The text of each field in the docstring of a model."""
    _, _, section = (inspect.getdoc(model) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.split("\n"):
        if match := _FIELD.match(line):
            names = match["names"].split(", ")
            found |= dict.fromkeys(names, match["text"])
        elif names and line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}


def _rename(schema: dict[str, Any], old: str, new_name: str) -> None:
    """Give a key its new name; the old one stays, deprecated."""
    *sections, old_name = old.split(".")
    level = schema
    for name in sections:
        level = _resolved(schema, level["properties"][name])
    level["properties"] = {
        key: field
        for name, value in level["properties"].items()
        for key, field in (
            [(new_name, value), (name, value | {"deprecated": True, "description": f"Now `{new_name}`."})]
            if name == old_name
            else [(name, value)]
        )
    }


def _resolved(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in field:
        field = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return field
