"""The quote of a run: prediction, price, people's work and what fits, for one device or all methods and devices.

`make_quote` is for one device. `compare` puts every method on every device side by side, the cheapest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from luthier.core.cost import Device, Estimate, MachineLoad, Market, Option, Prediction, PriceTable, Quote
from luthier.core.errors import RequestError
from luthier.ml.planning.fit import METHOD_TITLES, WorkloadOn, cheapest_changes, made_to_fit, name_of, room, words_of
from luthier.ml.planning.layouts import layout_options
from luthier.ml.planning.predict import Calibration, hours_by_part, predict
from luthier.ml.planning.workload import WorkMethod, with_method


def make_quote(
    workload_on: WorkloadOn,
    device: Device,
    *,
    longest_tokens: int,
    num_rows: int,
    num_tokens: int,
    prices: PriceTable,
    other_devices: Sequence[Device] = (),
    market: Market = "on_demand",
    calibration: Calibration | None = None,
    takes_what_fits: bool = False,
    load: MachineLoad | None = None,
    notes: Sequence[str] = (),
    why_not_sharded: str = "",
    is_supervised: bool = True,
) -> Quote:
    """All that a run is expected to cost on a device.

    Args:
        workload_on: the run on a device.
        device: where it runs.
        longest_tokens: of the longest row.
        num_rows: of all splits, for people's work.
        num_tokens: that training reads.
        prices: by device.
        other_devices: where else it might run.
        market: on demand or spot.
        calibration: of the device; None uses the priors.
        takes_what_fits: price the fastest variant that fits where the unchanged run does not; a note names it.
        load: how busy this machine is now, where the device is this machine.
        notes: added to the prediction's. why_not_sharded, is_supervised: as `layout_options` takes them.
        why_not_sharded: as `layout_options` takes it.
        is_supervised: as `layout_options` takes it.

    Raises:
        RequestError: the device has no price on this market.
    """
    price = prices.usd_per_hour(device.name, market=market)
    workload = workload_on(device)
    changes = cheapest_changes(
        workload_on,
        device,
        longest_tokens=longest_tokens,
        other_devices=other_devices,
        prices=prices,
        market=market,
        calibration=calibration,
    )
    if takes_what_fits and changes:
        way = made_to_fit(workload, device, longest_tokens=longest_tokens, calibration=calibration)
        if way is not None:
            workload, changes = way.workload, ()
            notes = (*notes, f"does not fit unchanged: predicted with {words_of(way)}")
    made = predict(workload, device, calibration=calibration, usd_per_hour=price, load=load)
    entry = prices.devices[device.name]
    layouts = layout_options(workload_on, workload, device, why_not_sharded, is_supervised=is_supervised)
    return Quote(
        prediction=_with_notes(made, notes),
        hours_by_part=hours_by_part(workload, device, made.step_seconds, calibration=calibration, load=load),
        market=market,
        usd_per_hour=price,
        price_basis=entry.basis,
        price_source=entry.source,
        price_as_of=entry.as_of,
        electricity_usd=made.energy_kwh.by(prices.electricity_usd_per_kwh) if made.energy_kwh else None,
        people=prices.people_cost(num_rows),
        num_rows=num_rows,
        num_tokens=num_tokens,
        room=room(workload, device, longest_tokens=longest_tokens, calibration=calibration),
        changes=changes,
        layouts=layouts,
    )


def _with_notes(prediction: Prediction, notes: Sequence[str]) -> Prediction:
    return prediction.model_copy(update={"notes": (*prediction.notes, *notes)})


METHODS: tuple[WorkMethod, ...] = get_args(WorkMethod)


def compare(
    workload_on: WorkloadOn,
    devices: Sequence[Device],
    *,
    longest_tokens: int,
    prices: PriceTable,
    market: Market = "on_demand",
    methods: Sequence[WorkMethod] = METHODS,
    calibrations: Mapping[str, Calibration] | None = None,
    loads: Mapping[str, MachineLoad] | None = None,
) -> tuple[Option, ...]:
    """Each method on each device: those that fit first, by USD, then by hours.

    Where a run does not fit unchanged, the fastest variant that trains the same is taken, and noted. A
    device without a price on this market has no USD, and comes after those that have.

    Args:
        workload_on: the run on a device.
        devices: that are compared.
        longest_tokens: of the longest row.
        prices: by device.
        market: on demand or spot.
        methods: that are compared.
        calibrations: by the title of the device; None uses the priors.
        loads: by the title of the device; None assumes idle machines.
    """
    options = []
    for device in devices:
        calibration = (calibrations or {}).get(device.title)
        price = _price(prices, device, market)
        base = workload_on(device)
        for method in methods:
            # Batches, precision and sharding stay those of the device, so that only the method differs.
            workload = with_method(base, method)
            way = made_to_fit(workload, device, longest_tokens=longest_tokens, calibration=calibration)
            made = predict(
                way.workload if way else workload,
                device,
                calibration=calibration,
                usd_per_hour=price,
                load=(loads or {}).get(device.title),
            )
            options.append(
                Option(
                    method=METHOD_TITLES[method],
                    device=name_of(device),
                    fits=way is not None,
                    needs=words_of(way) if way else "",
                    prediction=made,
                )
            )
    return tuple(sorted(options, key=_order))


def _price(prices: PriceTable, device: Device, market: Market) -> Estimate | None:
    try:
        return prices.usd_per_hour(device.name, market=market)
    except RequestError:
        return None


def _order(option: Option) -> tuple[bool, bool, float, float]:
    usd, hours = option.prediction.usd, option.prediction.hours.value
    # False sorts before True: what fits comes first, then what has a price.
    return (not option.fits, usd is None, usd.value if usd else hours, hours)
