"""Who tokenises the rows of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.dataset import Example
from luthier.features.planning.tokenising import tokenising_workers
from luthier.ml.data.files import process_workers
from luthier.platform.home.context import Context

_MANY = [Example(id=f"rows.jsonl:{at}", text="x" * 1000) for at in range(1000)]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The thousand rows are many."""
    monkeypatch.setattr(process_workers, "MIN_FILE_BYTES", 1_000_000)
    monkeypatch.setattr(process_workers, "memory_bytes", lambda: (64 << 30, 64 << 30))
    return Context.open(tmp_path / "home")


@pytest.mark.parametrize(("num_cores", "num_workers"), [(1, 1), (2, 1), (3, 1), (4, 4), (16, 8)])
def test_many_rows_are_shared_among_four_cores_or_more(
    context: Context, monkeypatch: pytest.MonkeyPatch, num_cores: int, num_workers: int
) -> None:
    monkeypatch.setattr(process_workers, "num_usable_cores", lambda: num_cores)

    with tokenising_workers(context, _MANY) as workers:
        assert (workers.num_cores if workers.are_remote else 1) == num_workers  # type: ignore[attr-defined]


def test_few_rows_are_tokenised_in_this_process(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_workers, "num_usable_cores", lambda: 16)

    for few in (_MANY[:900], []):
        with tokenising_workers(context, few) as workers:
            assert not workers.are_remote


def test_as_many_as_the_user_sets(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_workers, "num_usable_cores", lambda: 1)
    monkeypatch.setattr(context, "settings", context.settings.model_copy(update={"data_workers": 2}))

    with tokenising_workers(context, _MANY) as workers:
        assert workers.num_cores == 2  # type: ignore[attr-defined]
