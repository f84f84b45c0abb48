"""The table of `luthier models check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.model_checks.records import ModelCheck


def show_check(console: Console, found: ModelCheck) -> None:
    """What is known of the model, a line for each part, then what to do about those that do not work."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, make_table, visible

    rows = [
        ("model", found.model),
        ("architecture", found.architecture or "-"),
        ("parameters", figures.count(found.num_parameters)),
        ("context", f"{found.context_length_tokens:,} tokens"),
        ("layers", found.layers),
    ]
    facts(console, rows)
    table = make_table(["part", "ends", "by which path, or why not", "figures", "s"], num_text_columns=4)
    for one in found.checks:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in one.measures.items())
        ending = one.status.replace("_", " ")
        table.add_row(visible(one.name), ending, visible(one.path or one.reason), shown, f"{one.seconds:.1f}")
    console.print(table)
    for one in found.checks:
        if one.remedy:
            console.print(f"{visible(one.name)}: {visible(one.remedy)}", soft_wrap=True)
