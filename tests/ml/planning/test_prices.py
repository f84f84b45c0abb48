"""Prices: the table that is shipped, a user's own entries, and files that are wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.estimate import Estimate
from luthier.ml.planning.devices import device_names, load_prices


def write(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_a_dated_price_on_both_markets(name: str) -> None:
    table = load_prices()
    on_demand, spot = table.usd_per_hour(name), table.usd_per_hour(name, market="spot")
    for price in (on_demand, spot):
        assert 0 < price.low <= price.value <= price.high
    assert spot.value < on_demand.value
    assert table.devices[name].as_of == table.as_of >= date(2026, 11, 25)
    assert table.devices[name].source


def test_people_are_marked_as_assumed_and_electricity_has_a_range() -> None:
    table = load_prices()
    assert set(table.people) == {"data_preparation", "annotation", "review"}
    assert {rate.basis for rate in table.people.values()} == {"assumption"}
    power = table.electricity_usd_per_kwh
    assert 0 < power.low < power.value < power.high < 1


def test_an_entry_of_the_users_file_replaces_the_whole_entry_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path, "as_of: 2027-01-31\ndevices: {a100-80g: {on_demand: 1.5}}\nelectricity_usd_per_kwh: 0.3\n")
    table, built_in = load_prices(path), load_prices()
    assert table.as_of == date(2027, 1, 31)
    assert table.usd_per_hour("a100-80g") == Estimate(value=1.5, low=1.5, high=1.5)
    assert table.devices["a100-80g"].basis == "own"
    assert table.devices["a100-80g"].as_of == date(2027, 1, 31)
    assert table.devices["h100"] == built_in.devices["h100"]
    assert table.people == built_in.people
    assert table.electricity_usd_per_kwh.value == 0.3
    with pytest.raises(RequestError, match="no spot price for device 'a100-80g'"):
        table.usd_per_hour("a100-80g", market="spot")


def test_the_shipped_file_is_itself_a_right_price_file(tmp_path: Path) -> None:
    import luthier.ml.planning.devices as module

    text = Path(str(module.__file__)).with_name("prices.yaml").read_text(encoding="utf-8")
    assert load_prices(write(tmp_path, text)) == load_prices()


def test_a_device_without_a_price_is_told_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="did you mean h100"):
        load_prices().usd_per_hour("h10")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("as_of: 2027-01-31\ndevices: {h10: {on_demand: 1}}", "devices.h10: unknown key; nearest known: h100"),
        ("as_of: 2027-01-31\ndevices: {h100: {ondemand: 1}}", "nearest known: on_demand"),
        ("as_of: 2027-01-31\nelectricity: 1", "nearest known: electricity_usd_per_kwh"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: 0}}", "expected a number above 0"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: -2}}", "devices.h100.on_demand: has '-2'"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: cheap}}", "has 'cheap'"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: true}}", "has 'True'"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: .nan}}", "has 'nan'"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: {low: 1, high: 2}}}", "lacks typical"),
        ("as_of: 2027-01-31\ndevices: {h100: {on_demand: {low: 3, typical: 2, high: 4}}}", "low <= typical <= high"),
        ("as_of: 2027-01-31\ndevices: {h100: {source: me}}", "has no price"),
        ("as_of: 2027-01-31\ndevices: {h100: 3}", "devices.h100: has 3"),
        ("as_of: 2027-01-31\ndevices: [h100]", "devices: has ['h100']"),
        ("as_of: 2027-01-31\npeople: {review: {usd_per_hour: 50}}", "people.review.fixed_hours: is missing"),
        ("as_of: soon\n", "has 'soon', expected the day"),
        ("devices: {h100: {on_demand: 1}}", "as_of: is missing"),
        ("- 1", "holds list, not keys"),
        ("", "holds NoneType, not keys"),
        ("as_of: 2027-01-31\nas_of: 2027-01-31", "appears twice"),
        ("as_of: [", "is not valid YAML"),
    ],
)
def test_every_wrong_file_is_refused_with_the_place_and_what_was_expected(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_prices(write(tmp_path, text))
    assert told in str(refused.value)


def test_all_wrong_places_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "as_of: 2027-01-31\ndevices:\n  h100:\n    on_demand: -1\n    spot: x\n  t44: {}\n"
    with pytest.raises(RequestError) as refused:
        load_prices(write(tmp_path, text))
    for place in ("line 4, devices.h100.on_demand", "line 5, devices.h100.spot", "line 6, devices.t44"):
        assert place in refused.value.came


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no price file"):
        load_prices(tmp_path / "none.yaml")
    with pytest.raises(NotFoundError):
        load_prices(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"as_of: \xff")
    with pytest.raises(RequestError, match="UTF-8"):
        load_prices(tmp_path / "latin.yaml")


def test_people_cost_by_hand(tmp_path: Path) -> None:
    rate = "{usd_per_hour: 30, fixed_hours: 2, minutes_per_row: 6, rows_fraction: 0.5}"
    table = load_prices(write(tmp_path, f"as_of: 2027-01-31\npeople: {{review: {rate}}}"))
    review = next(cost for cost in table.people_cost(100) if cost.kind == "review")
    assert review.hours.value == 2 + 100 * 0.5 * 6 / 60 == 7
    assert review.usd.value == 210


@given(st.integers(min_value=0, max_value=10**7))
def test_people_cost_keeps_its_order_and_grows_with_rows(num_rows: int) -> None:
    table = load_prices()
    for less, more in zip(table.people_cost(num_rows), table.people_cost(num_rows + 1), strict=True):
        assert less.usd.low <= less.usd.value <= less.usd.high
        assert less.hours.value <= more.hours.value
