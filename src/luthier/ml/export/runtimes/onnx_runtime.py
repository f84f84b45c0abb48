"""ONNX Runtime GenAI: its own tokenizer, template engine and generator over a folder with a `genai_config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.conversation import Conversation
from luthier.core.errors import ModelSourceError, NotFoundError, TemplateError
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.core.system.extras import missing_extra
from luthier.ml.export.runtimes.protocol import LogProbabilities, log_softmax, message_documents
from luthier.ml.inference.models.templates.jinja_sandbox import reads_clock, without_clock


def open_export(folder: Path, source: ExportSource) -> OnnxRuntime:
    """Load the export in `folder`; it does not need the source."""
    del source
    return OnnxRuntime(folder)


class OnnxRuntime:
    """The `Runtime` of an ONNX Runtime GenAI export.

    Raises:
        RequestError: the package is missing.
        NotFoundError: the folder is not such an export.
        ModelSourceError: it does not load.
    """

    name: str = "onnxruntime-genai"
    context_tokens: int | None = None

    def __init__(self, folder: Path) -> None:
        self._package = _package()
        self.version = version("onnxruntime-genai")
        file = folder / "genai_config.json"
        if not file.is_file():
            raise NotFoundError(
                f"{folder} has no genai_config.json",
                expected="a folder that `luthier export --to onnx` has made",
                do="export it first, or correct the path",
            )
        try:
            ends = json.loads(file.read_text(encoding="utf-8"))["model"]["eos_token_id"]
            self._model: Any = self._package.Model(str(folder))
            self._tokenizer: Any = self._package.Tokenizer(self._model)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelSourceError(
                f"ONNX Runtime GenAI cannot load {folder}: {error}",
                expected="a complete export, and enough memory",
                do="export it again",
            ) from error
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        self._template = _template_of(folder)
        self.has_template = bool(self._template)

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`: rendered by the runtime's own engine with the fixed day, without options.

        Raises:
            TemplateError: the template engine fails on it.
        """
        del options
        messages = json.dumps(message_documents(conversation, parsed_arguments=True), ensure_ascii=False)
        given = {"tools": json.dumps(conversation.tools, ensure_ascii=False)} if conversation.tools else {}
        if reads_clock(self._template):
            # Instead of the file's own template, which would write today's date.
            given["template_str"] = without_clock(self._template)
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, **given)
        except RuntimeError as error:
            raise TemplateError(
                f"the template engine of ONNX Runtime GenAI fails: {error}",
                expected="a template that it can follow",
                do="export to another format, or simplify the template",
            ) from error
        return self.text_tokens(text)

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        generator = self._after(ids, 1)
        # [1, tokens, vocabulary] of the pass over the prompt.
        logits = generator.get_output("logits")[0, start:]
        return log_softmax(np.array(logits, dtype=np.float32))

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        generator = self._after(ids, num_new_tokens)
        written: list[int] = []
        while not generator.is_done() and len(written) < num_new_tokens:
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in self.end_ids:
                break
            written.append(token)
        return written

    def close(self) -> None:
        """As `Runtime.close`."""
        self._tokenizer = self._model = None

    def _after(self, ids: Sequence[int], num_new_tokens: int) -> Any:
        """A greedy generator that has processed `ids`."""
        params = self._package.GeneratorParams(self._model)
        # The limit covers prompt and answer together.
        params.set_search_options(do_sample=False, max_length=len(ids) + num_new_tokens, batch_size=1, num_beams=1)
        generator = self._package.Generator(self._model, params)
        try:
            generator.append_tokens(np.asarray([ids], dtype=np.int32))
        except RuntimeError as error:
            raise ModelSourceError(
                f"ONNX Runtime GenAI fails on {len(ids)} tokens: {error}",
                expected="a model that its kernels can run",
                do="export this model to another format",
            ) from error
        return generator


def _package() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise missing_extra("onnx", "running this export", "onnxruntime-genai") from error
    return onnxruntime_genai


def _template_of(folder: Path) -> str:
    """The text of the export's chat template; empty without one."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return str(known.get("chat_template") or "")
