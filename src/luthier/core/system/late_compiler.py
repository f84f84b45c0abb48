"""torch's compiler, loaded where something is compiled.

torch._dynamo and what it loads take half as long as torch itself. Most processes compile nothing and load it all the
same: each optimizer and some modules of transformers mark functions that it is to leave alone. Until more is asked of
it, `LateCompiler` is in its place: it keeps these marks, and hands them on when the compiler is loaded.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import FunctionType, ModuleType
from typing import Any, Final

NAME: Final = "torch._dynamo"


class _Left:
    """A function that the compiler leaves alone: called as it is until the compiler is loaded."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self.function, self.options, self.target = function, options, function


class _Compiled:
    """In the place of the class of compiled modules."""


class _EvalFrame:
    """In the place of `torch._dynamo.eval_frame`, which libraries ask for the class of compiled modules."""

    OptimizedModule = _Compiled

    def __init__(self, compiler: LateCompiler) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._compiler.load().eval_frame, name)


class LateCompiler(ModuleType):
    """What `torch._dynamo` is until it is loaded.

    Attributes:
        when_loaded: Called once it is.
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        # What looks for a module by its name takes it for installed.
        self.__spec__ = PathFinder.find_spec(NAME, sys.modules[NAME.partition(".")[0]].__path__)
        self._loading = threading.RLock()
        self._loaded: ModuleType | None = None
        self._left = list[_Left]()
        self._allowed = list[Callable[..., Any]]()
        self.when_loaded = list[Callable[[], None]]()

    def disable(
        self, fn: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True
    ) -> Any:
        """As torch's: the function, which is not compiled."""
        if fn is None and self._loaded is None:
            return functools.partial(self.disable, recursive=recursive, reason=reason, wrapping=wrapping)
        options = {"recursive": recursive, "reason": reason, "wrapping": wrapping}
        if self._loaded is not None or not isinstance(fn, FunctionType):
            return self.load().disable(fn, **options)
        left = _Left(fn, options)
        self._left.append(left)

        def run(*given: Any, **_named: Any) -> Any:
            return left.target(*given, **_named)

        return functools.wraps(fn)(run) if wrapping else run

    def allow_in_graph(self, fn: Any) -> Any:
        """As torch's: the function, which is compiled as one operation."""
        if self._loaded is not None or not isinstance(fn, FunctionType):
            return self.load().allow_in_graph(fn)
        self._allowed.append(fn)
        return fn

    def assume_constant_result(self, fn: Any) -> Any:
        """As torch's, which is a mark on the function."""
        fn._dynamo_marked_constant = True
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Nothing, where nothing is compiled."""
        if self._loaded is not None:
            self._loaded.graph_break(msg)

    @property
    def eval_frame(self) -> Any:
        """Where the class of compiled modules is, which no module has before it is loaded."""
        return _EvalFrame(self) if self._loaded is None else self._loaded.eval_frame

    def __getattr__(self, name: str) -> Any:
        # What is asked of every module, such as its file, is no reason to load it; its submodules are.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """The compiler, loaded."""
        with self._loading:
            if self._loaded is None:
                if sys.modules.get(NAME) is self:
                    del sys.modules[NAME]
                # Set before: while it is loaded, other modules of torch may ask this one.
                self._loaded = real = importlib.import_module(NAME)
                for function in self._allowed:
                    real.allow_in_graph(function)
                for left in self._left:
                    left.target = real.disable(left.function, **left.options)
                for callback in self.when_loaded:
                    callback()
            return self._loaded


def install(when_loaded: Callable[[], None]) -> None:
    """Put a `LateCompiler` in the place of torch's compiler, unless that is loaded.

    Args:
        when_loaded: Called once it is loaded.
    """
    current = sys.modules.setdefault(NAME, LateCompiler())
    if isinstance(current, LateCompiler) and when_loaded not in current.when_loaded:
        current.when_loaded.append(when_loaded)
