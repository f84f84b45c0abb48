"""The libraries that a process loads: their versions, and imports that take less time.

torch, transformers and PEFT are most of the start of a command. Three things make up a good part of their imports, and
can be saved without a change in what the libraries do:

    garbage collection     modules and classes live as long as the process, but the collector looks through all of
                           them again and again while they are made
    transformers' search   it reads the source of every model that it has (36 MB in 1,700 files) to learn which class
                           is in which file; what it finds is kept in a file of the home, under the names, sizes and
                           times of change of these sources
    SciPy's optimizers     transformers takes one function of them for losses of object detection; it gets a function
                           that loads them when it is called
    a cloud's client       accelerate loads it, where it is installed, for a command that sets that cloud up
    tables of pandas       scikit-learn loads pandas where it is installed, and so Arrow with its own thread; no
                           table is fitted here
    what is for several    transformers loads what it shards tensors with, and SymPy for it, also in a process that
    processes              runs alone
    torch's compiler       loaded by decorators alone, which exclude functions from it (`late_compiler`)
"""

from __future__ import annotations

import builtins
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from luthier.core.system import late_compiler

NUMERICAL: Final = ("torch", "transformers.modeling_utils", "peft")
"""What every process loads that computes with a model."""


NUMBA: Final = "numba"
"""Compiles the loops of CPU training (`luthier.ml.training.numba_kernels`)."""


def has_numba() -> bool:
    """Whether Numba is installed; it is not imported."""
    return importlib.util.find_spec(NUMBA) is not None


@functools.cache
def version(name: str) -> str:
    """The version of an installed distribution; read once in a process, whose modules stay as they were loaded.

    Raises:
        importlib.metadata.PackageNotFoundError: There is no such distribution.
    """
    return importlib.metadata.version(name)


@functools.cache
def code_stamp() -> str:
    """A digest of the names, sizes and times of change of this package's own source files.

    The version of the package is the same for all states of a checkout; what was proved of one need not hold for
    another.
    """
    return _stamp(Path(__file__).parents[2])


def import_libraries(names: Sequence[str] = NUMERICAL) -> None:
    """Import modules without collecting garbage meanwhile, and leave what is there now out of later collections.

    Nothing else changes: unreferenced objects are freed immediately as before. Only cycles that the imports leave
    behind stay until the process ends.
    """
    if all(name in sys.modules for name in names):
        return
    import_late(_LOSSES, *_ASSIGNMENT)
    _execute_by(_ACCELERATE, _execute_accelerate_imports)
    _execute_by(_SKLEARN_TABLES, _execute_without_pandas)
    if any(name.partition(".")[0] in _OVER_TORCH for name in names):
        importlib.import_module("torch")
        late_compiler.install(_trace_masks)
        import_late(_MASKS, *_TRACED)
        _execute_by(_MODULE, _execute_import_utils)
        _execute_by(_PEFT_TUNERS, _execute_peft_tuners)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        if was_enabled:
            gc.enable()
    # Over a million objects that stay: each full collection of a training would go through them.
    gc.freeze()


_MODULE: Final = "transformers.utils.import_utils"
_FUNCTION: Final = "define_import_structure"
_FORMAT: Final = 1
ImportStructure = dict[frozenset[str], dict[str, set[str]]]
"""The required backends, then the module below `transformers`, then the names in it."""


def keep_import_structure(folder: Path) -> None:
    """Let transformers, when this process imports it, find in this folder which class is in which of its files.

    Does nothing where transformers is loaded already. What cannot be read, or is of other source files, is made again.

    Args:
        folder: For one file; made when it is first written.
    """

    global _imports_folder
    _imports_folder = folder
    _execute_by(_MODULE, _execute_import_utils)


_imports_folder: Path | None = None
_OVER_TORCH: Final = frozenset({"transformers", "peft"})
_DISTRIBUTED: Final = "is_torch_distributed_available"
_TORCH_DISTRIBUTED: Final = "torch.distributed"
_PEFT_TUNERS: Final = "peft.tuners.tuners_utils"
_SHARDS: Final = "_torch_supports_distributed"


