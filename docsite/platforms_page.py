"""The table of `docs/platforms.md`: what is used of each operating system, what is used elsewhere, and what is lost.

python docsite/platforms_page.py        # write it; a test holds it and `core/system/facility_list.py` together
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "platforms.md"
_TABLE: Final = re.compile(r"\| facility \|.*?\n\n", re.DOTALL)


def text() -> str:
    """The whole page: as it is, with the table made again."""
    return _TABLE.sub(lambda _: "\n".join(_facilities()) + "\n\n", PAGE.read_text(encoding="utf-8"))


def _facilities() -> Iterator[str]:
    from luthier.core.system.facility_list import FACILITIES

    yield "| facility | what for | Linux | elsewhere | lost |"
    yield "|---|---|---|---|---|"
    for one in FACILITIES:
        cells = (one.name, one.use, one.linux, one.elsewhere, one.lost)
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
