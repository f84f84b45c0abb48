"""Every check of the table is there, and plug-ins come after them."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from luthier.core import registry as core_registry
from luthier.core.errors import NotFoundError
from luthier.ml.data.audit import run


def test_every_built_in_check_can_be_loaded() -> None:
    checks = run.load_checks()
    assert list(checks) == run.check_names()
    assert set(run.BUILT_IN) <= set(checks)
    assert all(callable(check) for check in checks.values())


def test_some_checks_come_in_the_order_of_the_table() -> None:
    assert list(run.load_checks(["refusal", "schema"])) == ["schema", "refusal"]
    assert run.load_checks([]) == {}


def test_an_unknown_check_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="one of schema, encoding"):
        run.load_checks(["schema", "spelling"])


def test_plug_ins_add_checks_but_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "luthier.checks"
        names = ("zeta", "alpha", "schema")
        return [EntryPoint(name, "luthier.ml.data.audit.refusal:check", group) for name in names]

    monkeypatch.setattr(core_registry, "entry_points", entry_points)
    assert run.check_names() == [*run.BUILT_IN, "alpha", "zeta"]
    assert run.load_checks(["schema"])["schema"].__module__ == "luthier.ml.data.audit.schema"  # type: ignore[attr-defined]
    assert list(run.load_checks(["zeta"])) == ["zeta"]
