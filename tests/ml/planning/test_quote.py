"""The quote: the prediction with its price, people's work, and what fits."""

from __future__ import annotations

import pytest
from tests.ml.planning.shapes import accelerator, run_of

from luthier.core.cost import Quote
from luthier.core.errors import RequestError
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.quote import make_quote


def quote(memory_gib: float = 80, *, takes_what_fits: bool = False, name: str = "a100-80g") -> Quote:
    return make_quote(
        run_of,
        accelerator(memory_gib, name=name),
        longest_tokens=1000,
        num_rows=10_000,
        num_tokens=5_000_000,
        prices=load_prices(),
        takes_what_fits=takes_what_fits,
        notes=["a note of the caller"],
    )


def test_money_is_hours_times_the_price_of_the_device() -> None:
    found = quote(200)
    price = load_prices().usd_per_hour("a100-80g")
    assert found.usd_per_hour == price
    usd, hours = found.prediction.usd, found.prediction.hours
    assert usd is not None
    assert usd.value == pytest.approx(hours.value * price.value)
    assert usd.low == pytest.approx(hours.low * price.low)
    assert usd.high == pytest.approx(hours.high * price.high)


def test_the_parts_of_time_add_up() -> None:
    found = quote(200)
    assert set(found.hours_by_part) == {"steps", "validations", "checkpoints"}
    for end in ("value", "low", "high"):
        parts = sum(getattr(part, end) for part in found.hours_by_part.values())
        assert parts == pytest.approx(getattr(found.prediction.hours, end))


def test_power_is_told_for_an_own_machine_and_people_beside_it() -> None:
    found, table = quote(200), load_prices()
    assert found.prediction.energy_kwh is not None
    assert found.electricity_usd is not None
    assert found.electricity_usd.value == pytest.approx(
        found.prediction.energy_kwh.value * table.electricity_usd_per_kwh.value
    )
    assert found.people == table.people_cost(10_000)


def test_notes_of_the_caller_are_kept() -> None:
    assert "a note of the caller" in quote(200).prediction.notes


def test_what_does_not_fit_is_quoted_as_it_is_with_what_would_help() -> None:
    found = quote(24)
    assert not found.prediction.fits
    assert found.changes
    assert found.room.longest_row_tokens > 0


def test_what_can_be_made_to_fit_is_quoted_so_where_that_is_asked_for() -> None:
    found = quote(24, takes_what_fits=True)
    assert found.prediction.fits
    assert found.changes == ()
    assert any("does not fit unchanged: predicted with micro-batches" in note for note in found.prediction.notes)


def test_a_device_without_a_price_is_refused() -> None:
    with pytest.raises(RequestError, match="no price for device 'abacus'"):
        quote(80, name="abacus")


def test_the_document_has_each_figure_with_its_ends_and_comes_back_whole() -> None:
    found = quote(24)
    document = found.as_json()
    for name in ("step_seconds", "hours", "peak_memory_bytes", "usd", "energy_kwh", "electricity_usd", "steps_hours"):
        assert document[f"{name}_low"] <= document[name] <= document[f"{name}_high"]
    assert document["price_as_of"] == "2026-11-25"
    assert [work["kind"] for work in document["people"]] == ["data_preparation", "annotation", "review"]
    assert {change["kind"] for change in document["changes"]}
    assert sum(document["peak_memory_parts_bytes"].values()) == pytest.approx(document["peak_memory_bytes"])
    assert Quote.model_validate_json(found.model_dump_json()) == found
