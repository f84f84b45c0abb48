"""A causal language model in transformers, asked for whole rows of likelihoods and for greedy text.

It computes in float32, whatever the stored precision of its weights. A proof is about what a file holds; how far
bfloat16 arithmetic moves a result is the same for source and export, and would hide what rounding or a wrong merge has
changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from luthier.core.plan import Quantisation
from luthier.ml.export.runtimes.protocol import LogProbabilities
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.decoding_proof import text_part
from luthier.ml.inference.models.architecture import context_tokens
from luthier.ml.inference.models.forward_arguments import accepted
from luthier.ml.inference.models.loading import attach_adapter
from luthier.ml.inference.models.merging import PackedFrom, wide_model
from luthier.ml.inference.models.soft_prompt import virtual_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TransformersModel:
    """A folder's model in float32 on the CPU, an adapter over it unmerged.

    Args:
        model_path: folder of the model.
        adapter_path: folder of a PEFT adapter; None for the model alone.
        quantisation: how the base was packed in training; its matrices are used as they were rounded then.
        packed_from: the precision in which training read the base before it packed it.

    Raises:
        NotFoundError, ModelSourceError: a folder is missing or damaged.
    """

    def __init__(
        self,
        model_path: str | Path,
        adapter_path: str | Path | None = None,
        quantisation: Quantisation | None = None,
        packed_from: PackedFrom = "bfloat16",
    ) -> None:
        model: PreTrainedModel | PeftModel = wide_model(model_path, quantisation, packed_from)
        self._adapted: PeftModel | None = attach_adapter(model, adapter_path) if adapter_path is not None else None
        model = self._adapted if self._adapted is not None else model
        self._prompt = virtual_tokens(model)
        self._causal: PreTrainedModel = model.get_base_model() if self._adapted is not None else model
        # what gives logits for text, by a path over its cache that is proved when text is first written
        self._writer: PreTrainedModel = text_part(self._causal)
        self.context_tokens = context_tokens(self._causal.config) - len(self._prompt)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        # [1, prompt + ids]; of the trained prompt's own positions no logits are wanted.
        tokens, num = torch.tensor([[*self._prompt, *ids]]), len(ids) - start
        arguments = accepted(self._writer, {"use_cache": False, "logits_to_keep": num})
        # Cut again: not every model takes `logits_to_keep`.
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
    def without_adapter(self) -> Iterator[None]:
        """Inside this block the model is its base alone."""
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
