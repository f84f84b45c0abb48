"""transformers as a runtime: a merged folder, or an adapter over its base, as users without Luthier run it.

The model computes in float32, regardless of the stored precision of its weights. A check is about the content of a
file. The error of bfloat16 arithmetic is the same for source and export, and would hide changes by rounding or a wrong
merge.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jinja2
import torch
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation
from luthier.core.errors import RequestError, TemplateError
from luthier.core.plan import Quantisation
from luthier.core.recipe import TemplateOption
from luthier.core.records.export import ExportSource
from luthier.ml.export.runtimes.protocol import LogProbabilities, message_documents
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.decoding_proof import text_part
from luthier.ml.inference.models.architecture import context_tokens
from luthier.ml.inference.models.forward import accepted
from luthier.ml.inference.models.loading import attach_adapter, load_tokenizer
from luthier.ml.inference.models.merging import PackedFrom, merge, round_weights, virtual_tokens, wide_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TransformersModel:
    """The model of a folder in float32 on the CPU, with an unmerged adapter over it.

    Args:
        model_path: folder of the model.
        adapter_path: folder of a PEFT adapter; None for the model alone.
        quantisation: the packing of the base in training; its matrices are used as rounded then.
        packed_from: the precision in which training read the base before packing it.
        rounded_to: merge the adapter and round all weights to this type, as an export in 16 bits does; None does not.

    Raises:
        NotFoundError, ModelSourceError: a folder is missing or damaged.
        RequestError: a weight overflows float16, for `rounded_to`.
    """

    def __init__(
        self,
        model_path: str | Path,
        adapter_path: str | Path | None = None,
        quantisation: Quantisation | None = None,
        packed_from: PackedFrom = "bfloat16",
        rounded_to: Literal["bfloat16", "float16"] | None = None,
    ) -> None:
        model: PreTrainedModel | PeftModel = wide_model(model_path, quantisation, packed_from)
        self._adapted: PeftModel | None = attach_adapter(model, adapter_path) if adapter_path is not None else None
        model = self._adapted if self._adapted is not None else model
        if rounded_to is not None:
            if self._adapted is not None and not self._adapted.active_peft_config.is_prompt_learning:
                model, self._adapted = merge(self._adapted), None
            round_weights(model, rounded_to)
        self._prompt = virtual_tokens(model)
        self._causal: PreTrainedModel = model.get_base_model() if self._adapted is not None else model
        # the model that gives logits for text; its cached path is checked when text is first generated
        self._writer: PreTrainedModel = text_part(self._causal)
        self.context_tokens = context_tokens(self._causal.config) - len(self._prompt)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        # [1, prompt + ids]; logits of the trained prompt's own positions are not needed.
        tokens, num = torch.tensor([[*self._prompt, *ids]]), len(ids) - start
        arguments = accepted(self._writer, {"use_cache": False, "logits_to_keep": num})
        # Cut again: not every model supports `logits_to_keep`.
        logits = self._writer(input_ids=tokens, **arguments).logits[0, -num:]
        rows: LogProbabilities = torch.log_softmax(logits.float(), dim=-1).numpy()
        return rows

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], num_new_tokens: int, end_ids: frozenset[int]) -> list[int]:
        """As `Runtime.greedy`."""
        if num_new_tokens < 1:
            return []
        decoder = Decoder(self._causal, end_ids=sorted(end_ids), pad_id=0, may_diverge=True)
        return decoder.run([Request([*self._prompt, *ids], num_new_tokens)], None, lambda _: None)[0].ids

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Inside this block the weights are rounded to float16, as a file in 16 bits would hold them."""
        kept = [(weight, weight.detach().clone()) for weight in self._causal.parameters()]
        try:
            round_weights(self._causal, "float16")
            yield
        finally:
            for weight, before in kept:
                weight.data.copy_(before)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside this block the model is only its base."""
        if self._adapted is None:
            yield
            return
        # A trained prompt is part of the adapter.
        prompt, self._prompt = self._prompt, ()
        try:
            with self._adapted.disable_adapter():
                yield
        finally:
            self._prompt = prompt


_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


class TransformersTokens:
    """The tokenizer and the chat template of an export as transformers applies them, without weights.

    Args:
        folder: Folder of the export.
        base_path: Folder of an adapter's base, whose tokenizer is used if the adapter has none.
    """

    def __init__(self, folder: Path, base_path: str | None = None) -> None:
        holder = folder if base_path is None or (folder / "tokenizer.json").is_file() else Path(base_path)
        self._tokenizer = load_tokenizer(holder)
        self.has_template = bool(self._tokenizer.chat_template)
        # As users load it: files missing in the adapter's folder come from the base.
        settings = folder if base_path is None or (folder / "generation_config.json").is_file() else Path(base_path)
        self.end_ids = _end_ids(settings)

    def prompt_tokens(
        self, conversation: Conversation, options: Mapping[str, TemplateOption] | None = None
    ) -> list[int]:
        """As `Runtime.prompt_tokens`: the result of `apply_chat_template`."""
        text = rendered(self._tokenizer, conversation, options)
        # The template writes the beginning-of-text token; the tokenizer would add a second one.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def text_tokens(self, text: str) -> list[int]:
        """As `Runtime.text_tokens`."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids


class TransformersRuntime(TransformersTokens):
    """The `Runtime` of a transformers folder, or a PEFT folder over the folder of its base."""

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
    """Load the merged model in `folder`; it does not need the source."""
    del source
    return TransformersRuntime(folder)


def open_adapter(folder: Path, source: ExportSource) -> TransformersRuntime:
    """Load the adapter in `folder` over the base of its source."""
    return TransformersRuntime(folder, source.base_path, source.quantisation, source.precision)


def rendered(
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    options: Mapping[str, TemplateOption] | None = None,
) -> str:
    """The conversation up to the start of the next answer, as transformers writes it with the fixed day of training.

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
    """The end tokens of `generate`: those of the generation config, or without such a file of the model."""
    for name in ("generation_config.json", "config.json"):
        if (file := folder / name).is_file():
            end = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            return frozenset(() if end is None else end if isinstance(end, list) else [end])
    return frozenset()
