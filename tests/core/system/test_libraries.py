"""Libraries are imported as they would be without us, only sooner."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.system import libraries
from luthier.core.system.libraries import ImportStructure, cached_search, import_late, import_libraries

FOUND: ImportStructure = {
    frozenset(): {"models.a.configuration_a": {"AConfig"}},
    frozenset({"torch", "vision"}): {"models.a.modeling_a": {"AModel", "AHead"}},
}
Search = Callable[..., ImportStructure]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A package like transformers: the module that searches, and the sources that it reads."""
    for name in (
        "utils/import_utils.py",
        "models/__init__.py",
        "models/a/modeling_a.py",
        "models/a/configuration_a.py",
    ):
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text("A = 1\n")
    return tmp_path / "lib" / "utils" / "import_utils.py"


@pytest.fixture
def asked() -> list[tuple[object, str | None]]:
    return []


@pytest.fixture
def search(program: Path, tmp_path: Path, asked: list[tuple[object, str | None]]) -> Search:
    def plain(module_path: object, prefix: str | None = None) -> ImportStructure:
        asked.append((module_path, prefix))
        return {backends: {name: set(one) for name, one in modules.items()} for backends, modules in FOUND.items()}

    return cached_search(plain, program, tmp_path / "kept")


def test_sources_are_searched_once_and_the_caller_may_change_what_it_gets(
    program: Path, search: Search, asked: list[tuple[object, str | None]]
) -> None:
    models = program.parents[1] / "models"
    first = search(models, "models")
    first[frozenset()]["more"] = {"More"}
    assert search(models, "models") == FOUND
    assert search(str(models / "__init__.py")) == FOUND  # by another name and without a prefix: another answer
    assert search(str(models / "__init__.py")) == FOUND
    assert asked == [(models, "models"), (str(models / "__init__.py"), None)]


@pytest.mark.parametrize("changed", ["models/a/modeling_a.py", "models/b/new.py", "utils/import_utils.py"])
def test_sources_that_changed_are_searched_again(
    program: Path, search: Search, asked: list[tuple[object, str | None]], changed: str
) -> None:
    models = program.parents[1] / "models"
    search(models, "models")
    file = program.parents[1] / changed
    file.parent.mkdir(exist_ok=True)
    file.write_text("B = 22\n")
    assert search(models, "models") == FOUND
    search(models, "models")
    assert len(asked) == 2


def test_a_source_of_the_same_size_is_known_by_its_time(
    program: Path, search: Search, asked: list[tuple[object, str | None]]
) -> None:
    models, file = program.parents[1] / "models", program.parents[1] / "models/a/modeling_a.py"
    search(models)
    os.utime(file, (1, 1))
    search(models)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"stamp": 1}'])
