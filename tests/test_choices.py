"""The list of choices in the documentation is the one that the declarations make."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "name", ["choices_page", "commands_page", "integrations_page", "platforms_page", "settings_page"]
)
def test_the_page_is_as_the_declarations_make_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module(name)
    found = page.PAGE.read_text(encoding="utf-8")
    assert found == page.text(), f"run `python docsite/{name}.py`"


def test_every_integration_names_its_version_and_a_test_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module("integrations_page")
    rows = [one for _, _, group in page._SECTIONS for one in group]
    assert len(rows) > 20
    assert [one.title for one in rows if not page.version_of(one) or not (ROOT / one.test).is_file()] == []
    extras = page.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    listed = {one.package for one in page.TRACKERS}
    trackers = {"tensorboard", "mlflow", "wandb", "trackio"}
    assert {page._REQUIREMENT.match(extras[name][0])["name"] for name in trackers} == listed


def test_the_clients_of_the_server_page_are_those_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module("integrations_page")
    table = (ROOT / "docs" / "server.md").read_text(encoding="utf-8").partition("### Clients by version")[2]
    listed = set(re.findall(r"^\| `([^`]+)` \| ([0-9.]+)", table, re.MULTILINE))
    beside = {(one["name"], one["version"]) for one in page._PIN.finditer(page._read("tests/client_packages.sh"))}
    assert len(listed) > 8
    assert listed - beside - set(page.constraints().items()) == set()
    # None that is installed for these tests is left out, and none that they import.
    assert beside - listed == set()
    assert {name for name, _ in listed} >= {one.package for one in page.CLIENTS}
