"""One piece of a text that a finder recognised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["email", "phone", "card", "iban", "ssn", "ip_address", "street", "name"]

Profile = Literal["precision", "recall"]
"""Which spans count: `precision`, those that their form and the words beside them make certain, for rows that are
changed for good; `recall`, whatever may be a value, where what is missed is leaked."""

KINDS: Final[tuple[Kind, ...]] = ("email", "iban", "card", "ssn", "ip_address", "phone", "street", "name")


@dataclass(frozen=True, slots=True)
class Span:
    """The value `text[start:end]`.

    Attributes:
        start: first character in the text.
        end: behind the last character.
        kind: what it is.
        value: the characters themselves.
        is_reserved: of the right form, but set aside for documentation, tests or masks, so it reaches nobody. Such a
            span is not reported; it only keeps other finders off its characters.
        is_certain: whether it counts where precision is asked for (`Profile`).
    """

    start: int
    end: int
    kind: Kind
    value: str
    is_reserved: bool = False
    is_certain: bool = True
