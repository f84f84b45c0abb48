"""Makes what the catalogue of base models shows: the planner's memory figures, and the table of docs/catalog.md.

    python benchmarks/model_catalog.py

Run it (`make models`) after a change of ml/inference/models/catalog.yaml or of what the planner predicts; a test fails
until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.core.records.base_model import CatalogEntry
from luthier.core.system.files import replace_text
from luthier.ml.inference.models import catalog
from luthier.ml.planning.hypothetical_run import TABLE, known_memory, table_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "catalog.md"
START, END = "<!-- table: benchmarks/model_catalog.py -->", "<!-- end of table -->"
_HEAD = """
| name | hub | licence | parameters | context | template options | LoRA, GiB | QLoRA, GiB | full, GiB | unchecked |
|---|---|---|---:|---:|---|---:|---:|---:|---|
"""


def main() -> None:
    """Write both files."""
    entries = catalog.built_in()
    replace_text(TABLE, table_text(entry for entry in entries if entry.config))
    replace_text(PAGE, page_with_table(PAGE.read_text(encoding="utf-8"), entries))


def page_with_table(page: str, entries: Iterable[CatalogEntry]) -> str:
    """The page with the table of these entries between its two marks."""
    before, rest = page.split(START)
    after = rest.split(END)[1]
    return before + START + _HEAD + "".join(_row(entry) for entry in entries) + END + after


def _row(entry: CatalogEntry) -> str:
    repository, _, commit = (entry.hub or "").partition("@")
    hub = f"{repository} {f'@{commit[:7]}' if commit else '(not pinned)'}" if entry.hub else "package wheels"
    active = f", {_billions(entry.num_active_parameters)} active" if entry.num_active_parameters else ""
    memory = known_memory(entry)
    figures = (memory.lora_bytes, memory.qlora_bytes, memory.full_bytes) if memory else (None, None, None)
    cells = [
        f"`{entry.name}`",
        hub,
        f"[{entry.licence}]({entry.licence_url})" + (", gated" if entry.is_gated else ""),
        _billions(entry.num_parameters) + active,
        f"{entry.context_length_tokens:,}",
        ", ".join(f"`{name}`" for name in entry.template_options),
        *("" if value is None else f"{value / (1 << 30):,.1f}" for value in figures),
        ", ".join(entry.unchecked),
    ]
    return f"| {' | '.join(cells)} |\n"


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


if __name__ == "__main__":
    main()
