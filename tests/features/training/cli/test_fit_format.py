"""What a run's losses say, as text."""

from __future__ import annotations

import io

from rich.console import Console

from luthier.core.run import Fit, Remedy
from luthier.features.training.format import show_fit


def test_the_finding_then_what_to_do_each_with_what_asks_for_it() -> None:
    fit = Fit(
        kind="overfitted",
        seen="Validation loss rose.",
        remedies=(Remedy(text="Stop at step 4.", settings=("training.max_steps=4",)), Remedy(text="Get rows.")),
    )
    out = io.StringIO()
    show_fit(Console(file=out, width=60), fit)
    assert out.getvalue().splitlines() == [
        "It memorised its rows. Validation loss rose.",
        "  1. Stop at step 4.  [--set training.max_steps=4]",
        "  2. Get rows.",
    ]
