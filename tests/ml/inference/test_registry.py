import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from luthier.core.errors import NotFoundError
from luthier.ml.inference import registry
from luthier.ml.inference.fake import FakeEngine
from luthier.ml.inference.registry import engine_names, load_engine_class
from luthier.ml.inference.transformers_engine import TransformersEngine


def test_names_lead_to_classes():
    assert load_engine_class("transformers") is TransformersEngine
    assert load_engine_class("fake") is FakeEngine
    assert {"fake", "llama_cpp", "transformers"} <= set(engine_names())


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(NotFoundError, match="'vllama'") as caught:
        load_engine_class("vllama")
    assert "transformers" in caught.value.expected


def test_the_table_can_be_read_without_loading_any_engine():
    code = "import sys, luthier.ml.inference.registry as r; r.engine_names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_of_a_plug_in_is_found_by_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "luthier.ml.inference.fake:FakeEngine", "luthier.engines")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "luthier.engines" else [])
    assert load_engine_class("theirs") is FakeEngine
