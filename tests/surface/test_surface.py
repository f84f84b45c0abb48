"""Nothing that users type or read is lost: commands, options, recipe keys, variables, addresses, fields of documents.

`surface.json` holds what there was on 28 November 2026. Names are only ever added to it, by

    LUTHIER_SURFACE=write python -m pytest tests/surface
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.core.aliases import COMMANDS, VARIABLES, new_key

from .gather import fields, gather, keys_of

HELD = Path(__file__).with_name("surface.json")


def renamed(name: str) -> str:
    """The name that took the place of this one by the table of aliases; itself where it was not renamed."""
    if name in VARIABLES:
        return VARIABLES[name]
    if name.startswith("luthier "):
        words = name.split()[1:]
        for num_words in (2, 1):
            old = " ".join(words[:num_words])
            if old in COMMANDS:
                return " ".join(["luthier", COMMANDS[old], *words[num_words:]])
    return new_key(name)


def lost(held: Any, now: Any) -> list[str]:
    """What the first names and the second neither names nor has under a new name."""
    if isinstance(held, dict):
        found = {name: name if name in now else renamed(name) for name in held}
        return [
            f"{name}: {one}" if one else name
            for name, inner in held.items()
            for one in ([""] if found[name] not in now else lost(inner, now[found[name]]))
        ]
    return [name for name in held if not {name, renamed(name)} & set(now)]


def joined(held: Any, now: Any) -> Any:
    """Both, each name once."""
    if isinstance(now, dict):
        held = held or {}
        return {name: joined(held.get(name), now.get(name, held.get(name))) for name in sorted({*held, *now})}
    return sorted({*(held or ()), *now})


def test_nothing_of_the_surface_is_lost(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert code == 0, (arguments, out, err)
        return json.loads(out)

    now = dict(gather(tmp_path, tiny_model, run))
    held = json.loads(HELD.read_text(encoding="utf-8")) if HELD.exists() else {}
    if os.environ.get("LUTHIER_SURFACE") == "write":
        HELD.write_text(json.dumps(joined(held, now), indent=1) + "\n", encoding="utf-8")
        return
    assert set(held) == set(now)
    assert all(held.values())
    assert {part: lost(held[part], now[part]) for part in held if lost(held[part], now[part])} == {}


def test_what_is_lost_is_found() -> None:
    assert lost({"a": ["x", "y"], "b": ["z"]}, {"a": ["y", "new"]}) == ["a: x", "b"]
    assert joined({"a": ["x"]}, {"a": ["y"], "b": ["z"]}) == {"a": ["x", "y"], "b": ["z"]}


def test_a_renamed_name_is_there_by_its_new_one_alone() -> None:
    held = {"luthier rate list": ["--json"], "luthier alerts look": ["--json", "--home"]}
    now = {"luthier human-eval list": ["--json"], "luthier monitor check": ["--home"]}
    assert lost(held, now) == ["luthier alerts look: --json"]
    assert lost(held, {}) == ["luthier rate list", "luthier alerts look"]
    assert lost(["LUTHIER_SERVING_MODELS", "data.map"], ["LUTHIER_MAX_LOADED_MODELS", "data.columns"]) == []
    assert lost(["data.map", "data.train"], ["data.subset"]) == ["data.map", "data.train"]


def test_fields_and_keys_are_paths() -> None:
    assert fields({"a": [{"b": 1}], "run-20261125-093000-eeeeee": {}}) == ["<id>", "a", "a[].b"]
    schema = {
        "$defs": {"B": {"properties": {"c": {}}}},
        "properties": {"b": {"items": {"$ref": "#/$defs/B"}}, "m": {"additionalProperties": {"$ref": "#/$defs/B"}}},
    }
    assert keys_of(schema) == ["b", "b[].c", "m", "m.*.c"]
