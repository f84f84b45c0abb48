"""What a proof demands of every format; the bounds of likelihoods are declared with each format."""

from __future__ import annotations

from typing import Final

NOTEWORTHY_LOSS_NATS: Final = 0.02
"""A token of the references. A loss above it (2% more perplexity) whose interval leaves out 0 makes a format "not
recommended" for a model: q8_0 stays below, q4_k_m of a small model does not."""

RUINOUS_LOSS_NATS: Final = 0.693
"""A token of the references: perplexity has doubled. An export that loses more fails, whatever its format."""

NEARER_BASE_FRACTION: Final = 0.9
"""An export that is nearer to the base than to the source in this share of its prompts has lost the adapter."""
