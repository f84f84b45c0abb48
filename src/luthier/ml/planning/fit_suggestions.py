"""What makes a run fit that does not: the same training in another way, another method, another device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

from luthier.core.cost import Change, Device, Market, PriceTable
from luthier.core.errors import RequestError
from luthier.ml.planning.calibration import Calibration
from luthier.ml.planning.fit import Fitted, made_to_fit, ways_to_fit
from luthier.ml.planning.predict import predict
from luthier.ml.planning.workload import Workload, WorkMethod, with_method
from luthier.ml.training.methods.rules import RULES

WorkloadOn = Callable[[Device], Workload]
"""The run as it would be carried out on a device: precision, micro-batches and sharding are that device's."""

METHOD_TITLES: Final[dict[WorkMethod, str]] = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "adalora": "AdaLoRA",
    "qlora": "QLoRA (4-bit base)",
}
_LESS: Final[dict[WorkMethod, tuple[WorkMethod, ...]]] = {
    "full": ("lora", "qlora"),
    "adalora": ("lora", "qlora"),
    "lora": ("qlora",),
    "qlora": (),
}
_NUM_DEVICES_SHOWN: Final = 3
_WORDS: Final = {
    "micro_batch": "micro-batches of at most {tokens:,} tokens",
    "checkpointing": "activations computed again on the way back (gradient checkpointing)",
    "sharding": "weights and optimizer state spread over the devices (FSDP)",
}


def cheapest_changes(
    workload_on: WorkloadOn,
    device: Device,
    *,
    longest_tokens: int,
    other_devices: Sequence[Device],
    prices: PriceTable,
    market: Market = "on_demand",
    calibration: Calibration | None = None,
) -> tuple[Change, ...]:
    """What makes a run fit on a device, or where else it fits; empty where it fits as it is.

    In the order of what is given up: first what changes only how the same is computed, the fastest first; then methods
    that train less or on a coarser base; then other devices, the cheapest run first. Each with its hours and USD.
    """
    workload = workload_on(device)
    ways = ways_to_fit(workload, device, longest_tokens=longest_tokens, calibration=calibration)
    if ways and not ways[0].changes:
        return ()
    found = [_change(way, device, prices, market, calibration) for way in ways]
    for method in _LESS[workload.method]:
        changed = with_method(workload, method)
        # A method with less memory may still need smaller micro-batches.
        way = made_to_fit(changed, device, longest_tokens=longest_tokens, calibration=calibration)
        if way is not None:
            found.append(_change(way, device, prices, market, calibration, method=method))
    elsewhere = []
    for other in other_devices:
        way = _fitted_on(workload_on, other, longest_tokens)
        if way is not None and (other.name, other.num_devices) != (device.name, device.num_devices):
            elsewhere.append(_change(way, other, prices, market, None, is_elsewhere=True))
    # Priced ones first, by price; without a price, by time.
    elsewhere.sort(key=lambda change: (change.usd is None, change.usd.value if change.usd else change.hours.value))
    return (*found, *elsewhere[:_NUM_DEVICES_SHOWN])


def words_of(way: Fitted) -> str:
    """What was changed so that a run fits, as text; empty where nothing was."""
    return " and ".join(_WORDS[name].format(tokens=way.micro_batch_tokens) for name in way.changes)


def _fitted_on(workload_on: WorkloadOn, device: Device, longest_tokens: int) -> Fitted | None:
    try:
        workload = workload_on(device)
    except RequestError:  # fewer rows a step than devices
        return None
    return made_to_fit(workload, device, longest_tokens=longest_tokens)


def _change(
    way: Fitted,
    device: Device,
    prices: PriceTable,
    market: Market,
    calibration: Calibration | None,
    *,
    method: WorkMethod | None = None,
    is_elsewhere: bool = False,
) -> Change:
    try:
        price = prices.usd_per_hour(device.name, market=market)
    except RequestError:
        price = None
    made = predict(way.workload, device, calibration=calibration, usd_per_hour=price)
    kind: Literal["micro_batch", "checkpointing", "sharding", "method", "device"]
    words, asks = words_of(way), []
    if "micro_batch" in way.changes:
        asks.append(f"--set training.micro_batch_tokens={way.micro_batch_tokens}")
    if "checkpointing" in way.changes:
        asks.append("--set training.gradient_checkpointing=true")
    if is_elsewhere:
        kind, words = "device", f"{name_of(device)} ({device.title})" + (f", with {words}" if words else "")
        asks.insert(0, f"--on {name_of(device)}")
    elif method is not None:
        kind, words = "method", METHOD_TITLES[method] + (f", with {words}" if words else "")
        asks.insert(0, f"--set method.name={method}")
    else:
        kind = next(name for name in ("sharding", "checkpointing", "micro_batch") if name in way.changes)
    # No command sets these: FSDP follows from how processes are started, and not every cost model is a method.
    is_possible = "sharding" not in way.changes and (method is None or method in RULES)
    return Change(
        kind=kind,
        words=words,
        ask=" ".join(asks) if is_possible else "",
        hours=made.hours,
        usd=made.usd,
        peak_memory_bytes=made.peak_memory.total_bytes,
    )


def name_of(device: Device) -> str:
    """The text by which a device is requested: `h100`, `a100-80g:4`."""
    return device.name if device.num_devices == 1 else f"{device.name}:{device.num_devices}"
