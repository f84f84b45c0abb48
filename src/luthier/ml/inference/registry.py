"""Which engines there are. A table of "module:Class" strings names them, built-ins and plug-ins alike.

Entry points in the group `luthier.engines` add to it.
"""

from __future__ import annotations

from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError
from luthier.core.import_string import import_string
from luthier.core.ports import Engine

BUILT_IN = {
    "transformers": "luthier.ml.inference.transformers_engine:TransformersEngine",
    "llama_cpp": "luthier.ml.inference.llama_cpp.cpp:LlamaCppEngine",
    "openai_http": "luthier.ml.inference.openai.http:OpenAIHttpEngine",
    "fake": "luthier.ml.inference.fake:FakeEngine",
}


def engine_names() -> list[str]:
    """The names that `load_engine_class` knows, sorted."""
    return sorted(_table())


def load_engine_class(name: str) -> type[Engine]:
    """The class of the engine called `name`; nothing is imported before it is requested.

    Raises:
        NotFoundError: no table knows the name.
    """
    table = _table()
    if name not in table:
        raise NotFoundError(
            f"engine {name!r}",
            expected=f"one of {', '.join(sorted(table))}",
            do="correct the name, or install the package that brings this engine (entry point group luthier.engines)",
        )
    found: type[Engine] = import_string(table[name])
    return found


def _table() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="luthier.engines")} | BUILT_IN
