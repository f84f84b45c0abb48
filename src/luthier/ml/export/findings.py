"""What comparing an export with its source found, before anybody judges it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Findings:
    """What comparing found, prompt by prompt; what could not be compared is missing.

    Attributes:
        num_prompts: prompts that were compared.
        num_texts_equal: of these, how many have the same greedy text.
        first_other_text: what differs in the first prompt whose greedy text does.
        vocabulary: width of the export's logits; 0 before the first prompt.
        is_finite: whether all likelihoods are.
        differences: [positions, tokens] a prompt, in nats: export to source.
        base_differences: the same, export to the base without the adapter.
        source_base_differences: the same, source to the base without the adapter.
        export_nats, source_nats: of each reference, in all.
        num_tokens: tokens of each reference that were scored.
    """

    num_prompts: int = 0
    num_texts_equal: int = 0
    first_other_text: str | None = None
    vocabulary: int = 0
    is_finite: bool = True
    differences: list[NDArray[np.float32]] = field(default_factory=list)
    base_differences: list[NDArray[np.float32]] = field(default_factory=list)
    source_base_differences: list[NDArray[np.float32]] = field(default_factory=list)
    export_nats: list[float] = field(default_factory=list)
    source_nats: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
