"""Methods by devices: every pair once, those that fit first, the cheapest first."""

from __future__ import annotations

from pathlib import Path

from tests.ml.planning.shapes import accelerator, run_of

from luthier.core.results.cost import Option
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.quote import METHODS, compare

DEVICES = [accelerator(16, name="t4"), accelerator(80), accelerator(24, name="rtx4090")]


def options(prices: Path | None = None, market: str = "on_demand") -> tuple[Option, ...]:
    return compare(run_of, DEVICES, longest_tokens=1000, prices=load_prices(prices), market=market)  # type: ignore[arg-type]


def test_every_method_stands_once_on_every_device() -> None:
    found = options()
    assert len({(option.method, option.device) for option in found}) == len(found) == len(METHODS) * len(DEVICES)


def test_what_fits_stands_first_and_the_cheapest_before_the_dearer() -> None:
    found = options()
    fitting = [option for option in found if option.fits]
    assert [option.fits for option in found] == sorted((option.fits for option in found), reverse=True)
    usd = [option.prediction.usd.value for option in fitting if option.prediction.usd]
    assert len(usd) == len(fitting)
    assert usd == sorted(usd)


def test_seven_billion_parameters_fit_where_one_expects_them() -> None:
    fits = {(option.method.split()[0], option.device): option for option in options()}
    assert fits["QLoRA", "rtx4090"].fits
    assert fits["LoRA", "rtx4090"].needs  # 14 GB of weights leave little: smaller micro-batches or recomputation
    assert not fits["full", "rtx4090"].fits
    assert not fits["full", "a100-80g"].fits  # 2 + 2 + 12 bytes a parameter with fp32 masters are over 100 GB


def test_a_device_without_a_price_on_the_market_stands_last_without_usd(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("as_of: 2027-01-31\ndevices: {t4: {on_demand: 0.5}}", encoding="utf-8")
    fitting = [option for option in options(path, "spot") if option.fits]
    assert {option.device for option in fitting if option.prediction.usd is None} == {"t4"}
    assert fitting[-1].device == "t4"
    assert any("no price" in note for note in fitting[-1].prediction.notes)


def test_an_option_as_json_has_each_figure_with_its_ends() -> None:
    row = options()[0].as_json()
    assert row["fits"] is True
    for name in ("hours", "usd", "energy_kwh", "peak_memory_bytes", "step_seconds"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
