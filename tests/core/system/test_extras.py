"""Each extra is declared, and what is missing is named with the command that brings it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.system import extras
from luthier.core.system.extras import EXTRAS, Extra, command_for, install_command, missing_modules, require_extra

ROOT = Path(__file__).parents[3]
OF_DEVELOPERS = {"docs", "test"}
OF_CUDA = {"gpu"}


def declared() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    return found


def test_every_extra_is_known_and_all_brings_each() -> None:
    assert set(EXTRAS) == set(declared()) - OF_DEVELOPERS - {"all"}
    named: dict[str, set[str]] = {}
    for one in nonempty(declared()["all"]):
        found = re.fullmatch(r"luthier\[([\w,-]+)\](?:; (.+))?", one)
        assert found is not None
        named.setdefault(found[2] or "", set()).update(found[1].split(","))
    # What needs a compiler there is left out of it.
    assert named.keys() == {"", "python_version < '3.13'"}
    assert named["python_version < '3.13'"] == {"law"}
    assert named[""] | {"law"} == set(EXTRAS) - OF_CUDA


def test_every_install_command_of_the_code_names_an_extra() -> None:
    used = set()
    for path in (ROOT / "src" / "luthier").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r"(?:install_command|require_extra|missing_extra)\(\s*[\"']([\w-]+)[\"']", text))
        used |= set(re.findall(r"luthier\[([\w-]+)\]", text))
    assert len(used) > 8
    assert used - {"NAME", "all"} <= set(EXTRAS)


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Extra("a purpose", ("json", "no_such_module", "no_such_parent.child"))
    monkeypatch.setattr(extras, "EXTRAS", {"made": made, "there": Extra("nothing", ("json",))})
    assert missing_modules("made") == ("no_such_module", "no_such_parent.child")
    assert require_extra("there", "this") is None
    with pytest.raises(RequestError) as caught:
        require_extra("made", "this", "or leave it out")
    error = caught.value
    assert error.came == "this needs the packages no_such_module, no_such_parent.child, which are not installed"
    assert error.expected == "Luthier with the extra `made`, for a purpose"
    assert error.do.endswith("'luthier[made]', or leave it out")


@pytest.mark.parametrize(
    ("prefix", "command"),
    [
        ("/home/me/.venv", "pip install 'luthier[s3]'"),
        ("/home/me/.local/share/pipx/venvs/luthier", "pipx runpip luthier install 'luthier[s3]'"),
        ("/home/me/.local/share/uv/tools/luthier", "uv pip install --python \"$(uv tool dir)/luthier\" 'luthier[s3]'"),
    ],
)
def test_the_command_is_that_of_the_installer(monkeypatch: pytest.MonkeyPatch, prefix: str, command: str) -> None:
    monkeypatch.setattr(extras, "_is_there", lambda name: True)
    assert install_command("s3", prefix) == command


def test_an_environment_without_pip_is_one_of_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_there", lambda name: name != "pip")
    assert install_command("s3", "/home/me/.venv") == "uv pip install 'luthier[s3]'"


def test_what_a_shell_would_read_is_quoted_as_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_is_there", lambda name: True)
    assert command_for("gcsfs", "/x") == "pip install gcsfs"
    assert command_for("tracker>=2,<3", "/x") == "pip install 'tracker>=2,<3'"
    monkeypatch.setattr(extras, "os", SimpleNamespace(name="nt"))
    assert command_for("luthier[s3]", "/x") == 'pip install "luthier[s3]"'
