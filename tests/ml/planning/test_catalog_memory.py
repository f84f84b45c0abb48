"""Memory figures of the catalogue: the planner's own, for the very shapes that the catalogue describes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.ml.inference.models import catalog
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.hypothetical_run import TABLE, known_memory, predicted_memory, table_text

ROOT = Path(__file__).parents[3]


def test_the_table_is_what_the_planner_predicts_today() -> None:
    """Where this fails, the catalogue or the planner has changed: run `make models`."""
    entries = [entry for entry in catalog.built_in() if entry.config]
    assert len(entries) >= 42
    assert TABLE.read_text(encoding="utf-8") == table_text(entries)


def test_the_page_of_the_catalogue_has_the_same_figures() -> None:
    spec = importlib.util.spec_from_file_location("model_catalog", ROOT / "benchmarks" / "model_catalog.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page_with_table(page, catalog.built_in())
    assert all(f"| `{entry.name}` |" in page for entry in catalog.built_in())


def test_less_is_held_with_adapters_and_least_with_a_packed_base() -> None:
    seen = 0
    for entry in nonempty(catalog.built_in()):
        memory = known_memory(entry)
        assert memory is not None, entry.name
        assert memory.full_bytes is not None, entry.name
        # two bytes a weight, and eight of moments, are there whatever else is
        assert memory.full_bytes > 10 * entry.num_parameters, entry.name
        if memory.lora_bytes is None or memory.qlora_bytes is None:
            continue
        assert memory.qlora_bytes < memory.lora_bytes < memory.full_bytes, entry.name
        assert memory.lora_bytes > 2 * entry.num_parameters, entry.name
        seen += 1
    assert seen >= 40


def test_a_figure_counts_only_for_the_shape_that_it_was_made_of() -> None:
    entry = catalog.entry("qwen3-0.6b")
    assert known_memory(entry) is not None
    assert known_memory(entry.model_copy(update={"config": {**entry.config, "num_hidden_layers": 29}})) is None
    assert known_memory(entry.model_copy(update={"name": "ours"})) is None


def test_a_larger_model_takes_more() -> None:
    small, large = (structure_of(catalog.entry(name).config) for name in ("qwen3-0.6b", "qwen3-1.7b"))
    for method in ("lora_bytes", "qlora_bytes", "full_bytes"):
        assert getattr(predicted_memory(large), method) > getattr(predicted_memory(small), method)


def test_reading_the_table_brings_no_torch() -> None:
    code = (
        "import sys; from luthier.ml.inference.models import catalog; from luthier.ml.planning.hypothetical_run import "
        "known_memory; "
        "assert known_memory(catalog.entry('qwen3-0.6b')).lora_bytes; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["qwen3-8b", "llama-3.1-8b-instruct"])
def test_qlora_of_an_8b_fits_a_card_of_24_gib(name: str) -> None:
    memory = known_memory(catalog.entry(name))
    assert memory is not None
    assert memory.qlora_bytes is not None
    assert memory.qlora_bytes < 24 * 2**30
