"""A causal language model in transformers, asked for whole rows of likelihoods and for greedy text.

It computes in float32 whatever its weights are stored in. A proof is about what a file holds; how far bfloat16
arithmetic moves a result is the same for source and export, and would hide what rounding or a wrong merge has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from luthier.core.plan import Quantisation
from luthier.deploy.runtimes.protocol import LogProbabilities
from luthier.models.loading import attach_adapter
from luthier.models.merging import wide_model
from luthier.models.soft_prompt import virtual_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TransformersModel:
    """A folder's model in float32 on the CPU, an adapter over it unmerged. quantisation: how it was packed then.

    Raises what `load_model` and `attach_adapter` raise: NotFoundError, ModelSourceError.
    """

    def __init__(
        self,
        model_path: str | Path,
        adapter_path: str | Path | None = None,
        quantisation: Quantisation | None = None,
    ) -> None:
        model: PreTrainedModel | PeftModel = wide_model(model_path, quantisation)
        self._adapted: PeftModel | None = attach_adapter(model, adapter_path) if adapter_path is not None else None
        model = self._adapted if self._adapted is not None else model
        self._prompt = virtual_tokens(model)
        self._causal: PreTrainedModel = model.get_base_model() if self._adapted is not None else model
        self.context_tokens = int(self._causal.config.get_text_config().max_position_embeddings) - len(self._prompt)

    @torch.inference_mode()
    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> LogProbabilities:
        """As `Runtime.log_probabilities`."""
        tokens = torch.tensor([[*self._prompt, *ids]])
        logits = self._causal(input_ids=tokens, use_cache=False, logits_to_keep=len(ids) - start).logits[0]
        rows: LogProbabilities = torch.log_softmax(logits.float(), dim=-1).numpy()
        return rows

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], num_new_tokens: int, end_ids: frozenset[int]) -> list[int]:
        """As `Runtime.greedy`."""
        tokens = torch.tensor([[*self._prompt, *ids]])
        written: list[int] = []
        # transformers has renamed the argument, and warns at the old name.
        name = "cache" if "cache" in inspect.signature(self._causal.forward).parameters else "past_key_values"
        cache: dict[str, Any] = {name: DynamicCache(config=self._causal.config.get_text_config())}
        while len(written) < num_new_tokens:
            logits = self._causal(input_ids=tokens, use_cache=True, logits_to_keep=1, **cache).logits
            token = int(logits[0, -1].float().argmax())
            if token in end_ids:
                break
            written.append(token)
            tokens = torch.tensor([[token]])
        return written

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside this block the model is its base alone."""
        if self._adapted is None:
            yield
            return
        prompt, self._prompt = self._prompt, ()
        try:
            with self._adapted.disable_adapter():
                yield
        finally:
            self._prompt = prompt
