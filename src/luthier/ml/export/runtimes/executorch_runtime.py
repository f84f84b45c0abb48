"""ExecuTorch: its own runtime over a program with XNNPACK, and the tokenizer of its runner.

ExecuTorch has no template engine: an app writes the prompt itself, from the template next to the program. So the
template is rendered here as in transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core.conversation import Conversation
from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.system.extras import missing_extra
from luthier.ml.export.runtimes.protocol import LogProbabilities, log_softmax
from luthier.ml.export.runtimes.transformers_runtime import rendered
from luthier.ml.inference.models.loading import load_tokenizer


def open_export(folder: Path, source: ExportSource) -> ExecutorchRuntime:
    """Load the export in `folder`; it does not need the source."""
    del source
    return ExecutorchRuntime(folder)


class ExecutorchRuntime:
    """The `Runtime` of a folder with `model.pte` and `tokenizer.json`.

    Raises:
        RequestError: the package is missing.
        NotFoundError: a file is missing.
        ModelSourceError: a file does not load.
    """

    name: str = "executorch"

    def __init__(self, folder: Path) -> None:
        file = folder / "model.pte"
        if not file.is_file():
            raise NotFoundError(
                f"{folder} has no model.pte",
                expected="a folder that `luthier export --to executorch` has made",
                do="export it first, or correct the path",
            )
        with _quiet():
            runtime, tokenizers = _packages()
            self.version = version("executorch")
            try:
                self._program: Any = runtime.Runtime.get().load_program(file)
                self._forward: Any = self._program.load_method("forward")
                self.end_ids = frozenset(int(token) for token in self._fact("get_eos_ids"))
                self.context_tokens: int | None = int(self._fact("get_max_seq_len")[0])
                self._tokenizer: Any = tokenizers.CppHFTokenizer()
                self._tokenizer.load(str(folder / "tokenizer.json"))
            except (RuntimeError, ValueError) as error:
                raise ModelSourceError(
                    f"ExecuTorch cannot load {file}: {error}",
                    expected="a complete program for this version of ExecuTorch",
                    do="export it again",
                ) from error
        self._writer = load_tokenizer(folder)
        self.has_template = bool(self._writer.chat_template)

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`."""
        return self.text_tokens(rendered(self._writer, conversation, options))

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        # A copy: `log_softmax` works in place, and the runtime owns the outputs.
        return log_softmax(np.array(self._logits(ids, 0)[0, start:].numpy(), dtype=np.float32))

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        read, past, written = list(ids), 0, list[int]()
        while len(written) < num_new_tokens:
            token = int(self._logits(read, past)[0, -1].argmax())
            if token in self.end_ids:
                break
            written.append(token)
            # The cache holds the prompt: one token per step from here on.
            read, past = [token], past + len(read)
        return written

    def close(self) -> None:
        """As `Runtime.close`."""
        self._forward = self._program = None

    def _logits(self, ids: Sequence[int], past: int) -> torch.Tensor:
        """Logits [1, len(ids), vocabulary] of tokens after `past` others."""
        # `cache_position` from 0 overwrites the cache of the previous call: no reset is needed.
        tokens, places = torch.tensor([list(ids)]), torch.arange(past, past + len(ids))
        logits: torch.Tensor = self._forward.execute([tokens, places])[0]
        return logits

    def _fact(self, name: str) -> list[Any]:
        found: list[Any] = self._program.load_method(name).execute([])
        return found


def _packages() -> tuple[Any, Any]:
    try:
        import pytorch_tokenizers
        from executorch import runtime
    except ImportError as error:
        raise missing_extra("executorch", "running this export", "executorch") from error
    return runtime, pytorch_tokenizers


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about internals of the packages, for which there is no remedy, inside this block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
