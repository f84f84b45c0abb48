"""Environment variables for the programs that a process starts."""

from __future__ import annotations

import os

import pytest

from luthier.core.system.process_setup import environment_with


def test_variables_are_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_OLD", "before")
    monkeypatch.delenv("LUTHIER_NEW", raising=False)
    monkeypatch.delenv("LUTHIER_FURTHER", raising=False)
    given = {"LUTHIER_OLD": "within", "LUTHIER_NEW": "within"}

    def fail() -> None:
        with environment_with(given, restored=("LUTHIER_FURTHER",)):
            assert (os.environ["LUTHIER_OLD"], os.environ["LUTHIER_NEW"]) == ("within", "within")
            os.environ["LUTHIER_FURTHER"] = "set by a library"
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert os.environ["LUTHIER_OLD"] == "before"
    assert "LUTHIER_NEW" not in os.environ
    assert "LUTHIER_FURTHER" not in os.environ
