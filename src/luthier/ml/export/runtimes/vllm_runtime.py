"""vLLM as a runtime: a server over the folder of an export, in vLLM's own environment, asked over HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from luthier.core.conversation import Conversation
from luthier.core.errors import TemplateError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.ml.export.runtimes.protocol import LogProbabilities, message_documents
from luthier.ml.export.runtimes.transformers_runtime import TransformersTokens
from luthier.ml.inference.models.architecture import context_tokens, load_config, text_config
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.structure import read_json
from luthier.ml.inference.models.templates.jinja_sandbox import reads_clock, without_clock
from luthier.ml.inference.vllm.answers import NUM_LISTED, VllmAnswers
from luthier.ml.inference.vllm.process import VllmProcess, vllm_command

_MODEL: Final = "export"
_MAX_CONTEXT_TOKENS: Final = 8192
_START_SECONDS: Final = 1800.0
_TYPES: Final = ("float32", "float16", "bfloat16")


def open_export(folder: Path, source: ExportSource) -> VllmRuntime:
    """Start vLLM over the export in `folder`; it does not need the source."""
    del source
    return VllmRuntime(folder)


class VllmRuntime:
    """The `Runtime` of an export that vLLM runs. Tokens are those of its own tokenizer and template.

    Args:
        folder: of the export.
        command: the vLLM command; None searches for it.

    Raises:
        NotFoundError: vLLM is not installed.
        WorkError: it does not start on this model.
    """

    name: str = "vllm"

    def __init__(self, folder: Path, *, command: Sequence[str] | None = None) -> None:
        config = load_config(folder)
        room = context_tokens(config)
        self.context_tokens: int | None = _MAX_CONTEXT_TOKENS if room > _MAX_CONTEXT_TOKENS else None
        tokens = TransformersTokens(folder)
        self.has_template = tokens.has_template
        # vLLM ends at the end token of the tokenizer as well.
        own = load_tokenizer(folder)
        self.end_ids = tokens.end_ids | ({own.eos_token_id} if own.eos_token_id is not None else set())
        text = str(own.chat_template or "") if not isinstance(own.chat_template, dict) else ""
        # The date of training instead of today's, which vLLM would write.
        self._template = without_clock(text) if reads_clock(text) else None
        arguments = [
            str(folder), "--served-model-name", _MODEL, "--dtype", _dtype(folder), "--max-logprobs", str(NUM_LISTED),
            "--max-model-len", str(min(room, _MAX_CONTEXT_TOKENS)), "--trust-request-chat-template",
        ]  # fmt: skip
        self._process = VllmProcess(command or vllm_command(os.environ), arguments)
        self._http = self._process.make_client(timeout_seconds=300.0)
        try:
            self._process.start()
            self._process.wait(SilentProgress(), _START_SECONDS)
            self.version = str(self._document("GET", "version", None)["version"])
            vocabulary = int(text_config(config).vocab_size)
            self._answers = VllmAnswers(lambda body: self._document("POST", "v1/completions", body), _MODEL, vocabulary)
        except BaseException:
            self.close()
            raise

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`: rendered by vLLM.

        Raises:
            TemplateError: the template fails on it.
        """
        body: dict[str, Any] = {
            "messages": message_documents(conversation, parsed_arguments=False),
            "add_generation_prompt": True,
            "add_special_tokens": False,
            "chat_template_kwargs": dict(options or {}),
        }
        if conversation.tools:
            body["tools"] = list(conversation.tools)
        if self._template is not None:
            body["chat_template"] = self._template
        try:
            return self._tokens(body)
        except WorkError as error:
            raise TemplateError(
                f"vLLM cannot write a prompt: {error.came}",
                expected="a chat template that it follows",
                do="export to another format, or repair the chat template of the base model",
            ) from error

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        return self._tokens({"prompt": text, "add_special_tokens": True})

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`; tokens that vLLM does not list have the least that it lists."""
        return self._answers.log_probabilities(ids, start, at_once=True)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`: it ends where vLLM does by the files of the export."""
        return self._answers.greedy(ids, num_new_tokens, self.end_ids, sends_ends=False)

    def close(self) -> None:
        """As `Runtime.close`: vLLM ends."""
        self._http.close()
        self._process.close()

    def _tokens(self, body: dict[str, Any]) -> list[int]:
        return [int(token) for token in self._document("POST", "tokenize", {"model": _MODEL, **body})["tokens"]]

    def _document(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The answer of vLLM. Raises WorkError where there is none, with the end of its log where it has ended."""
        try:
            response = self._http.request(method, f"{self._process.url}/{path}", json=body)
        except httpx2.HTTPError as error:
            if self._process.ends_soon():
                raise self._process.ended("in the middle of a proof") from error
            raise WorkError(
                f"vLLM does not answer: {type(error).__name__}: {error}", expected="an answer", do="try again"
            ) from error
        try:
            document: dict[str, Any] = response.json()
        except ValueError:
            document = {}
        if response.status_code != httpx2.codes.OK or not document:
            raise WorkError(
                f"vLLM answers {path} with HTTP {response.status_code}: {response.text[:300]}",
                expected="a JSON document",
                do="see what it says, or install another version of vLLM",
            )
        return document


def _dtype(folder: Path) -> str:
    """The type that vLLM computes in: that of the files, which `auto` would not take for float32."""
    config = read_json(folder / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    return stored if stored in _TYPES else "auto"
