"""Methods x devices: the same rows trained in every way, side by side, the cheapest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from luthier.core.cost import Device, Estimate, MachineLoad, Market, Option, PriceTable
from luthier.core.errors import RequestError
from luthier.ml.planning.calibration import Calibration
from luthier.ml.planning.fit import made_to_fit
from luthier.ml.planning.fit_suggestions import METHOD_TITLES, WorkloadOn, name_of, words_of
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import WorkMethod, with_method

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

    Where a run does not fit as it is, the fastest way that trains the same is taken, and said. A
    device without a price on this market has no USD, and comes after those that have.

    Args:
        calibrations, loads: by the title of the device.
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
    return (not option.fits, usd is None, usd.value if usd else hours, hours)
