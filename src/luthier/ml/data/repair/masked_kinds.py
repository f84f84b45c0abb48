"""Which personal data a repair masks: what is certain of the kinds that are proved, and every value of those named.

`benchmarks/personal_data.py` measures the kinds, and a test holds `masking.DEFAULT_KINDS` to at least 0.99 of the rows
of each of its sets without personal data left untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.errors import NotFoundError, RequestError
from luthier.ml.data.personal_data.masking import DEFAULT_KINDS, MaskedKinds
from luthier.ml.data.personal_data.names import why_not
from luthier.ml.data.personal_data.span import KINDS, Kind

_SPELLINGS: Final[dict[str, Kind]] = {
    **{kind: kind for kind in KINDS},
    **{f"{kind}s": kind for kind in KINDS},
    "ip_addresses": "ip_address",
    "ip": "ip_address",
    "ips": "ip_address",
}


def masked_kinds(mask: Sequence[str] = (), leave: Sequence[str] = ()) -> MaskedKinds:
    """What is masked: of the default kinds what is certain, of those in `mask` every value, none of those in `leave`.

    Raises:
        NotFoundError: there is no such kind.
        RequestError: a kind is in both lists, none is left, or names are requested and nothing on this machine can find
            them.
    """
    every, left = _kinds(mask), _kinds(leave)
    if both := [kind for kind in every if kind in left]:
        raise RequestError(
            f"{both[0]} is both to be masked and to be left",
            expected="each kind in one of the two lists",
            do="take it out of one",
        )
    if "name" in every and (reason := why_not()) is not None:
        raise RequestError(
            f"names cannot be masked: {reason}",
            expected="the extra `names` and a spaCy model, which find the names of people",
            do="install them (pip install 'luthier[names]'), or leave names out of --mask",
        )
    kinds = tuple(kind for kind in KINDS if (kind in DEFAULT_KINDS or kind in every) and kind not in left)
    if not kinds:
        raise RequestError(
            "no kind of personal data is left to mask",
            expected="at least one",
            do="name fewer with --no-mask, or leave all of it out with --skip personal_data",
        )
    return MaskedKinds(kinds, "precision", every)


def _kinds(names: Sequence[str]) -> tuple[Kind, ...]:
    for name in names:
        if name not in _SPELLINGS:
            raise NotFoundError(
                f"no kind of personal data {name!r}",
                expected=f"one of {', '.join(KINDS)}",
                do="correct the name",
            )
    return tuple(kind for kind in KINDS if kind in {_SPELLINGS[name] for name in names})
