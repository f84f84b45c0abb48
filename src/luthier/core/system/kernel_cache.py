"""How many compiled kernels torch keeps on a CPU: one set for every shape it has met, unless that is limited."""

from __future__ import annotations

import os

# A micro-batch of one shape needs about 40 kernels; three shapes' worth stay. Torch's own default is 1,024 in each of
# two caches, and a kernel takes 0.6 MB: over a run of ever other lengths that is 0.6 GB (docs/log.md).
_NUM_KERNELS = "128"
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Let torch's CPU library keep kernels of a few shapes only. Must be called before torch is loaded.

    What the user has set stays.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _NUM_KERNELS)
