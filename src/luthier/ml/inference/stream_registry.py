"""The registry of streaming engines: a table of "module:function" strings.

Each function opens the model of a `Served`: `opener(served: Served) -> StreamEngine`, without its adapter, which is
loaded by `load_adapter`. Entry points in the group `luthier.stream_engines` add to the table.
"""

from __future__ import annotations

from collections.abc import Callable

from luthier.core.errors import NotFoundError
from luthier.core.import_string import import_string
from luthier.core.ports import StreamEngine
from luthier.core.registry import entry_points
from luthier.core.stream import EngineSettings, Served

BUILT_IN = {
    "transformers": "luthier.ml.inference.streaming:open_stream_engine",
    "llama_cpp": "luthier.ml.inference.llama_cpp.cpp:open_stream_engine",
    "openai_http": "luthier.ml.inference.openai.stream:open_stream_engine",
    "vllm": "luthier.ml.inference.vllm.engine:open_stream_engine",
}

_USED_SETTINGS = {
    "transformers": {"enable_prefix_caching", "max_num_seqs"},
    "llama_cpp": set(EngineSettings.model_fields),
    "vllm": set(EngineSettings.model_fields),
}


def unused_settings(engine: str, settings: EngineSettings) -> list[str]:
    """The settings that are set and that this engine does not use, by name; of an engine of a plug-in all of them."""
    used = _USED_SETTINGS.get(engine, set())
    return sorted(name for name in settings.model_dump(exclude_none=True) if name not in used)


def open_stream_engine(served: Served) -> StreamEngine:
    """Load the base that `served` names, without its adapter if `load_adapter` can load that.

    Raises:
        NotFoundError: no table knows the engine, or the model is not there.
        RequestError, WorkError: raised by the engine's opener.
    """
    table = _table()
    if served.engine not in table:
        raise NotFoundError(
            f"engine {served.engine!r}",
            expected=f"one of {', '.join(sorted(table))}",
            do="correct the name, or install the package that provides this engine "
            "(entry point group luthier.stream_engines)",
        )
    opener: Callable[[Served], StreamEngine] = import_string(table[served.engine])
    return opener(served)


def _table() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="luthier.stream_engines")} | BUILT_IN