def _execute_import_utils(loader: Loader, module: ModuleType) -> None:
    """Execute the module by which transformers knows its own files, and what this process has."""
    loader.exec_module(module)
    search = getattr(module, _FUNCTION, None)
    if search is not None and _imports_folder is not None:
        setattr(module, _FUNCTION, cached_search(search, Path(str(module.__file__)), _imports_folder))
    # Not loaded for it: a process that only tokenises has no torch.
    distributed = sys.modules.get(_TORCH_DISTRIBUTED)
    if distributed is not None and hasattr(module, _DISTRIBUTED) and _is_alone():
        # As with a torch that is built without: transformers then loads nothing of what several processes need.
        setattr(module, _DISTRIBUTED, _is_never)
        if not hasattr(distributed, "__getattr__"):
            # Others find there what they take to be loaded.
            vars(distributed)["__getattr__"] = _late_submodule


def _execute_peft_tuners(loader: Loader, module: ModuleType) -> None:
    """Execute the module of PEFT that looks whether a weight is sharded."""
    loader.exec_module(module)
    if hasattr(module, _SHARDS) and _is_alone():
        setattr(module, _SHARDS, False)


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def _late_submodule(name: str) -> ModuleType:
    if name not in ("tensor", "fsdp", "checkpoint"):
        raise AttributeError(f"module {_TORCH_DISTRIBUTED!r} has no attribute {name!r}")
    return importlib.import_module(f"{_TORCH_DISTRIBUTED}.{name}")


def _is_never() -> bool:
    return False


vars(_is_never)["_dynamo_marked_constant"] = True  # as the function of transformers that it replaces


_LOSSES: Final = "transformers.loss"
_ASSIGNMENT: Final = ("scipy.optimize", "linear_sum_assignment")
_MASKS: Final = "transformers.masking_utils"
_TRACED: Final = ("torch._dynamo._trace_wrapped_higher_order_op", "TransformGetItemToIndex")


def _trace_masks() -> None:
    """Give masks the class itself that they take from torch's compiler, which looks through functions of ours."""
    if (masks := sys.modules.get(_MASKS)) is not None:
        setattr(masks, _TRACED[1], getattr(importlib.import_module(_TRACED[0]), _TRACED[1]))


_ACCELERATE: Final = "accelerate.utils.imports"
_CLOUD: Final = "is_boto3_available"


def _execute_accelerate_imports(loader: Loader, module: ModuleType) -> None:
    """Execute the module by which accelerate knows what is installed, without a cloud's client.

    It takes that for its command that sets such a cloud up, which this project does not have.
    """
    loader.exec_module(module)
    if hasattr(module, _CLOUD):
        setattr(module, _CLOUD, _is_never)
    if hasattr(module, _DISTRIBUTED) and _is_alone():
        setattr(module, _DISTRIBUTED, _is_never)


_SKLEARN_TABLES: Final = "sklearn.utils.fixes"


def _execute_without_pandas(loader: Loader, module: ModuleType) -> None:
    """Execute the module by which scikit-learn knows pandas, as where that is not installed: no table of it is fitted.

    pandas loads Arrow, whose allocator starts a thread, and a process with threads cannot be forked.
    """

    def import_module(
        asked: str, variables: Any = None, local: Any = None, names: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        if asked == "pandas":
            raise ImportError(asked)
        return builtins.__import__(asked, variables, local, names or (), level)

    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_module}
    loader.exec_module(module)


