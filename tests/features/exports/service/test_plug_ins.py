"""A package from outside adds an export format: offered, refused early, proved and described like ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.plug_ins import installed_package

from luthier.cli.main import main
from luthier.core.errors import NotFoundError, ParityError, RequestError
from luthier.core.records.export import Export
from luthier.features.exports import requests
from luthier.features.exports.formats.tables import parse_format
from luthier.features.exports.service import export
from luthier.ml.export.bundle import verify
from luthier.ml.export.exporters.registry import FORMATS, Precision, format_of, served_formats, usual_formats
from luthier.platform.home.context import Context

ENTRY_POINTS = """
[luthier.exporters]
theirs = theirs:THEIRS
damaged = theirs:DAMAGED
untried = theirs:UNTRIED
refusing = theirs:REFUSING
failing = theirs:FAILING
absent = theirs:ABSENT
wordless = theirs:write
merged = theirs:THEIRS
"""
CODE = """
from dataclasses import replace

from safetensors.torch import load_file, save_file

from luthier.core.errors import RequestError
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.export.exporters.registry import Format, Precision


def write(source, target, precision, progress, tools):
    return [*write_model(source, target, precision, progress).notes, "written by theirs"]


def damage(source, target, precision, progress, tools):
    write(source, target, precision, progress, tools)
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= -40.0
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return []


def fail(source, target, precision, progress, tools):
    raise KeyError("no such tensor")


def refuse(source, progress, tools):
    raise RequestError("a model of that name", expected="another", do="choose another")


THEIRS = Format(
    title="Theirs",
    description="a folder of theirs",
    contents="weights",
    writer="theirs:write",
    runtime="luthier.ml.export.runtimes.transformers_runtime:open_merged",
    precisions={"float32": Precision(4.0, 1e-3, "the same arithmetic", is_usual=True)},
    default="float32",
    library="theirs-runtime",
    modules=("theirs",),
    install="theirs",
    is_served=True,
)
DAMAGED = replace(THEIRS, writer="theirs:damage")
UNTRIED = replace(DAMAGED, unrehearsed="a copy takes long")
REFUSING = replace(THEIRS, check="theirs:refuse", unrehearsed="a copy takes long")
FAILING = replace(THEIRS, writer="theirs:fail")
ABSENT = replace(THEIRS, modules=("theirs", "their_runtime"))
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "site"
    place.mkdir()
    with installed_package(place, monkeypatch, ENTRY_POINTS, CODE):
        yield


def made(home: Context, tiny_model: Path, to: str, output: Path) -> Export:
    return export(home, str(tiny_model), to=to, output=output, num_prompts=2)


def test_it_is_offered_where_ours_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "theirs" in {view.name for view in requests.formats()}
    assert "wordless" not in {view.name for view in requests.formats()}, "it declares nothing to show"
    assert "theirs" in served_formats()
    assert "theirs:float32" in usual_formats()
    assert parse_format("theirs:f32") == ("theirs", "float32")
    assert main(["export", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "executorch, absent, damaged, failing, refusing, theirs, untried;" in shown
    assert format_of("merged") is FORMATS["merged"], "none of ours is replaced"


def test_it_is_proved_and_described(home: Context, tiny_model: Path, tmp_path: Path) -> None:
    found = made(home, tiny_model, "theirs", tmp_path / "out")
    assert found.parity is not None
    assert (found.parity.format, found.parity.passed, found.parity.bound_nats) == ("theirs", True, 1e-3)
    assert "written by theirs" in found.warnings
    assert verify(tmp_path / "out").is_whole
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "exported as a folder of theirs" in card
    assert "library_name: theirs-runtime" in card
    assert list((home.settings.tools_folder).glob("rehearsed-theirs-*")), "a small copy was tried first"
    # As a stored document is read once the package is gone.
    assert Export.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("damaged", "computes something else"),
        ("refusing", "a model of that name"),
        ("failing", "KeyError: 'no such tensor'"),
        ("absent", "needs their_runtime, which is not installed"),
    ],
)
def test_it_is_refused_before_the_work(home: Context, tiny_model: Path, tmp_path: Path, to: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        made(home, tiny_model, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_its_runtime_does_not_prove_is_not_let_out(home: Context, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="is not equal to its source"):
        made(home, tiny_model, "untried", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_function_alone_is_no_declaration() -> None:
    with pytest.raises(NotFoundError, match="wordless"):
        format_of("wordless")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"precisions": {"float32": Precision(4.0)}}, "float32 has no bound_nats"),
        ({"precisions": {"float32": Precision(4.0, 50.0, "it is far off")}}, "bound_nats=50"),
        ({"precisions": {"float32": Precision(4.0, 0.1)}}, "and a reason"),
        ({"precisions": {"int4": Precision(0.5)}, "default": "int4"}, "say why in unrehearsed"),
        ({"precisions": {"4 bits": Precision(0.5)}}, "small letters"),
        ({"default": "int4"}, "not one of its precisions"),
    ],
)
def test_a_declaration_that_would_prove_nothing_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(format_of("theirs"), **changed)
