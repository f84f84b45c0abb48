"""How much traffic a signal needs before a conclusion is possible, and the time that is compared.

Here by themselves, since pages show them before any traffic is read: this module loads nothing.
"""

from __future__ import annotations

from typing import Final

FEWEST_NOW: Final = 200
"""Exchanges of the window."""
FEWEST_BEFORE: Final = 500
"""Exchanges before it."""
FEWEST_AN_HOUR: Final = 5
FEWEST_HOURS_NOW: Final = 6
FEWEST_HOURS_BEFORE: Final = 96
FEWEST_TEXTS: Final = 200
"""Prompts and answers with their words, compared with training rows."""
FEWEST_OF_GROUP: Final = 100
"""Exchanges of a group of people, and of all others."""
LOOK_BACK_DAYS: Final = 28
RENEWED_DAYS: Final = 14
FALSE_ALARMS_A_MONTH: Final = 0.05
"""Of all signals of a model together, at most, on steady traffic."""
_DAY: Final = 86_400.0


def stretch_begins(until: float, normal_since: float = 0.0) -> float:
    """Where the stretch of time that is tested begins, 14 to 28 days before `until`.

    A new stretch is taken every 14 days, the same at every look between: a test that moved along with the time would be
    a new one at every look.

    Args:
        until: seconds since 1970.
        normal_since: what was before that is not to be compared with.
    """
    step = RENEWED_DAYS * _DAY
    return max(normal_since, ((until - (LOOK_BACK_DAYS - RENEWED_DAYS) * _DAY) // step) * step)
