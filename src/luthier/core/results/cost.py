"""What a run will cost, before it is run: time, memory, energy, money; each with its interval."""

from __future__ import annotations

from datetime import date
from difflib import get_close_matches
from typing import Any, Literal

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel

Market = Literal["on_demand", "spot"]
PriceBasis = Literal["list_prices", "typical_range", "assumption", "own"]
PersonKind = Literal["data_preparation", "annotation", "review"]

BF16_MUST_WIN_BY = 1.2
"""bf16 halves the memory, but rounds: on a CPU it has to be so many times as fast as float32 to be chosen."""


class Device(FrozenModel):
    """One kind of accelerator (or this machine's CPU), as many as the run has.

    All rates are those of one device.

    Attributes:
        name: its key in the tables of devices and prices.
        title: its name for people.
        num_devices: how many of them the run has.
        memory_bytes: its memory.
        bfloat16_tflops: dense products in bfloat16, in TFLOP/s; a multiply-add counts as two.
        float32_tflops: the same in float32.
        memory_gb_per_second: memory traffic.
        link_gb_per_second: link to the other devices of its machine, one direction; 0 where there is none.
        node_devices: how many of them one machine has; 0 where all of them are taken to be in one.
        network_gb_per_second: a device's share of its machine's network to the others, one direction.
        power_watts: power at the board.
        is_cpu: whether it is this machine's processor.
        source: where the figures come from; "measured" for this machine.
    """

    name: str
    title: str
    num_devices: int
    memory_bytes: int
    bfloat16_tflops: float
    float32_tflops: float
    memory_gb_per_second: float
    link_gb_per_second: float
    power_watts: float
    is_cpu: bool
    source: str
    node_devices: int = 0
    network_gb_per_second: float = 0.0

    @property
    def num_nodes(self) -> int:
        """Machines that hold all devices of the run."""
        # Ceiling of the quotient: a machine that is partly used counts as one.
        return -(-self.num_devices // self.node_devices) if self.node_devices else 1


class Layout(FrozenModel):
    """How devices share one copy of a model, and the experts of several copies.

    What is left of a run's devices computes different rows (data parallel), each copy its own.

    Attributes:
        tensor_parallel: devices that share every matrix; they are in one machine.
        pipeline_parallel: stages, groups of layers one after another, each on its own devices.
        expert_parallel: data-parallel devices that divide the experts of each layer among them.
        virtual_stages: groups of layers of each stage (the interleaved schedule).
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    virtual_stages: int = 1

    @property
    def model_parallel(self) -> int:
        """Devices that hold one copy of the model together."""
        return self.tensor_parallel * self.pipeline_parallel

    def data_parallel(self, num_devices: int) -> int:
        """Copies of the model on that many devices, sharded or not."""
        return max(1, num_devices // self.model_parallel)


class LayoutOption(FrozenModel):
    """One layout of a run over several devices, as predicted.

    Attributes:
        title: `dp 4 (FSDP2) x tp 2`.
        layout: The layout.
        data_parallel: Copies of the model, which compute different rows.
        is_sharded: Whether weights, gradients and optimizer state are spread over these copies (FSDP2).
        tokens_per_second: Of training steps, all devices together.
        peak_memory_bytes: Of one device.
        fits: Whether it has that memory.
        runs_here: Whether Luthier trains in this layout itself.
        words: How it is started here; or why it is not, and what trains so.
    """

    title: str
    layout: Layout
    data_parallel: int
    is_sharded: bool
    tokens_per_second: Estimate
    peak_memory_bytes: Estimate
    fits: bool
    runs_here: bool
    words: str

    def as_json(self) -> dict[str, Any]:
        """One of `layouts` in `luthier plan --json`."""
        return {
            "title": self.title,
            "data_parallel": self.data_parallel,
            "is_sharded": self.is_sharded,
            **self.layout.model_dump(mode="json"),
            **spread_out("tokens_per_second", self.tokens_per_second),
            **spread_out("peak_memory_bytes", self.peak_memory_bytes),
            "fits": self.fits,
            "runs_here": self.runs_here,
            "words": self.words,
        }


class DevicePrice(FrozenModel):
    """What one device costs an hour in USD, on each market where it can be had.

    Attributes:
        on_demand: the price where it can be had at any time; None where it is not offered so.
        spot: the price where it may be taken away; None where it is not offered so.
        basis: what supports it: public list prices, a typical range, an assumption, or the user's own figure.
        source: where it comes from.
        as_of: its date.
    """

    on_demand: Estimate | None
    spot: Estimate | None
    basis: PriceBasis
    source: str
    as_of: date


class PeopleRate(FrozenModel):
    """The cost of one kind of human work.

    Attributes:
        usd_per_hour: the wage with its overhead.
        fixed_hours: hours that do not depend on the number of rows.
        minutes_per_row: minutes for each row that is worked on.
        rows_fraction: the share of the rows that is worked on, 0 to 1.
        basis: what supports the figures.
        source: where they come from.
    """

    usd_per_hour: Estimate
    fixed_hours: Estimate
    minutes_per_row: Estimate
    rows_fraction: Estimate
    basis: PriceBasis
    source: str


class PeopleCost(FrozenModel):
    """Human work for one data set: hours, and USD at its rate.

    Attributes:
        kind: the kind of work.
        hours: hours of all rows.
        usd: cost at its rate.
    """

    kind: PersonKind
    hours: Estimate
    usd: Estimate


class PriceTable(FrozenModel):
    """Prices of one date: devices by name, people by kind, and power for own machines.

    Attributes:
        as_of: its date.
        devices: prices by name of the device.
        people: rates by kind of work.
        electricity_usd_per_kwh: for own devices.
    """

    as_of: date
    devices: dict[str, DevicePrice]
    people: dict[PersonKind, PeopleRate]
    electricity_usd_per_kwh: Estimate

    def usd_per_hour(self, device_name: str, *, market: Market = "on_demand") -> Estimate:
        """The price of one device for an hour.

        Raises:
            RequestError: the table has none, with the nearest name.
        """
        entry = self.devices.get(device_name)
        if entry is None:
            near = get_close_matches(device_name, self.devices, n=3, cutoff=0.5)
            raise RequestError(
                f"no price for device {device_name!r}",
                expected=f"one of {', '.join(self.devices)}",
                do=f"did you mean {' or '.join(near)}?" if near else "add it under `devices` in a file for --prices",
            )
        price = entry.on_demand if market == "on_demand" else entry.spot
        if price is None:
            other = "on_demand" if market == "spot" else "spot"
            raise RequestError(
                f"no {market} price for device {device_name!r}, only {other}",
                expected=f"`{market}` in its entry",
                do=f"add devices.{device_name}.{market} to the file of --prices, or plan with the {other} price",
            )
        return price

    def people_cost(self, num_rows: int) -> tuple[PeopleCost, ...]:
        """Hours and USD of human work, each kind, for a data set of that many rows."""
        found = []
        for kind, rate in self.people.items():
            # minutes_per_row * rows_fraction * num_rows / 60 = hours.
            hours = rate.fixed_hours.plus(rate.minutes_per_row.by(rate.rows_fraction).times(num_rows / 60))
            found.append(PeopleCost(kind=kind, hours=hours, usd=hours.by(rate.usd_per_hour)))
        return tuple(found)


class MemoryPrediction(FrozenModel):
    """Peak memory of one device, part by part, in bytes. The parts add up to `total_bytes.value`.

    Attributes:
        weights_bytes: the base in memory.
        adapters_bytes: what is trained, with its fp32 masters.
        gradients_bytes: the gradients of what is trained.
        optimizer_bytes: the moments of the optimizer.
        activations_bytes: kept for the backward pass, of the largest micro-batch.
        logits_bytes: of the learned tokens.
        generation_bytes: the cache of keys and values while judging.
        runtime_bytes: libraries, context, overhead of the allocator.
        total_bytes: the sum, with its range.
    """

    weights_bytes: float
    adapters_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    logits_bytes: float
    generation_bytes: float
    runtime_bytes: float
    total_bytes: Estimate

    def parts(self) -> dict[str, float]:
        """Each part by its name, in bytes, the largest first."""
        # Iterating over the model keeps the order of its fields, so that equal parts have a fixed order, too.
        named = {name.removesuffix("_bytes"): value for name, value in self if name != "total_bytes"}
        return dict(sorted(named.items(), key=lambda item: -item[1]))


class MachineLoad(FrozenModel):
    """How busy this machine is while a prediction is made.

    Attributes:
        busy_cores: cores that other processes use, 0 to num_cores.
        num_cores: cores that a run may use.
        slowdown: how many times as long products take now as on the quiet machine, 1 or more.
    """

    busy_cores: float
    num_cores: int
    slowdown: float


class Prediction(FrozenModel):
    """What one plan takes on one device.

    Attributes:
        device: the device.
        step_seconds: one training step.
        num_steps: training steps.
        hours: training with its validations and checkpoints, and judging.
        peak_memory: the memory of one device.
        fits: whether that memory is there.
        usd: the cost; None where no price is known, and `notes` says why.
        energy_kwh: the energy; None where no power is known, and `notes` says why.
        calibrated: whether it rests on a probe of this very device.
        flops_per_step: floating-point operations of a step, a multiply-add counted as two.
        tokens_per_second: of training steps.
        load: how busy this machine was; None for another device.
        notes: what limits the prediction, a sentence each.
    """

    device: Device
    step_seconds: Estimate
    num_steps: int
    hours: Estimate
    peak_memory: MemoryPrediction
    fits: bool
    usd: Estimate | None
    energy_kwh: Estimate | None
    calibrated: bool
    flops_per_step: float
    tokens_per_second: Estimate
    load: MachineLoad | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """`predicted` of `luthier plan --json`: each figure with `_low` and `_high`."""
        document: dict[str, Any] = {"device": self.device.model_dump(mode="json"), "num_steps": self.num_steps}
        figures = {
            "step_seconds": self.step_seconds,
            "hours": self.hours,
            "peak_memory_bytes": self.peak_memory.total_bytes,
            "tokens_per_second": self.tokens_per_second,
            "usd": self.usd,
            "energy_kwh": self.energy_kwh,
        }
        for name, estimate in figures.items():
            document |= spread_out(name, estimate)
        return document | {
            "fits": self.fits,
            "calibrated": self.calibrated,
            "flops_per_step": self.flops_per_step,
            "peak_memory_parts_bytes": self.peak_memory.parts(),
            "load": None if self.load is None else self.load.model_dump(mode="json"),
            "notes": list(self.notes),
        }


class Room(FrozenModel):
    """How much of a run fits on one device at one time; 0 where not even one row does.

    Attributes:
        micro_batch_rows: the most rows of `length_tokens` (the run's longest row).
        length_tokens: tokens of the run's longest row.
        longest_row_tokens: the longest row that fits when it is alone, regardless of the model's context.
    """

    micro_batch_rows: int
    length_tokens: int
    longest_row_tokens: int


class Change(FrozenModel):
    """One way to make a run fit.

    Attributes:
        kind: what is changed.
        words: the change for people.
        ask: the option of the command line that does it; empty where none does it yet.
        hours: of the changed run.
        usd: of the changed run; None where no price is known.
        peak_memory_bytes: of the changed run, on one device.
    """

    kind: Literal["micro_batch", "checkpointing", "sharding", "method", "device"]
    words: str
    ask: str
    hours: Estimate
    usd: Estimate | None
    peak_memory_bytes: Estimate


class Option(FrozenModel):
    """One method on one device, as `luthier plan --compare` lists it.

    The figures are those of the changed run, or of the unchanged run where nothing makes it fit.

    Attributes:
        method: the name of the method.
        device: the name of the device.
        fits: whether it does at all, even so.
        needs: what was changed so that it fits; empty where nothing had to be.
        prediction: what it takes.
    """

    method: str
    device: str
    fits: bool
    needs: str
    prediction: Prediction

    def as_json(self) -> dict[str, Any]:
        """One row of `comparison` in `luthier plan --json`."""
        device = self.prediction.device
        figures = self.prediction.as_json() | {"device": self.device, "num_devices": device.num_devices}
        return {"method": self.method, "needs": self.needs} | figures | {"fits": self.fits}


class Quote(FrozenModel):
    """All that one run is expected to cost on one device, before it is run.

    Attributes:
        prediction: time, memory, money and energy of the run.
        hours_by_part: of steps, validations, checkpoints and judging, of reference where an objective needs the model
            at its start, of teacher where one is used, and of grading where models grade the answers of the steps,
            which is not in steps then.
        market: how the device is rented.
        usd_per_hour: price of one device.
        price_basis: what supports that price.
        price_source: where it comes from.
        price_as_of: its date.
        electricity_usd: cost of power where the device is one's own; it is part of the price where the device is
            rented.
        people: human work for all rows, by assumed rates, never part of `prediction.usd`.
        num_rows: rows of all splits that were counted.
        num_tokens: tokens of training.
        room: what fits.
        changes: what would make it fit, cheapest first, where it does not.
        layouts: of several accelerators, the layout of this prediction first, then a faster one that fits; empty where
            there is one device.
    """

    prediction: Prediction
    hours_by_part: dict[str, Estimate]
    market: Market
    usd_per_hour: Estimate
    price_basis: PriceBasis
    price_source: str
    price_as_of: date
    electricity_usd: Estimate | None
    people: tuple[PeopleCost, ...]
    num_rows: int
    num_tokens: int
    room: Room
    changes: tuple[Change, ...] = ()
    layouts: tuple[LayoutOption, ...] = ()

    @property
    def training_hours(self) -> Estimate:
        """Hours of a run that is not evaluated, such as a trial of a study."""
        found = Estimate(value=0.0, low=0.0, high=0.0)
        for name, hours in self.hours_by_part.items():
            found = found if name == "judging" else found.plus(hours)
        return found

    def as_json(self) -> dict[str, Any]:
        """`predicted` of `luthier plan --json`: each figure with `_low` and `_high`."""
        document = self.prediction.as_json()
        for name, hours in self.hours_by_part.items():
            document |= spread_out(f"{name}_hours", hours)
        document |= spread_out("electricity_usd", self.electricity_usd)
        document |= spread_out("usd_per_device_hour", self.usd_per_hour)
        return document | {
            "market": self.market,
            "price_basis": self.price_basis,
            "price_source": self.price_source,
            "price_as_of": self.price_as_of.isoformat(),
            "num_rows": self.num_rows,
            "num_tokens": self.num_tokens,
            "people": [_work_as_json(work) for work in self.people],
            "room": self.room.model_dump(mode="json"),
            "changes": [_change_as_json(change) for change in self.changes],
            "layouts": [layout.as_json() for layout in self.layouts],
        }


def _work_as_json(work: PeopleCost) -> dict[str, Any]:
    return {"kind": work.kind, **spread_out("hours", work.hours), **spread_out("usd", work.usd)}


def _change_as_json(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "words": change.words,
        "ask": change.ask,
        **spread_out("hours", change.hours),
        **spread_out("usd", change.usd),
        **spread_out("peak_memory_bytes", change.peak_memory_bytes),
    }


def spread_out(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate as three entries of a flat document: `name`, `name_low` and `name_high`; None where there is none."""
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