def test_what_cannot_be_read_is_made_again(
    program: Path, search: Search, asked: list[tuple[object, str | None]], tmp_path: Path, damage: str
) -> None:
    models = program.parents[1] / "models"
    search(models)
    (place,) = (tmp_path / "kept").iterdir()
    place.write_text(damage)
    assert search(models) == FOUND
    assert search(models) == FOUND
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_costs_the_search_alone(
    program: Path, search: Search, asked: list[tuple[object, str | None]], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    assert search(program.parents[1] / "models") == FOUND
    assert search(program.parents[1] / "models") == FOUND
    assert len(asked) == 2


def test_one_model_and_another_form_of_findings_are_left_to_transformers(program: Path, tmp_path: Path) -> None:
    models = program.parents[1] / "models"
    search = cached_search(lambda *_: {frozenset(): {"models.a": 1}}, program, tmp_path / "kept")  # type: ignore[dict-item]
    search(models)
    assert not (tmp_path / "kept").exists()
    search = cached_search(lambda *_: FOUND, program, tmp_path / "kept")
    assert search(models / "a" / "__init__.py") is FOUND
    assert not (tmp_path / "kept").exists()


_IMPORT = """
import json, os, sys
import huggingface_hub, torch  # once for all, as the libraries that are not looked at
from pathlib import Path
from luthier.core.system.libraries import keep_import_structure

def imported(folder):
    opened = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    if folder:
        keep_import_structure(Path(folder))
    import transformers
    from transformers import AutoConfig, LlamaConfig
    from transformers.utils import import_utils
    models = os.path.join(os.path.dirname(transformers.__file__), "models")
    return {
        "modules": sorted(transformers._class_to_module.items()),
        "names": sorted(dir(transformers)),
        "models": sorted(transformers.models._class_to_module.items()),
        "missing": sorted((name, sorted(why)) for name, why in transformers._object_missing_backend.items()),
        "read": sum(name.startswith(models) and "modeling_" in name and name.endswith(".py") for name in opened),
        "loader": type(import_utils.__loader__).__name__,
    }

assert "transformers" not in sys.modules
for folder in sys.argv[1:]:
    if (pid := os.fork()) == 0:
        print(json.dumps(imported(folder)), flush=True)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit("a process has failed")
"""


def test_transformers_has_the_same_names_and_reads_its_models_once(tmp_path: Path) -> None:
    """In three processes, which are forked before transformers is imported."""
    command = [sys.executable, "-c", _IMPORT, "", str(tmp_path / "kept"), str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, first, second = map(json.loads, done.stdout.splitlines())
    num_read = [one.pop("read") for one in (plain, first, second)]
    assert num_read[0] == num_read[1] > 100
    assert num_read[2] < 10  # of the models that are imported here
    assert plain == first == second
    assert nonempty(plain["modules"])
    assert plain["loader"] == "SourceFileLoader"


def test_imports_are_done_without_collections_and_what_they_made_is_left_out_of_later_ones(tmp_path: Path) -> None:
    (tmp_path / "made_up_library.py").write_text(
        "import gc\nWAS_COLLECTING = gc.isenabled()\nMADE = [[] for _ in range(9)]\n"
    )
    code = (
        "import gc, sys\n"
        "from luthier.core.system.libraries import import_libraries\n"
        "import_libraries(('made_up_library',))\n"
        "frozen = gc.get_freeze_count()\n"
        "import_libraries(('made_up_library',))\n"
        "was_collecting = sys.modules['made_up_library'].WAS_COLLECTING\n"
        "print(was_collecting, gc.isenabled(), frozen > 9, gc.get_freeze_count() <= frozen)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "True", "True", "True"]


def test_scikit_learn_is_loaded_without_pandas_and_starts_no_thread() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from luthier.core.system.libraries import import_libraries\n"
        "import_libraries(('sklearn.linear_model', 'sklearn.svm', 'sklearn.feature_extraction.text'))\n"
        "loaded = [name for name in ('sklearn', 'pandas', 'pyarrow') if name in sys.modules]\n"
        "names = {(one / 'comm').read_text().strip() for one in Path('/proc/self/task').iterdir()}\n"
        "found = sys.modules['sklearn.feature_extraction.text'].TfidfVectorizer().fit_transform(['a bc', 'bc de'])\n"
        "import importlib.util\n"
        "is_there = importlib.util.find_spec('pandas') is None or bool(__import__('pandas').DataFrame)\n"
        "print(loaded, any('jemalloc' in name for name in names), found.shape, is_there)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sklearn'] False (2, 2) True"


def test_a_library_is_loaded_when_its_function_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_library.py").write_text("def assign(value, *, by=1):\n    return value + by\n")
    package = tmp_path / "late_losses"
    package.mkdir()
    (package / "__init__.py").write_text("from late_losses.one import assign\nfrom . import two\n")
    (package / "one.py").write_text("import json.tool\nfrom late_library import assign\nTOOL = json.tool\n")
    (package / "two.py").write_text("def taken():\n    import late_library\n    return late_library.assign\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("late_library", "late_losses", "late_losses.one", "late_losses.two"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import_late("late_losses", "late_library", "assign")
    losses = importlib.import_module("late_losses")
    assert "late_library" not in sys.modules
    assert losses.one.TOOL is sys.modules["json.tool"]
    assert type(losses.one.__loader__).__name__ == "SourceFileLoader"
    assert losses.assign(2, by=3) == 5
    # All other ways to the library lead to the library itself.
    assert losses.two.taken() is sys.modules["late_library"].assign
    assert losses.assign is not sys.modules["late_library"].assign


def test_a_library_that_is_missing_leaves_the_collector_as_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError):
        import_libraries(("no_such_library_at_all",))
    assert gc.isenabled()


def test_a_version_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.version("pytest") == pytest.__version__
    monkeypatch.setattr(libraries.importlib.metadata, "version", lambda _: "0")
    assert libraries.version("pytest") == pytest.__version__


def test_the_stamp_of_the_code_follows_from_its_files() -> None:
    assert libraries.code_stamp() == libraries._stamp(Path(libraries.__file__).parents[2])
