import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.models import catalog


def test_every_entry_has_exactly_one_source_and_digests_for_all_of_it():
    for name, entry in catalog.entries().items():
        assert entry.name == name
        assert bool(entry.wheels) != bool(entry.hub)
        for wheel in (*entry.wheels, *entry.terms):
            assert len(wheel.sha256) == 64
            assert "==" in wheel.requirement
        if entry.wheels:
            assert len(entry.gguf_sha256 or "") == 64
        assert entry.licence
        assert entry.licence_url.startswith("https://")


def test_entries_are_found_by_name():
    assert catalog.entry("smollm2-135m-instruct").context_length_tokens == 8192
    assert not catalog.entry("gemma3-270m").has_chat_template


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(NotFoundError, match="did you mean smollm2-135m-instruct") as caught:
        catalog.entry("smollm-135m")
    assert "'smollm-135m'" in caught.value.came
    with pytest.raises(NotFoundError, match="luthier models list"):
        catalog.entry("zzz")


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
