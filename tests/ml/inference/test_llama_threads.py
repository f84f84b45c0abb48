"""When llama.cpp's server is opened again for another number of threads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.core.system import free_cores
from luthier.core.system.free_cores import FreeCores
from luthier.ml.inference.llama_cpp import cpp
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.testing.stream_contract import Heard, listen, question, write_all


class OneThread(LlamaServer):
    """A server that says how many threads it was given, and takes one."""

    def __init__(self, *given: Any, num_threads: int, **named: Any) -> None:
        super().__init__(*given, num_threads=1, **named)
        self.num_threads = num_threads


def test_one_more_thread_of_many_is_not_worth_another_server(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "usable_threads", lambda: 8)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 8)
    monkeypatch.setattr(cpp, "FreeCores", lambda num, **_: FreeCores(num, is_sampled=False))
    monkeypatch.setattr(cpp, "LlamaServer", OneThread)
    with closing(LlamaCppEngine(tiny_gguf, cache="float32")) as engine:
        assert engine._server is not None
        seen = [engine._server.num_threads]
        for others, num_samples in ((1.0, 2), (0.0, 10), (3.0, 2), (0.0, 10)):
            for _ in range(num_samples):
                engine._cores.note(others)
            write_all(engine, {len(seen): question("Why?", max_new_tokens=2)})
            seen.append(engine._server.num_threads)
            # An answer that has ended holds its slot until llama.cpp's last token of it.
            listen(engine, Heard(), lambda: engine._writing.is_idle)
    # The eighth thread does not come back to seven, three come back to five.
    assert seen == [8, 7, 7, 5, 8]
