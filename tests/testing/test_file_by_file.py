"""Workers that import a file of tests when they run it report what any other run reports."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "conftest.py": """
        import os, pytest

        @pytest.fixture(scope="module")
        def shared(request):
            yield request.node.name
            with open(os.environ["ENDED"], "a") as file:
                file.write(request.node.name + "\\n")
        """,
    "test_one.py": """
        import pytest

        def test_passes(shared):
            pass

        @pytest.mark.parametrize("number", [1, 2])
        def test_fails_for_two(shared, number):
            assert number == 1
        """,
    "test_two.py": """
        import pytest

        def test_the_file_before_is_not_imported_for_it(shared):
            pass

        class TestOfAClass:
            @pytest.mark.skip(reason="of no use")
            def test_is_skipped(self):
                pass

            @pytest.mark.drill
            def test_is_left_out(self):
                pass
        """,
    "test_broken.py": "import nothing_of_this_name",
}


def run(folder: Path, *options: str) -> tuple[int, list[tuple[str, str, str]], set[str]]:
    """The exit code, the tests with their outcomes, and the files whose fixtures have ended."""
    results, ended = folder / "results.xml", folder / "ended"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ENDED": str(ended)}
    command = (sys.executable, "-m", "pytest", "-q", "-m", "not drill", "-p", "tests.fixtures.file_by_file", *options)
    done = subprocess.run(
        [*command, f"--rootdir={folder}", "-c", str(folder / "pytest.ini"), f"--junitxml={results}", str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert results.is_file(), done.stdout.decode() + done.stderr.decode()
    found = [
        (str(case.get("classname")), str(case.get("name")), "".join(one.tag for one in case))
        for case in ElementTree.parse(results).getroot().iter("testcase")
    ]
    return done.returncode, sorted(found), set(ended.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    (made / "pytest.ini").write_text("[pytest]\nmarkers =\n    drill: slow\n", encoding="utf-8")
    for name, text in FILES.items():
        (made / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return made


def test_each_test_is_reported_once_with_its_outcome(folder: Path) -> None:
    code, found, ended = run(folder, "-n", "1", "--dist", "loadfile")
    assert code == 1
    assert found == [
        ("", "test_broken", "error"),
        ("test_one", "test_fails_for_two[1]", ""),
        ("test_one", "test_fails_for_two[2]", "failure"),
        ("test_one", "test_passes", ""),
        ("test_two", "test_the_file_before_is_not_imported_for_it", ""),
        ("test_two.TestOfAClass", "test_is_skipped", "skipped"),
    ]
    assert ended == {"test_one.py", "test_two.py"}
