"""The list of choices in the documentation is the one that the declarations make."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["choices_page", "integrations_page", "platforms_page"])
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
