"""Waiting threads sleep soon, unless the user wants otherwise."""

from __future__ import annotations

import os

import pytest

from luthier.core.system.threads import wait_briefly


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_sets_a_short_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT") == ("7" if name == "GOMP_SPINCOUNT" else None)
