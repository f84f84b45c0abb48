"""What users of Luthier type and read: the names that a later version keeps, or keeps an alias of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, routing
from fastapi.testclient import TestClient
from tests.full_home import FullHome, fill_home

from luthier.cli.main import command_tree
from luthier.core.aliases import new_key
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app
from luthier.server.pages import create_pages

Names = dict[str, list[str]]
_ID = re.compile(r"\b[a-z]+-\d{8}-\d{6}-[0-9a-f]{6}\b|[0-9a-f]{16,}")
_DEPTH = 12  # a recipe within a recipe ends somewhere


def commands() -> Names:
    """Every command with its arguments and options."""
    app = command_tree()
    found: Names = {}

    def walk(command: Any, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")
        if not hasattr(command, "commands"):
            found[path] = sorted(
                option if option.startswith("-") else f"<{option}>"
                for parameter in command.params
                for option in (*parameter.opts, *parameter.secondary_opts)
            )

    walk(app, "luthier")
    return found


def keys_of(schema: dict[str, Any]) -> list[str]:
    """Every path of keys that a JSON Schema allows, `[]` for the items of an array and `*` for any key."""
    definitions = schema.get("$defs", {})
    found: set[str] = set()

    def walk(node: dict[str, Any], path: str, depth: int) -> None:
        if depth > _DEPTH:
            return
        if "$ref" in node:
            walk(definitions[node["$ref"].rsplit("/", 1)[-1]], path, depth + 1)
        for one in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
            walk(one, path, depth + 1)
        for name, child in node.get("properties", {}).items():
            at = f"{path}.{name}".lstrip(".")
            found.add(at)
            walk(child, at, depth + 1)
        for holder, mark in (("items", "[]"), ("additionalProperties", ".*")):
            if isinstance(node.get(holder), dict):
                walk(node[holder], path + mark, depth + 1)

    walk(schema, "", 0)
    return sorted(found)


def routes(app: FastAPI) -> list[str]:
    """Method and path of every address: the APIs', and the pages'."""
    walk: Any = getattr(routing, "iter_route_contexts", iter)  # FastAPI keeps included routers as they are since 0.137
    return sorted(
        f"{method} {route.path}"
        for route in walk(app.routes)
        for method in set(getattr(route, "methods", None) or ()) - {"HEAD", "OPTIONS"}
    )


def fields(document: Any) -> list[str]:
    """Every path of keys in a document, ids in keys made equal."""
    found: set[str] = set()

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                at = f"{path}.{_ID.sub('<id>', str(name))}".lstrip(".")
                found.add(at)
                walk(child, at)
        elif isinstance(node, list):
            for child in node:
                walk(child, f"{path}[]")

    walk(document, "")
    return sorted(found)


def answers(client: TestClient, full: FullHome, paths: list[str]) -> Names:
    """The fields of what each address answers that a GET reads as JSON."""
    found: Names = {}
    for route in paths:
        method, path = route.split(" ", 1)
        if method != "GET" or not path.startswith(("/v1/", "/api/")):
            continue
        try:
            address = full.address(path)
        except KeyError:
            continue
        answer = client.get(address)
        if answer.status_code == 200 and answer.headers.get("content-type", "").startswith("application/json"):
            found[path] = fields(answer.json())
    return found


def documents(run: Callable[..., Any], full: FullHome, rows: Path, base: Path) -> Names:
    """The fields of what commands print under --json, over that home, with rows and the folder of a base model."""
    known = full.ids
    asked: dict[str, tuple[str, ...]] = {
        "alerts list": (),
        "alerts settings": (),
        "audit-log show": (),
        "audit-log verify": (),
        "data audit": (str(rows),),
        "data preview": (str(rows), "--model", str(base)),
        "deployments": (),
        "doctor": (),
        "feedback list": (),
        "jobs list": (),
        "jobs show": (known["job_id"],),
        "keys list": (),
        "users list": (),
        "models list": (),
        "models show": (str(base),),
        "pipelines list": (),
        "plan": (str(rows.with_name("recipe.json")),),
        "projects list": (),
        "runs list": (),
        "runs show": (known["run_id"],),
        "studies list": (),
        "studies show": (known["study_id"],),
        "traffic list": (),
        "train": (str(rows.with_name("recipe.json")),),
        "usage": (),
    }
    return {f"luthier {name}": fields(run(*name.split(), *more, "--json")) for name, more in asked.items()}


def gather(folder: Path, base: Path, run: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Each part of the surface by its name.

    Args:
        folder: An empty one; the home is made in it.
        base: The folder of a tiny transformers model.
        run: Carries out a command line over the home `folder / "home"` and returns its document.
    """
    yield "commands", commands()
    yield "recipe", sorted(map(new_key, keys_of(Recipe.model_json_schema())))
    yield "plan", keys_of(Plan.model_json_schema(mode="serialization"))
    yield "environment", sorted(f"LUTHIER_{name.upper()}" for name in Settings.model_fields)
    with Context.open(folder / "home") as home:
        full = fill_home(home, folder, base)
        headers = {"Authorization": f"Bearer {create_key(home, 'surface', scopes=('admin',))[1]}"}
        app = create_app(home)
        with TestClient(app, headers=headers) as client:
            paths = routes(app)
            yield "routes", paths
            yield "pages", routes(create_pages(home))
            yield "answers", answers(client, full, paths)
    recipe = {"base_model": str(base), "data": {"train": str(folder / "rows.jsonl"), "held_out": 0.25}}
    small = {"training": {"max_steps": 1, "num_threads": 1}, "evaluation": {"max_new_tokens": 4, "few_shot": 0}}
    (folder / "recipe.json").write_text(json.dumps(recipe | small), encoding="utf-8")
    yield "documents", documents(run, full, folder / "rows.jsonl", base)
