"""The units: systemd finds no fault, commands and settings exist, and a training has time for its checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
from tests.deploy.settings import check_command, unknown_variables
from tests.vacuous import nonempty

from luthier.server.service import API_GRACE_SECONDS, WORKER_GRACE_SECONDS

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("luthier.service", "luthier-worker@.service")


def service(unit: str) -> dict[str, str]:
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / unit, encoding="utf-8")
    return dict(parser["Service"])


def test_every_unit_is_tested() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.service")) == sorted(UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_commands_and_settings_exist(unit: str) -> None:
    found = service(unit)
    for key in nonempty([key for key in found if key.startswith("ExecStart")]):
        program, *arguments = shlex.split(found[key].replace("%H-%i", "machine-gpu0"))
        assert program == "/opt/luthier/bin/luthier"
        check_command(arguments)
    named = [one.partition("=")[0] for one in found["Environment"].split()]
    file = (FOLDER / "luthier.env").read_text(encoding="utf-8")
    named += re.findall(r"^# ([A-Z_]+)=", file, re.MULTILINE)
    assert unknown_variables(named, {"HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}) == []
    assert found["KillMode"] == "mixed"
    assert (found["User"], found["NoNewPrivileges"], found["UMask"]) == ("luthier", "true", "0077")


def test_a_training_has_time_for_its_checkpoint() -> None:
    assert float(service("luthier-worker@.service")["TimeoutStopSec"]) > WORKER_GRACE_SECONDS
    assert float(service("luthier.service")["TimeoutStopSec"]) > WORKER_GRACE_SECONDS + API_GRACE_SECONDS
    # Long answers may take up to 600 s (LUTHIER_DRAIN_SECONDS in luthier.env, which is not for systemd itself).
    assert float(service("luthier.service")["TimeoutStopSec"]) > 600 + API_GRACE_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_no_fault(unit: str, tmp_path: Path) -> None:
    program = tmp_path / "luthier"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    # The program is none of this machine: systemd would report that alone.
    text = (FOLDER / unit).read_text(encoding="utf-8").replace("/opt/luthier/bin/luthier", str(program))
    copy = tmp_path / unit.replace("@", "@gpu0")
    copy.write_text(text, encoding="utf-8")
    (tmp_path / "luthier.service").write_text(
        (FOLDER / "luthier.service").read_text(encoding="utf-8").replace("/opt/luthier/bin/luthier", str(program)),
        encoding="utf-8",
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(copy)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.splitlines() if unit.partition("@")[0].removesuffix(".service") in line]
    assert (done.returncode, lines) == (0, []), done.stderr


def test_the_lines_that_install_a_unit_name_files_of_a_checkout() -> None:
    lines = [line[1:].strip() for line in (FOLDER / "luthier.service").read_text(encoding="utf-8").splitlines()]
    head = lines[: lines.index("Unit]")]
    root = FOLDER.parents[1]
    named = re.findall(r"(?<=\s)((?:docs|deploy|dist)/[\w./*@-]+)", " ".join(head).replace("$(ls ", " "))
    wheels = [path for path in named if path.startswith("dist/")]
    assert wheels == ["dist/luthier-*.whl"]
    assert "-w dist ." in (root / "Makefile").read_text(encoding="utf-8"), "where `make wheel` writes it"
    for path in nonempty([path for path in named if path not in wheels]):
        assert list(root.glob(path)), path
