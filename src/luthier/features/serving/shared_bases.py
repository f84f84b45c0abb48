"""Which engine answers for a model, and which of its adapters share one base in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.stream import Served

if TYPE_CHECKING:
    from luthier.core.ports import StreamEngine
    from luthier.features.models.resolve import Precision

_WEIGHTS: Final = (".safetensors", ".gguf")


def split(served: Served, precision: Callable[[], Precision]) -> tuple[Served, str | None]:
    """What is opened as an engine, and the folder of the adapter that is loaded over it.

    What a model leaves open (its precision, its template) is settled here, so that a base that is asked by itself and
    one that is asked with an adapter are the same. An adapter that cannot share its base is a part of what is opened.
    precision: the one that this machine is fastest in, asked for where a model says none.

    Raises ModelSourceError for an adapter that cannot be read.
    """
    # llama.cpp and vLLM load every adapter over a shared base by themselves.
    if served.engine != "transformers":
        return served.model_copy(update={"adapter_path": None}), served.adapter_path
    settled = served.model_copy(
        update={"precision": served.precision or precision(), "template": _template(served.path, served.template)}
    )
    if served.adapter_path is None:
        return settled, None
    from luthier.ml.inference.low_rank import why_not_shared

    if why_not_shared(served.adapter_path):
        return settled, None
    return settled.model_copy(update={"adapter_path": None}), served.adapter_path


def open_engine(served: Served) -> StreamEngine:
    """The engine of a model, loaded. A LuthierError says why a model cannot be."""
    from luthier.ml.inference.stream_registry import open_stream_engine

    return open_stream_engine(served)


def weight_bytes(path: str | None) -> int:
    """What the weights in a file or folder will take, by the size of the files; 0 for what is not on this machine."""
    place = Path(path or "")
    if path is None or not place.exists():
        return 0
    files = [place] if place.is_file() else [one for one in place.iterdir() if one.suffix in _WEIGHTS]
    return sum(one.stat().st_size for one in files)


def default_memory_bytes() -> int:
    """Half of the memory of this machine, or of its container: the rest is for answers, and for training."""
    from luthier.ml.planning import hardware

    return hardware.memory_bytes()[0] // 2


def _template(path: str, asked: Literal["auto", "chat", "plain"]) -> Literal["auto", "chat", "plain"]:
    """`auto` as the kind that it comes to."""
    if asked != "auto":
        return asked
    folder = Path(path)
    if (folder / "chat_template.jinja").is_file():
        return "chat"
    config = folder / "tokenizer_config.json"
    try:
        has_own = config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:  # the engine will say what is wrong with it
        return "auto"
    return "chat" if has_own else "plain"