def import_late(importer: str, library: str, name: str) -> None:
    """Have modules, when they are imported, take a function from a library that loads the library when it is called.

    Args:
        importer: The package whose modules have `from LIBRARY import NAME` at their top. All their other imports, and
            those of the library by others, are as they were.
        library: The module that the function is of.
        name: The function.
    """

    def _late(*given: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(library), name)(*given, **named)

    def import_module(
        asked: str, variables: Any = None, local: Any = None, names: Sequence[str] | None = (), level: int = 0
    ) -> Any:
        if (asked, tuple(names or ()), level) == (library, (name,), 0):
            return SimpleNamespace(**{name: _late})
        return builtins.__import__(asked, variables, local, names or (), level)

    def execute(loader: Loader, module: ModuleType) -> None:
        # Python looks `__import__` up in the builtins of the module that has the statement: no other one sees this.
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_module}
        loader.exec_module(module)

    _execute_by(importer, execute)


Execute = Callable[[Loader, ModuleType], None]


def _execute_by(name: str, execute: Execute) -> None:
    """Have a module, and those below it, executed by a function; nothing where it is loaded already."""
    if name in sys.modules:
        return
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and finder.name == name:
            finder.execute = execute
            return
    sys.meta_path.insert(0, _Finder(name, execute))


class _Finder(MetaPathFinder):
    """Finds a module and those below it, and wraps their loaders."""

    def __init__(self, name: str, execute: Execute) -> None:
        self.name, self.execute = name, execute

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of such a module; None for all others."""
        if not f"{fullname}.".startswith(f"{self.name}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.execute)
        return spec


class _Loader(Loader):
    """Loads a module as its own loader does, and has it executed by a function that is given that loader."""

    def __init__(self, inner: Loader, execute: Execute) -> None:
        self._inner, self._execute = inner, execute

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module."""
        # Its own loader again, for all who ask the module for its source.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._execute(self._inner, module)


def cached_search(
    search: Callable[..., ImportStructure], program: Path, folder: Path
) -> Callable[..., ImportStructure]:
    """The search for names in source files, which looks into a file of `folder` first for the folder of all models.

    Args:
        search: `define_import_structure(module_path, prefix)` of transformers.
        program: The source file that it is written in, `transformers/utils/import_utils.py`.
        folder: Where its findings are kept.
    """
    models = program.parents[1] / "models"

    @functools.wraps(search)
    def define_import_structure(module_path: str | os.PathLike[str], prefix: str | None = None) -> ImportStructure:
        asked = Path(module_path)
        # One model has few files, and its findings no time to lose.
        if asked not in (models, models / "__init__.py"):
            return search(module_path, prefix)
        place = folder / ("transformers.json" if prefix is None else "transformers-prefixed.json")
        # All that the result depends on: the sources, the code that reads them, and the request.
        stamp = [_FORMAT, str(models), _stamp(models), _stamp(program.parent), prefix]
        found = _read(place, stamp)
        if found is None:
            found = search(module_path, prefix)
            _keep(place, stamp, found)
        return found

    return define_import_structure


def _stamp(folder: Path) -> str:
    """A digest of the names, sizes and times of change of the Python files in a folder and below."""
    import hashlib

    digest = hashlib.sha256()
    for line in sorted(_files(str(folder), "")):
        digest.update(line.encode("utf-8", errors="surrogateescape"))
    return digest.hexdigest()


def _files(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield f"{prefix}{entry.name} {status.st_size} {status.st_mtime_ns}\n"
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/")


def _read(place: Path, stamp: list[Any]) -> ImportStructure | None:
    """What was kept under this stamp; None where nothing was, or it cannot be read."""
    try:
        document = json.loads(place.read_bytes())
        if document["stamp"] != stamp:
            return None
        return {
            frozenset(backends): {module: set(names) for module, names in modules.items()}
            for backends, modules in document["structure"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _keep(place: Path, stamp: list[Any], found: ImportStructure) -> None:
    """Write findings so that they appear whole; without room or permission they are searched for again next time."""
    try:
        structure = [
            [sorted(backends), {module: sorted(names) for module, names in modules.items()}]
            for backends, modules in found.items()
        ]
        content = json.dumps({"stamp": stamp, "structure": structure})
    except (TypeError, AttributeError):  # another version of transformers has another form: nothing is kept of it
        return
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
