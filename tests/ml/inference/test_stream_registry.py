"""An engine from outside, as an installed package declares it by the entry point group `luthier.stream_engines`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fixtures.plug_ins import installed_package

from luthier.core.errors import NotFoundError
from luthier.core.stream import EngineSettings, Served
from luthier.ml.inference.stream_registry import BUILT_IN, open_stream_engine, unused_settings

POINTS = """\
[luthier.stream_engines]
theirs = theirs:open_engine
transformers = theirs:never
"""
CODE = """
opened = []


def open_engine(served):
    opened.append(served)
    return "an engine for " + served.path


def never(served):
    raise AssertionError("a plug-in takes the place of a built-in engine")
"""


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed_package(tmp_path, monkeypatch, POINTS, CODE):
        yield


def test_it_opens_the_model_that_names_it() -> None:
    import theirs  # type: ignore[import-not-found]

    served = Served(engine="theirs", path="/models/one", sha256="0" * 64, settings=EngineSettings(max_num_seqs=3))
    assert open_stream_engine(served) == "an engine for /models/one"
    assert theirs.opened == [served]


def test_it_does_not_replace_a_built_in_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "transformers", "theirs:open_engine")
    assert open_stream_engine(Served(path="/models/two", sha256="0" * 64)) == "an engine for /models/two"


def test_it_is_among_the_known_names_of_an_error() -> None:
    with pytest.raises(NotFoundError, match="engine 'their'") as caught:
        open_stream_engine(Served(engine="their", path="/models/one", sha256="0" * 64))
    assert "theirs, transformers" in caught.value.expected


def test_settings_that_it_may_not_use_are_named() -> None:
    assert unused_settings("theirs", EngineSettings(max_num_seqs=3, max_num_batched_tokens=64)) == [
        "max_num_batched_tokens",
        "max_num_seqs",
    ]
    assert unused_settings("vllm", EngineSettings(max_num_seqs=3)) == []
