"""What a repair masks by default is right in 99 of 100 rows or more: a smaller cut of `benchmarks/personal_data.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from luthier.ml.data.personal_data.masking import DEFAULT_KINDS, MaskedKinds
from luthier.ml.data.personal_data.recognizers import KINDS, Kind

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
NUM_CLEAN, NUM_PLANTED = 3_000, 120
LEAST = 0.99
LEAST_RECALL = 0.95
MEASURED = tuple(kind for kind in KINDS if kind != "name")
PRECISION, RECALL = MaskedKinds(KINDS, "precision"), MaskedKinds(KINDS, "recall")


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import personal_data

        yield personal_data
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def figures(benchmark: ModuleType) -> dict[str, dict[str, object]]:
    """The document of each profile over the same rows."""
    sets = benchmark.clean_sets(NUM_CLEAN, 7)
    assert sum(map(len, sets.values())) == NUM_CLEAN
    assert len(sets) >= 15
    return {
        "precision": benchmark.measure(sets, NUM_PLANTED, 7, PRECISION),
        "recall": benchmark.measure(sets, NUM_PLANTED, 7, RECALL),
    }


def test_each_set_without_personal_data_is_left_as_it_is(figures: dict[str, dict[str, object]]) -> None:
    sets = figures["precision"]["sets"]
    wrong = {name: one for name, one in sets.items() if one["untouched_by_default"] < LEAST}  # type: ignore[attr-defined]
    assert not wrong


@pytest.mark.parametrize("kind", MEASURED)
def test_a_kind_is_masked_by_default_where_it_is_proved_and_only_there(
    kind: Kind, figures: dict[str, dict[str, object]]
) -> None:
    """Streets fall below in `public_places`: a museum has an address, too."""
    found = figures["precision"]["kinds"][kind]  # type: ignore[index]
    assert (found["worst_set_untouched"] >= LEAST) == (kind in DEFAULT_KINDS)
    assert (found["precision"] >= LEAST) == (kind in DEFAULT_KINDS)


@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_a_value_that_is_named_is_masked_by_default(kind: Kind, figures: dict[str, dict[str, object]]) -> None:
    assert figures["precision"]["kinds"][kind]["recall_said"] >= LEAST_RECALL  # type: ignore[index]


@pytest.mark.parametrize("kind", MEASURED)
def test_traffic_is_masked_for_recall(kind: Kind, figures: dict[str, dict[str, object]]) -> None:
    """What is certain is found in both profiles, and bare values are found where nothing says what they are."""
    precise, whole = figures["precision"]["kinds"][kind], figures["recall"]["kinds"][kind]  # type: ignore[index]
    assert whole["recall_said"] >= precise["recall_said"]
    assert whole["recall_bare"] >= max(0.7, precise["recall_bare"])
