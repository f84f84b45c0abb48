"""What cuBLAS must know before it is loaded, so that the same product gives the same bits each time."""

from __future__ import annotations

import os

# Eight buffers of 4,096 KiB, which NVIDIA gives as one of two settings under which cuBLAS is deterministic, and torch
# asks for (cuBLAS documentation, "Results reproducibility").
_WORKSPACE = ":4096:8"


def keep_products_exact() -> None:
    """Let matrix products on a GPU have the same bits at each run. Must be called before torch is loaded.

    What the user has set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)
