"""A transformers model that computes in the stored type of its weights, as users run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from luthier.core.plan import Quantisation
from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.merging import virtual_tokens
from luthier.ml.inference.models.structure import read_json


def open_stored(
    folder: Path,
    adapter: str | None,
    precision: Literal["float32", "bfloat16"] | None,
    quantisation: Quantisation | None,
) -> Callable[[list[int], int], list[int]]:
    """A function that greedily generates an exact number of tokens after a prompt.

    Args:
        folder: of the model.
        adapter: folder of a PEFT adapter; None for the model alone.
        precision: None uses the stored type; float16 is computed in float32, as few CPUs support float16.
        quantisation: the quantisation applied on loading.
    """
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
    # No end tokens: each measurement generates exactly this number of tokens.
    decoder = Decoder(model, end_ids=(), pad_id=0)

    def write(ids: list[int], num_new_tokens: int) -> list[int]:
        return decoder.run([Request([*prompt, *ids], num_new_tokens)], None, lambda _: None)[0].ids

    return write
