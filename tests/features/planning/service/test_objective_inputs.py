"""What an objective needs in addition to rows, of rows that may be larger than memory."""

from __future__ import annotations

import tracemalloc
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import OverlongError
from luthier.features.planning.objective_inputs import check_drawing
from luthier.ml.data.files import sequences
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.token_store import row_writer


def test_prompts_that_leave_no_room_are_found_without_all_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_BLOCK_RECORDS", 20)
    writer, num = row_writer(Spill(0, tmp_path)), 1_000
    for number in range(num):
        num_prompt = 990 if number % 100 == 7 else 900
        mask = b"\0" * num_prompt + b"\1" * (1_000 - num_prompt)
        writer.append(TokenisedExample(f"r:{number}", array("i", [number]) * 1_000, mask))
    split: Any = SimpleNamespace(tokenised=writer.sequence())
    plan: Any = SimpleNamespace(objective=SimpleNamespace(rewards=None, max_new_tokens=50))
    tracemalloc.start()
    try:
        with pytest.raises(OverlongError, match="10 prompts are longer than 950 tokens, such as that of r:7"):
            check_drawing(plan, [split], room_tokens=1_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    check_drawing(plan, [split], room_tokens=1_040)
    assert peak < 5 * num * 1_000 / 3
