"""What `make` installs, and in which Python: on Linux without a GPU the torch for processors, a tenth of the size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not sys.platform.startswith("linux"), reason="needs make, and is about Linux"
)
_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *find_spec*) exit {has_no_torch} ;;
  *--index-url*) exit {fails} ;;
esac
"""


def made(folder: Path, *, devices: str = "", has_torch: bool = False, fails: bool = False) -> tuple[list[str], str]:
    """The calls of Python for `make VENV/installed`, and what was printed; nothing is installed."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    log = folder / "calls"
    python.write_text(_PYTHON.format(log=log, has_no_torch=int(not has_torch), fails=int(fails)))
    python.chmod(0o755)
    command = ["make", f"VENV={folder / '.venv'}", f"GPU_DEVICES={devices}", str(folder / ".venv" / "installed")]
    # Not as a part of the make that runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in log.read_text().splitlines() if "find_spec" not in line], done.stderr


def test_without_a_gpu_torch_for_processors_comes_before_luthier(tmp_path: Path) -> None:
    calls, said = made(tmp_path)
    assert len(calls) == 2
    assert "--no-deps --index-url https://download.pytorch.org/whl/cpu torch>=2.9" in calls[0]
    assert calls[1].endswith("-c constraints.txt -e .")
    assert said == ""


def test_where_its_index_does_not_answer_the_install_goes_on(tmp_path: Path) -> None:
    calls, said = made(tmp_path, fails=True)
    assert len(calls) == 2
    assert calls[1].endswith("-c constraints.txt -e .")
    assert "torch of PyPI is installed, with CUDA's libraries" in said


@pytest.mark.parametrize(("devices", "has_torch"), [("/dev/null", False), ("", True)])
def test_with_a_gpu_or_a_torch_nothing_else_is_installed(tmp_path: Path, devices: str, has_torch: bool) -> None:
    calls, _ = made(tmp_path, devices=devices, has_torch=has_torch)
    assert [call.rpartition(" -e ")[2] for call in calls] == ["."]


_NAMED_PYTHON = """#!/bin/sh
case "$*" in
  "-m venv"*) echo "$0" >> {log} ;;
  *) PYTHONPATH={settings} exec {python} "$@" ;;
esac
"""
_SETTINGS = """import sys, sysconfig
sys.executable, sys.base_prefix = {executable!r}, {prefix!r}
sysconfig.get_config_vars()["CONFIG_ARGS"] = {arguments!r}
"""


def venv_maker(
    folder: Path, *options: str, arguments: str, prefix: str = "/opt/python", system: str | None
) -> tuple[str, str]:
    """The Python that makes the environment, and what was printed; `system` is the script of the system's Python."""
    first, settings, log = folder / "first" / "python3", folder / "settings", folder / "made"
    for made_folder in (first.parent, settings, folder / "system"):
        made_folder.mkdir()
    settings.joinpath("sitecustomize.py").write_text(
        _SETTINGS.format(executable=str(first), prefix=prefix, arguments=arguments)
    )
    first.write_text(_NAMED_PYTHON.format(log=log, settings=settings, python=sys.executable))
    first.chmod(0o755)
    if system is not None:
        second = folder / "system" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        second.write_text(system.format(log=log))
        second.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    environment["PATH"] = f"{first.parent}{os.pathsep}{environment['PATH']}"
    command = ["make", f"VENV={folder / '.venv'}", f"SYSTEM_BIN={folder / 'system'}", *options]
    done = subprocess.run(
        [*command, str(folder / ".venv" / "bin" / "python")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return log.read_text().removeprefix(str(folder)).strip(), done.stderr


_MAKES_VENVS = """#!/bin/sh
case "$*" in "-m venv"*) echo "$0" >> {log} ;; esac
"""
_MAKES_NONE = "#!/bin/sh\nexit 1\n"


def test_a_python_without_profiles_gives_way_to_the_one_of_the_system(tmp_path: Path) -> None:
    chosen, said = venv_maker(tmp_path, arguments="'--enable-shared'", system=_MAKES_VENVS)
    assert chosen.startswith("/system/python3.")
    assert "was built without profiles (PGO)" in said
    assert "PYTHON= chooses another one" in said


@pytest.mark.parametrize(
    ("arguments", "prefix", "system"),
    [
        ("'--enable-optimizations' '--with-lto'", "/opt/python", _MAKES_VENVS),
        ("'--enable-shared'", "/usr", _MAKES_VENVS),
        ("'--enable-shared'", "/opt/python", None),
        ("'--enable-shared'", "/opt/python", _MAKES_NONE),
    ],
    ids=["has profiles", "is the system's", "the system has none", "the system's makes no environments"],
)
def test_any_other_python_stays(tmp_path: Path, arguments: str, prefix: str, system: str | None) -> None:
    chosen, said = venv_maker(tmp_path, arguments=arguments, prefix=prefix, system=system)
    assert chosen == "/first/python3"
    assert said == ""


def test_a_python_that_was_named_is_used(tmp_path: Path) -> None:
    named = tmp_path / "first" / "python3"
    chosen, said = venv_maker(tmp_path, f"PYTHON={named}", arguments="'--enable-shared'", system=_MAKES_VENVS)
    assert chosen == "/first/python3"
    assert said == ""
