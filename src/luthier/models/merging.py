"""An adapter worked into its base: one model that needs no adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from luthier.core.errors import RequestError
from luthier.models.loading import attach_adapter, load_model
from luthier.models.quiet import quiet_peft

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def merged_model(
    base_path: str | Path, adapter_path: str | Path, *, dtype: Literal["float32", "bfloat16"]
) -> PreTrainedModel:
    """The base with the adapter's update in its weights, in eval mode on the CPU.

    Merged in float32 and rounded once, whatever `dtype` is: in bfloat16 an update smaller than 1/256 of a weight would
    be lost in the sum. Raises RequestError for a trained prompt, which no weight can hold, and what `load_model` and
    `attach_adapter` raise.
    """
    adapted = attach_adapter(load_model(base_path, dtype="float32", attention="sdpa"), adapter_path)
    if adapted.active_peft_config.is_prompt_learning:
        raise RequestError(
            f"{adapter_path} holds a trained prompt",
            expected="an adapter that changes matrices",
            do="serve the prompt beside its base: it cannot be merged",
        )
    with quiet_peft():
        merged: PreTrainedModel = adapted.merge_and_unload().to(_DTYPES[dtype])
    return merged.eval()
