"""transformers as a user without Luthier would run it: a merged folder, or an adapter over its base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation
from luthier.core.errors import RequestError, TemplateError
from luthier.core.plan import Quantisation
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.ml.export.runtimes.documents import message_documents
from luthier.ml.export.runtimes.protocol import LogProbabilities
from luthier.ml.export.runtimes.transformers_model import TransformersModel
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.merging import PackedFrom

_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


class TransformersTokens:
    """The tokenizer and the chat template of an export as transformers applies them; no weights.

    Args:
        folder: Of the export.
        base_path: Of the base of an adapter, whose tokenizer counts where the adapter brings none.
    """

    def __init__(self, folder: Path, base_path: str | None = None) -> None:
        holder = folder if base_path is None or (folder / "tokenizer.json").is_file() else Path(base_path)
        self._tokenizer = load_tokenizer(holder)
        self.has_template = bool(self._tokenizer.chat_template)
        # As a user would load it: what the adapter's folder lacks comes from the base.
        settings = folder if base_path is None or (folder / "generation_config.json").is_file() else Path(base_path)
        self.end_ids = _end_ids(settings)

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`: what `apply_chat_template` makes of it."""
        text = rendered(self._tokenizer, conversation, options)
        # The template writes its own beginning-of-text token; the tokenizer would add a second.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids


class TransformersRuntime(TransformersTokens):
    """A transformers folder, or a PEFT folder over the folder of its base, behind `Runtime`."""

    name: str = "transformers"
    context_tokens: int | None = None

    def __init__(
        self,
        folder: Path,
        base_path: str | None = None,
        quantisation: Quantisation | None = None,
        packed_from: PackedFrom = "bfloat16",
    ) -> None:
        super().__init__(folder, base_path)
        self.version = version("transformers")
        self._model: TransformersModel | None = (
            TransformersModel(folder)
            if base_path is None
            else TransformersModel(base_path, folder, quantisation, packed_from)
        )

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        return self._open.log_probabilities(ids, start)

    def greedy(self, ids: Sequence[int], num_new_tokens: int) -> list[int]:
        """As `Runtime.greedy`."""
        return self._open.greedy(ids, num_new_tokens, self.end_ids)

    def close(self) -> None:
        """As `Runtime.close`."""
        self._model = None

    @property
    def _open(self) -> TransformersModel:
        if self._model is None:
            raise RequestError("a closed runtime", expected="an open one", do="open it again")
        return self._model


def open_merged(folder: Path, source: ExportSource) -> TransformersRuntime:
    """The merged model in `folder`, loaded; it needs nothing of its source."""
    del source
    return TransformersRuntime(folder)


def open_adapter(folder: Path, source: ExportSource) -> TransformersRuntime:
    """The adapter in `folder`, loaded over the base of its source."""
    return TransformersRuntime(folder, source.base_path, source.quantisation, source.precision)


def rendered(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    options: Mapping[str, TemplateOption] | None = None,
) -> str:
    """The conversation up to where the next answer begins, as transformers writes it on the fixed day of training.

    Raises:
        TemplateError: the template fails on it.
    """
    messages = message_documents(conversation, parsed_arguments=True)
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            **(options or {}),
        )
    except _RENDER_ERRORS as error:
        raise TemplateError(
            f"the export's chat template fails: {str(error) or type(error).__name__}",
            expected="a template that writes every conversation that the source's writes",
            do="export again with the template of the source",
        ) from error
    return str(text)


def _end_ids(folder: Path) -> frozenset[int]:
    """What `generate` ends at: the generation config's end tokens, or without such a file the model's."""
    for name in ("generation_config.json", "config.json"):
        if (file := folder / name).is_file():
            end = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            return frozenset(() if end is None else end if isinstance(end, list) else [end])
    return frozenset()
