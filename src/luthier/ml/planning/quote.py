"""The quote of a run on one device: the prediction, its price, people's work, what fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.cost import Device, MachineLoad, Market, Prediction, PriceTable, Quote
from luthier.ml.planning.calibration import Calibration
from luthier.ml.planning.fit import made_to_fit, room
from luthier.ml.planning.fit_suggestions import WorkloadOn, cheapest_changes, words_of
from luthier.ml.planning.predict import hours_by_part, predict


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
) -> Quote:
    """All that a run is expected to cost on a device.

    Args:
        num_rows: of all splits, for people's work.
        num_tokens: that training reads.
        other_devices: where else it might run.
        load: how busy this machine is now, where the device is this machine.
        takes_what_fits: price the fastest way that fits where the run as it is does not; a note says which.
        notes: added to the prediction's.

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
            notes = (*notes, f"does not fit as it is: predicted with {words_of(way)}")
    made = predict(workload, device, calibration=calibration, usd_per_hour=price, load=load)
    entry = prices.devices[device.name]
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
    )


def _with_notes(prediction: Prediction, notes: Sequence[str]) -> Prediction:
    return prediction.model_copy(update={"notes": (*prediction.notes, *notes)})
