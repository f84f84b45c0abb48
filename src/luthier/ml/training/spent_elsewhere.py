"""What other machines have spent on a run, so that a run which moves between them is billed once for each second.

    spent_elsewhere.json    what this home is called in the ledgers of the run, and what other homes have spent

The ledger of a home holds what this home itself has spent, which only grows. Homes exchange their shares with the
uploads of a run; of each home the largest share counts, and the spend of the run is the sum of them. So shares may
arrive in any order and more than once (a grow-only counter: Shapiro et al., 2011, "A comprehensive study of Convergent
and Commutative Replicated Data Types", 3.1.2).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from luthier.core.frozen_model import FrozenModel
from luthier.core.run import Spent
from luthier.core.system.files import replace_text

ELSEWHERE: Final = "spent_elsewhere.json"
UNKNOWN: Final = ""
"""The share of homes that have not said which part is theirs."""
_SAME_SECONDS: Final = 1e-3
"""Sums that differ by less are equal but for rounding."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
HomeName = Annotated[str, Field(pattern=r"^[0-9a-f]{0,32}$")]


FIELDS: Final = tuple(Spent.model_fields)
"""The figures of a spend and of a share."""


class Share(FrozenModel):
    """What one home has spent; the fields are those of `Spent`."""

    seconds: Amount = 0.0
    tokens: Count = 0
    interrupted_seconds: Amount = 0.0
    judge_calls: Count = 0
    judge_prompt_tokens: Count = 0
    judge_new_tokens: Count = 0
    judge_usd: Amount = 0.0

    def larger(self, other: Share) -> Share:
        """Each figure of the one that has come further: both are of one home."""
        return Share(**{name: max(getattr(self, name), getattr(other, name)) for name in FIELDS})


Shares = Mapping[str, Share]
shares_adapter: Final[TypeAdapter[dict[HomeName, Share]]] = TypeAdapter(dict[HomeName, Share])


class Elsewhere(FrozenModel):
    """The file.

    Attributes:
        home: What this home is called.
        shares: What the others have spent, by what they are called.
    """

    home: HomeName
    shares: dict[HomeName, Share] = Field(default_factory=dict)


def share_of(spent: Spent) -> Share:
    """A spend as a share."""
    return Share(**{name: getattr(spent, name) for name in FIELDS})


def total(shares: Iterable[Share]) -> Share:
    """The sum of shares of different homes."""
    found = list(shares)
    return Share(**{name: sum(getattr(one, name) for one in found) for name in FIELDS})


def merged(known: Shares, found: Shares) -> dict[str, Share]:
    """Of each home the largest share."""
    return {name: known.get(name, Share()).larger(found.get(name, Share())) for name in {**known, **found}}


def with_rest(shares: Shares, spent: Share) -> dict[str, Share]:
    """Shares that add up to a spend at least, which may be known without its shares, as from an earlier version."""
    known = total(shares.values())
    counts = ("tokens", "judge_calls")
    if spent.seconds <= known.seconds + _SAME_SECONDS and all(
        getattr(spent, name) <= getattr(known, name) for name in counts
    ):
        return dict(shares)
    before = shares.get(UNKNOWN, Share())
    rest = Share(
        **{name: getattr(before, name) + max(0, getattr(spent, name) - getattr(known, name)) for name in FIELDS}
    )
    return {**shares, UNKNOWN: rest}


def read(folder: Path) -> Elsewhere | None:
    """The file of a run's folder; None where there is none, or none that can be read."""
    try:
        return Elsewhere.model_validate_json((folder / ELSEWHERE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_or_begin(folder: Path) -> Elsewhere:
    """The file; written with a new name where there is none."""
    if (found := read(folder)) is None:
        found = Elsewhere(home=uuid.uuid4().hex)
        write(folder, found)
    return found


def write(folder: Path, elsewhere: Elsewhere) -> None:
    """Write the file; after a kill there is the old one or the new one.

    Raises:
        StorageFullError: the disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / ELSEWHERE, elsewhere.model_dump_json())
