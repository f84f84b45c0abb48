import os
import re
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.records.base_model import CatalogEntry
from luthier.ml.inference.models import catalog
from luthier.ml.inference.models.catalog import parse, parse_hub
from luthier.ml.inference.models.structure import structure_of


def test_every_entry_has_exactly_one_source_and_digests_for_all_of_it():
    for name, entry in nonempty(catalog.entries().items()):
        assert entry.name == name
        assert bool(entry.wheels) != bool(entry.hub)
        if entry.wheels:
            assert len(entry.gguf_sha256 or "") == 64
        assert entry.licence
        assert entry.licence_url.startswith("https://")
    for wheel in nonempty(wheel for entry in catalog.entries().values() for wheel in (*entry.wheels, *entry.terms)):
        assert len(wheel.sha256) == 64
        assert "==" in wheel.requirement


def test_entries_are_found_by_name():
    assert catalog.entry("smollm2-135m-instruct").context_length_tokens == 8192
    assert not catalog.entry("gemma3-270m").has_chat_template


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(NotFoundError, match="did you mean smollm2-135m-instruct") as caught:
        catalog.entry("smollm-135m")
    assert "'smollm-135m'" in caught.value.came
    with pytest.raises(NotFoundError, match="luthier models list"):
        catalog.entry("zzz")


def test_what_people_tune_is_there():
    known = catalog.entries()
    assert len([entry for entry in known.values() if entry.hub]) >= 40
    families = (
        "qwen3-0.6b qwen3-235b-a22b qwen3.5-4b llama-3.1-8b-instruct gemma-3-4b-it gemma-4-e4b-it "
        "mistral-7b-instruct-v0.3 ministral-3-8b-instruct phi-4 gpt-oss-20b gpt-oss-120b glm-4.5-air "
        "granite-4.0-h-tiny lfm2-1.2b smollm3-3b "
        "olmo-3-7b-instruct deepseek-r1-distill-qwen-7b"
    )
    assert set(families.split()) <= known.keys()


def test_each_entry_is_named_pinned_and_honest_about_what_was_not_checked():
    fields = {"revision", *CatalogEntry.model_fields}
    for name, entry in nonempty(catalog.entries().items()):
        assert name == name.lower()
        assert set(entry.unchecked) <= fields, name
        assert parse(name).source == "catalog"
        assert entry.config, name
        if entry.hub is None:
            continue
        repository, _, commit = entry.hub.partition("@")
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository), name
        assert entry.sources, name
        assert entry.is_pinned == bool(commit) == ("revision" not in entry.unchecked), name
        assert commit == "" or re.fullmatch(r"[0-9a-f]{40}", commit), name
        assert parse_hub(f"hub:{entry.hub}").repo == repository


def test_parameters_are_those_of_the_described_shape():
    """The figure of each entry, counted again on the model that its config describes."""
    counted = 0
    for name, entry in nonempty(catalog.entries().items()):
        structure = structure_of(entry.config)
        assert structure.num_parameters == entry.num_parameters, name
        active = structure.num_parameters - structure.num_matrix_parameters + structure.num_active_parameters
        assert active == (entry.num_active_parameters or entry.num_parameters), name
        assert entry.config["max_position_embeddings"] == entry.context_length_tokens, name
        counted += 1
    assert counted >= 42


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen3-30b-a3b", 30.5e9),
        ("gpt-oss-120b", 117e9),
        ("glm-4.5-air", 106e9),
        ("ministral-3-14b-instruct", 13.5e9),
        ("lfm2-8b-a1b", 8.3e9),
        ("granite-4.0-h-small", 32.2e9),
        ("deepseek-r1-distill-qwen-32b", 32.764e9),
    ],
)
def test_a_described_shape_has_as_many_parameters_as_its_makers_say(name, published):
    assert catalog.entry(name).num_parameters == pytest.approx(published, rel=0.01)


SHARED = Path(os.environ.get("LUTHIER_SHARED_DATA", Path(__file__).parents[5] / "shared" / "data"))
TEMPLATES = {
    "qwen3-0.6b": "Qwen-Qwen3-0.6B",
    "qwen3.5-4b": "Qwen3.5-4B",
    "gemma-4-31b-it": "google-gemma-4-31B-it",
    "gpt-oss-120b": "openai-gpt-oss-120b",
    "qwen3-4b-instruct-2507": "Qwen3-Instruct-2507",
    "gemma-3-4b-it": "google-gemma-3",
    "mistral-small-3.2-24b-instruct": "Mistral-Small-3.2-24B-Instruct-2506",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_options_are_those_that_the_template_reads(name):
    template = SHARED / "chat_templates" / f"{TEMPLATES[name]}.jinja"
    if not template.is_file():
        pytest.skip(f"{template} is not there")
    text = template.read_text(encoding="utf-8")
    read = {option for option in ("enable_thinking", "reasoning_effort") if option in text}
    assert catalog.entry(name).template_options.keys() == read


OWN = "- {name: NAME, title: T, licence: L, licence_url: u, num_parameters: 1, context_length_tokens: 1, "
OWN += "has_chat_template: false, hub: a/b@main}"


def test_a_file_of_ones_own_adds_entries(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(OWN.replace("NAME", "ours"))
    monkeypatch.setenv("LUTHIER_CATALOG", str(tmp_path / "own.yaml"))
    assert catalog.entry("ours").hub == "a/b@main"
    assert "smollm2-135m-instruct" in catalog.entries()


@pytest.mark.parametrize("text", [OWN.replace("NAME", "gemma3-270m"), "- {name: x}", "{", "3"])
def test_a_file_of_ones_own_that_is_wrong_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "own.yaml").write_text(text)
    monkeypatch.setenv("LUTHIER_CATALOG", str(tmp_path / "own.yaml"))
    with pytest.raises(RequestError, match=r"own\.yaml"):
        catalog.entries()
