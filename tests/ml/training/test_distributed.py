"""Several processes give what one gives; what one of them wishes, all do; what cannot be shared out is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from luthier.core.errors import RequestError
from luthier.ml.training.distributed import ALONE, World, joined, refuse_unequal_shares
from luthier.testing.world import in_world


def whatever_goes_round(world: World) -> dict[str, Any]:
    first = world.rank == 0
    tensors = [
        torch.full((3, 4), float(world.rank + 1)),
        torch.arange(5.0, dtype=torch.float64) * (world.rank + 1),
        torch.full((9_000_000,), 1.0 + world.rank),  # more than one piece
        torch.tensor(2.0),
    ]
    before = world.are_same(tensors)
    world.sum_gradients(tensors)
    own = torch.arange(6.0).reshape(2, 3).t() + (0 if first else 7)  # not contiguous
    world.broadcast_tensors([own])
    return {
        "texts": world.gather(f"rank {world.rank} – ü"),
        "sums": world.sums({"both": 0.1 + world.rank} | ({} if first else {"one": math.inf})),
        "nan": world.sums({"x": math.nan if first else 1.0})["x"],
        "wish": world.agreed(None if first else "enough"),
        "no wish": world.agreed(None),
        "held": [world.all_true(True), world.all_true(first), world.all_true(not first), world.all_true(False)],
        "long": len(world.broadcast_text("x" * 100_000 if first else "")),
        "nothing": world.broadcast_text("" if first else "not asked"),
        "summed": [tensors[0].tolist(), tensors[1].tolist(), tensors[2].unique().tolist(), float(tensors[3])],
        "same": (before, world.are_same(tensors)),
        "taken": own.tolist(),
    }


def test_what_goes_round_is_the_same_on_every_rank() -> None:
    ended = in_world(2, whatever_goes_round)
    assert [e.error for e in ended] == ["", ""]
    one, other = (e.value for e in ended)
    assert math.isnan(one.pop("nan"))
    assert math.isnan(other.pop("nan"))
    assert one == other
    assert one["texts"] == ["rank 0 – ü", "rank 1 – ü"]
    assert one["sums"] == {"both": 0.1 + 1.1, "one": math.inf}
    assert (one["wish"], one["no wish"], one["long"]) == ("enough", None, 100_000)
    assert one["held"] == [True, False, False, False]
    assert one["nothing"] == ""
    assert one["summed"] == [[[3.0] * 4] * 3, [0.0, 3.0, 6.0, 9.0, 12.0], [3.0], 4.0]
    assert one["same"] == (False, True)
    assert one["taken"] == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_alone_every_answer_is_the_question() -> None:
    tensors = [torch.ones(3)]
    ALONE.sum_gradients(tensors)
    ALONE.broadcast_tensors(tensors)
    assert torch.equal(tensors[0], torch.ones(3))
    assert ALONE.sums({"a": 0.1}) == {"a": 0.1}
    assert ALONE.agreed("enough") == "enough"
    assert (ALONE.all_true(True), ALONE.all_true(False)) == (True, False)
    assert (ALONE.gather("a"), ALONE.broadcast_text("b"), ALONE.are_same(tensors)) == (["a"], "b", True)


def test_a_process_without_variables_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as world:
        assert world == ALONE


def test_half_of_the_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(RequestError, match=r"WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT not set"), joined("cpu"):
        pass


@pytest.mark.parametrize(
    ("size", "processes", "advice"),
    [
        (16, 3, r"train on 2 or 4 devices, or set training.global_batch_size to 15 or 18"),
        (7, 2, r"train on 1 or 7 devices, or set training.global_batch_size to 6 or 8"),
        (2, 5, r"train on 2 devices, or set training.global_batch_size to 5 \("),
    ],
)
def test_a_batch_that_the_processes_do_not_divide_is_refused(size: int, processes: int, advice: str) -> None:
    with pytest.raises(RequestError, match=advice) as caught:
        refuse_unequal_shares(size, processes)
    assert caught.value.came == f"training.global_batch_size {size} on {processes} devices"


@pytest.mark.parametrize(("size", "processes"), [(16, 1), (16, 4), (6, 3)])
def test_a_batch_that_they_divide_is_taken(size: int, processes: int) -> None:
    refuse_unequal_shares(size, processes)
