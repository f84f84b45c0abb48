"""A transformers model that computes in the type that its weights are stored in, as a user runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import DynamicCache

from luthier.core.plan import Quantisation
from luthier.models.loading import attach_adapter, load_model
from luthier.models.soft_prompt import virtual_tokens
from luthier.models.weights import read_json


def open_stored(
    folder: Path,
    adapter: str | None,
    precision: Literal["float32", "bfloat16"] | None,
    quantisation: Quantisation | None,
) -> Callable[[list[int], int], list[int]]:
    """What writes the likeliest tokens after some, exactly so many. precision: None takes the stored type; float16 is
    computed in float32, since few processors have the one."""
    stored = str(read_json(folder / "config.json").get("dtype") or "float32")
    model: Any = load_model(
        folder,
        dtype=precision or ("bfloat16" if stored == "bfloat16" else "float32"),
        attention="sdpa",
        quantisation=quantisation,
    )
    prompt: list[int] = []
    if adapter is not None:
        adapted = attach_adapter(model, adapter)
        prompt, model = list(virtual_tokens(adapted)), adapted.get_base_model()
    # transformers has renamed the argument, and warns at the old name
    cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.inference_mode()
    def write(ids: list[int], num_new_tokens: int) -> list[int]:
        held: dict[str, Any] = {cache: DynamicCache(config=model.config.get_text_config())}
        tokens, written = torch.tensor([[*prompt, *ids]]), list[int]()
        while len(written) < num_new_tokens:
            logits = model(input_ids=tokens, use_cache=True, logits_to_keep=1, **held).logits
            written.append(int(logits[0, -1].float().argmax()))
            tokens = torch.tensor([written[-1:]])
        return written

    return write
