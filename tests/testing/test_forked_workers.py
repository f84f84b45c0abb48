"""Tests that run in forked processes have the outcomes that they have in one, and none is lost with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from luthier.core.system.facilities import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes of tests are forked on Linux alone")
ROOT = Path(__file__).parents[2]
FILES = {
    "test_one.py": """
        import pytest, warnings
        def test_passes(tmp_path_factory):
            print("nobody reads this")
            assert tmp_path_factory.getbasetemp().name.startswith("fork-")
        def test_fails():
            print("said before " + "the failure")
            assert [1, 2] == [1, 3]
        @pytest.mark.skip(reason="not here")
        def test_is_skipped(): pass
        @pytest.mark.xfail(strict=True)
        def test_is_expected_to_fail(): assert not 1
        def test_warns(): warnings.warn("of a " + "warning")
    """,
    "test_deadly.py": """
        import os, signal
        def test_before(): pass
        def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
        def test_behind(): pass
    """,
    "test_session.py": """
        import pytest
        @pytest.fixture(scope="session")
        def bad():
            yield
            raise ValueError("ended badly")
        def test_with_it(bad): pass
    """,
    "package/__init__.py": "",
    "package/conftest.py": """
        import pathlib, pytest
        @pytest.fixture(scope="package")
        def shared():
            with pathlib.Path(__file__).with_name("log").open("a") as log:
                log.write("begun ")
                yield log
                log.write("ended ")
    """,
    "package/test_four.py": "def test_first(shared): shared.write('first ')",
    "package/test_five.py": "def test_second(shared): shared.write('second ')",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with these tests."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("\n        ", "\n"), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return tmp_path


def run(place: Path, *arguments: str) -> tuple[int, str, list[tuple[str, str, str]]]:
    """The exit code of pytest, what it wrote, and the name, outcome and message of each test."""
    options = ("-p", "tests.fixtures.forked_workers", "-c", str(place / "pytest.ini"), "--junitxml", str(place / "xml"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found: list[tuple[str, str, str]] = []
    for case in ElementTree.parse(place / "xml").iter("testcase") if (place / "xml").is_file() else ():
        ends = [(one.tag, one.get("message") or "") for one in case if one.tag in ("failure", "error", "skipped")]
        found += [(case.get("name") or "", tag, message) for tag, message in ends or [("passed", "")]]
    return done.returncode, done.stdout + done.stderr, found


def test_each_test_has_its_outcome_and_one_whose_process_dies_has_failed(place: Path) -> None:
    code, said, found = run(place, "--forks", "2", str(place))
    (error,) = [message for _, tag, message in found if tag == "error"]
    assert "ended badly" in error, "of a fixture of the session, which ends with its process"
    outcomes = {name: tag for name, tag, _ in found if tag != "error"}
    assert outcomes == {
        "test_passes": "passed",
        "test_fails": "failure",
        "test_is_skipped": "skipped",
        "test_warns": "passed",
        "test_is_expected_to_fail": "skipped",
        "test_before": "passed",
        "test_dies": "failure",
        "test_behind": "passed",
        "test_with_it": "passed",
        "test_first": "passed",
        "test_second": "passed",
    }
    assert code == pytest.ExitCode.TESTS_FAILED
    assert [message for name, _, message in found if name == "test_dies"] == [
        "Failed: the process that ran this test ended with -9"
    ]
    assert "At index 1 diff: 2 != 3" in said
    assert said.count("said before the failure") == 1
    assert "nobody reads this" not in said
    assert said.count("of a warning") == 1
    assert "2 failed, 7 passed, 1 skipped, 1 xfailed, 1 warning, 1 error" in said


def test_a_fixture_of_a_package_is_made_once_for_the_files_of_a_process(place: Path) -> None:
    code, said, found = run(place, "--forks", "1", str(place / "package"))
    assert code == 0, said
    assert len(found) == 2
    log = (place / "package" / "log").read_text(encoding="utf-8").split()
    assert (log[0], sorted(log[1:3]), log[3:]) == ("begun", ["first", "second"], ["ended"])


def test_nothing_is_run_behind_the_first_failure_where_that_is_asked_for(place: Path) -> None:
    code, said, found = run(place, "--forks", "1", "-x", str(place / "test_one.py"))
    assert code == pytest.ExitCode.TESTS_FAILED
    assert [(name, tag) for name, tag, _ in found] == [("test_passes", "passed"), ("test_fails", "failure")]
    assert "stopping after 1 failures" in said


def test_where_a_thread_runs_nothing_is_forked(place: Path) -> None:
    text = "import threading\nthreading.Thread(target=threading.Event().wait, name='of-a-test', daemon=True).start()\n"
    (place / "test_thread.py").write_text(f"{text}def test_it(): pass\n", encoding="utf-8")
    code, said, _ = run(place, "--forks", "1", str(place / "test_thread.py"))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "threads run that a fork does not keep: of-a-test" in said
