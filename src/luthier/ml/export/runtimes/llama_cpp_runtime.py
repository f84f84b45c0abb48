"""llama.cpp: tokenizer and template engine of its server, logits of its library, over one GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from luthier.core.conversation import Conversation
from luthier.core.errors import RequestError, TemplateError
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.stream import TextRequest
from luthier.core.system.process_setup import usable_threads
from luthier.ml.export.runtimes.protocol import LogProbabilities, log_softmax
from luthier.ml.inference.llama_cpp.library import LlamaLibrary
from luthier.ml.inference.llama_cpp.prompts import FileReader, dayless_template
from luthier.ml.inference.llama_cpp.server import LlamaServer, only_gguf
from luthier.ml.inference.models.gguf.files import read_gguf_header


def open_export(folder: Path, source: ExportSource, adapter: Path | None = None) -> LlamaCppRuntime:
    """Load the export in `folder`, with a GGUF adapter over it if given; it does not need the source."""
    del source
    return LlamaCppRuntime(folder, adapter)


class LlamaCppRuntime:
    """The `Runtime` of a GGUF file, or a folder with one, and a GGUF adapter over it if given.

    Files next to it are not read: tokens come from the file, with the fixed day of training if its template writes the
    date. Keys and values are kept in float32, so that the comparison is about the content of the file.

    Raises:
        RequestError: a package is missing.
        NotFoundError: a file is missing.
        ModelSourceError, WorkError: a file is damaged, or does not load.
    """

    name: str = "llama.cpp"

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        file, num_threads = only_gguf(path, "model"), usable_threads()
        header = read_gguf_header(file)
        self.context_tokens: int | None = header.number("context_length", 0) or None
        self.has_template = bool(header.values.get("tokenizer.chat_template"))
        self._server = LlamaServer(
            # The smallest context: the server only renders and tokenises, and the library computes.
            file,
            [],
            num_slots=1,
            pool_tokens=256,
            num_threads=num_threads,
            chat_template=dayless_template(header),
        )
        try:
            # prompts are only rendered and tokenised here; their length was checked before
            self._reader = FileReader(header, self._server, context_tokens=sys.maxsize, keeps_defaults=False)
            self._library = LlamaLibrary(file, adapter, num_threads=num_threads, is_wide=True)
        except BaseException:
            self._server.close()
            raise
        self.end_ids = self._library.end_ids
        self.version = ", ".join(f"{name} {version(name)}" for name in ("xllamacpp", "llama-cpp-py-sync"))

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`: rendered by llama.cpp's own engine.

        Raises:
            TemplateError: the template fails on it.
        """
        try:
            return self._reader.ids(TextRequest(conversation=conversation, trained_options=dict(options or {})))
        except TemplateError:
            raise
        except RequestError as error:
            raise TemplateError(error.came, expected=error.expected, do=error.do) from error

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        return self._reader.ids(TextRequest(text=text))

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        # Copied row by row: the library overwrites its logits with each batch.
        rows = np.empty((len(ids) - start, self._library.vocabulary), dtype=np.float32)
        for place, row in self._library.logits(ids, [place >= start for place in range(len(ids))]):
            rows[place - start] = row
        return log_softmax(rows)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        # The full context from the start: growing later would discard the prompt.
        self._library.make_room(len(ids) + num_new_tokens)
        read, past, written = list(ids), 0, list[int]()
        while len(written) < num_new_tokens:
            wanted = [False] * (len(read) - 1) + [True]
            (token,) = (int(row.argmax()) for _, row in self._library.logits(read, wanted, past=past))
            if token in self.end_ids:
                break
            written.append(token)
            read, past = [token], past + len(read)
        return written

    def close(self) -> None:
        """As `Runtime.close`."""
        self._server.close()
        self._library.close()
