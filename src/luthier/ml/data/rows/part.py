"""A share of the rows, chosen by a stable hash: shares that begin at the same place hold one another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.ml.data.text.normalise import content_key


def part_of(examples: Sequence[Example], part: tuple[float, float]) -> list[Example]:
    """The examples from share `part[0]` to below `part[1]` in the order of a hash, in the order in which they came.

    The hash is of the group where there is one, else of the normalised content, so equal rows stay together except for
    those at the two ends.

    Args:
        examples: the rows.
        part: first and last share, 0 to 1.

    Raises:
        DataError: the share holds no row.
    """
    keys = [example.group if example.group is not None else content_key(example) for example in examples]
    digests = [hashlib.sha256(f"part\0{key}".encode()).digest() for key in keys]
    # Order by hash instead of a random draw: [0, 0.1] is a part of [0, 0.2], also after rows are appended or moved.
    order = sorted(range(len(examples)), key=lambda index: (digests[index], index))
    first, last = (round(share * len(examples)) for share in part)
    chosen = sorted(order[first:last])
    if not chosen:
        raise DataError(
            f"data.subset {list(part)} of {len(examples):,} training rows holds none",
            expected="a share with at least one row",
            do="widen data.subset",
        )
    return [examples[index] for index in chosen]
