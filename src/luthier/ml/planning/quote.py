"""The quote of a run: layouts, prediction, price, people's work and what fits, for one device or all of them.

`make_quote` is for one device, `hypothetical_quote` for a run that is only described. `compare` puts every method on
every device side by side, the cheapest first.

Luthier holds whole copies (DDP) or sharded ones (FSDP2), one a device. Tensor, pipeline and expert parallel divide one
copy among devices: other engines do that, and a plan names them where such a layout is clearly faster or is the only
one that fits. docs/scale.md has the figures behind these estimates.

Tensor parallel stays in one machine, since computing waits for it. A pipeline is considered over several machines only:
inside of one its bubble buys nothing that FSDP2 does not give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Final, get_args

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.results.cost import (
    Device,
    Layout,
    LayoutOption,
    MachineLoad,
    Market,
    Option,
    Prediction,
    PriceTable,
    Quote,
)
from luthier.core.text import byte_sizes
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import alternatives_to, load_prices
from luthier.ml.planning.fit import METHOD_TITLES, WorkloadOn, cheapest_changes, made_to_fit, name_of, room, words_of
from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import Calibration, fits, hours_by_part, predict
from luthier.ml.planning.workload import BYTES, WHOLE_COPIES, Sharding, Workload, WorkMethod
from luthier.ml.planning.workload_variants import with_method


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


def hypothetical_quote(
    structure: Structure,
    described: HypotheticalRun,
    device: Device,
    *,
    prices: PriceTable | None = None,
    market: Market = "on_demand",
) -> Quote:
    """The quote of a run of which only the shape of the model is known, rows and a method.

    Where the run does not fit unchanged, the fastest way that trains the same is priced.

    Args:
        structure: of the model.
        described: the run.
        device: where it runs.
        prices: by device; None takes the shipped table.
        market: on demand or spot.

    Raises:
        RequestError: the device has no price on this market, or more devices than a step has rows.
        RecipeError: a rank above that of a matrix.
    """
    return make_quote(
        lambda where: hypothetical_workload(structure, described, where),
        device,
        longest_tokens=described.longest_tokens,
        num_rows=described.num_rows,
        num_tokens=round(described.num_tokens),
        prices=load_prices() if prices is None else prices,
        market=market,
        other_devices=alternatives_to(device),
        takes_what_fits=True,
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


CLEARLY_FASTER: Final = 1.1
"""Another layout is named where it is that many times as fast: the estimates do not resolve smaller gains."""
_ABOUT_AS_FAST: Final = {"copies": 1.05, "experts": 1.3}
_MAX_EXPERT_PARALLEL: Final = 64
_LAYERS_A_STAGE: Final = 2
_METHODS: Final = ("full", "lora")
_MOST_MACHINES_TRIED: Final = 2
"""tests/platform/home/service/test_two_nodes.py."""


def layout_options(
    workload_on: Callable[[Device], Workload],
    workload: Workload,
    device: Device,
    why_not_sharded: str = "",
    *,
    is_supervised: bool = True,
) -> tuple[LayoutOption, ...]:
    """The layout of a run as this project trains it, then the fastest other one that fits, where that is better.

    Others are looked for where their engines train the same: whole models or LoRA, on given rows alone.

    Args:
        workload_on: The run on a number of devices, each with a copy of the model: its batches are those of the copies.
        workload: The run as this project trains it on `device`.
        device: All devices of the run.
        why_not_sharded: Why this project cannot shard the weights of this run, and what to do; empty where it can.
        is_supervised: Whether the run learns from given answers alone (`sft`).

    Returns:
        Nothing for one device, and for a CPU.
    """
    if device.num_devices == 1 or device.is_cpu:
        return ()
    own = _option(workload, device, why_not_sharded, is_own=True)
    if not is_supervised or workload.rollouts or workload.method not in _METHODS or workload.base in ("nf4", "int8"):
        return (own,)

    @cache  # many layouts have as many copies, and counting the batches of a run is what takes time
    def batches_of(copies: int) -> Batches | None:
        try:
            return workload_on(device.model_copy(update={"num_devices": copies})).batches
        except RequestError:  # a step has fewer rows than copies
            return None

    found = [
        _option(fitting, device, why_not_sharded)
        for layout in possible_layouts(workload.structure, device)
        if (batches := batches_of(layout.data_parallel(device.num_devices))) is not None
        and (fitting := _carried_out(replace(workload, batches=batches), device, layout)) is not None
    ]
    about = _ABOUT_AS_FAST["copies"]
    if workload.method == "full" and workload.structure.num_experts:
        # Every published layout of such a model divides its experts, and its estimates are the coarsest.
        about = _ABOUT_AS_FAST["experts"]
        found = [option for option in found if option.layout.expert_parallel > 1]
    fastest = max((option.tokens_per_second.value for option in found), default=0.0)
    # Of layouts that are about as fast, the one that divides a model in the fewest ways.
    near = [option for option in found if about * option.tokens_per_second.value >= fastest]
    best = min(near, key=lambda option: (_num_kinds(option.layout), -option.tokens_per_second.value), default=own)
    if best.title == own.title:
        return (own,)
    wins = best.tokens_per_second.value > CLEARLY_FASTER * own.tokens_per_second.value
    return (own, best) if wins or not own.fits else (own,)


def possible_layouts(structure: Structure, device: Device) -> Iterator[Layout]:
    """All layouts that divide this model evenly over these devices, simple ones first."""
    heads = structure.num_kv_heads or structure.num_heads
    in_machine = min(device.num_devices, device.node_devices or device.num_devices)
    for stages in _powers(structure.num_layers // _LAYERS_A_STAGE if device.num_nodes > 1 else 1):
        for inner in _powers(min(in_machine, heads) if heads else 1):
            if device.num_devices % (stages * inner) or (heads and heads % inner):
                continue
            copies = device.num_devices // (stages * inner)
            for experts in _powers(min(copies, structure.num_experts, _MAX_EXPERT_PARALLEL)):
                if copies % experts == 0 and (experts == 1 or structure.num_experts % experts == 0):
                    yield Layout(tensor_parallel=inner, pipeline_parallel=stages, expert_parallel=experts)


def title_of(workload: Workload, device: Device) -> str:
    """A layout as text, such as `dp 4 (FSDP2) x tp 2`, parts of one device left out."""
    layout = workload.layout
    copies = layout.data_parallel(device.num_devices)
    parts = [f"dp {copies} ({'FSDP2' if workload.sharding == 'fsdp' else 'DDP'})"] if copies > 1 else []
    for name, size in (("tp", layout.tensor_parallel), ("pp", layout.pipeline_parallel)):
        parts += [f"{name} {size}"] if size > 1 else []
    return " x ".join(parts) + (f", ep {layout.expert_parallel}" if layout.expert_parallel > 1 else "")


def _num_kinds(layout: Layout) -> int:
    """In how many ways a copy of the model is divided."""
    return sum(size > 1 for size in (layout.tensor_parallel, layout.pipeline_parallel, layout.expert_parallel))


def _powers(most: int) -> Iterator[int]:
    """1, 2, 4... up to `most`; 1 where that is 0."""
    size = 1
    while size == 1 or size <= most:
        yield size
        size *= 2


def _carried_out(workload: Workload, device: Device, layout: Layout) -> Workload | None:
    """The run in a layout, recomputing activations where it must; None where it does not fit."""
    sharding: Sharding = "fsdp" if layout.data_parallel(device.num_devices) > 1 else "none"
    # The held-out rows are evaluated elsewhere: a user who trains in such a layout does that, too.
    sharded = replace(workload, layout=layout, sharding=sharding, judging=None)
    for is_recomputed in dict.fromkeys((workload.gradient_checkpointing, True)):
        made = replace(sharded, gradient_checkpointing=is_recomputed)
        memory = predict_memory(made, device)
        # What other engines hold is known less well: there the upper end must fit.
        if memory.total_bytes.high <= device.memory_bytes if layout != WHOLE_COPIES else fits(memory, device):
            return made
    return None


def _option(workload: Workload, device: Device, why_not_sharded: str, *, is_own: bool = False) -> LayoutOption:
    made = predict(workload, device)
    is_sharded, is_whole = workload.sharding == "fsdp", workload.layout == WHOLE_COPIES
    lacks = (why_not_sharded if is_sharded else "") if is_whole else _lacking(workload)
    return LayoutOption(
        title=title_of(workload, device),
        layout=workload.layout,
        data_parallel=workload.layout.data_parallel(device.num_devices),
        is_sharded=is_sharded,
        tokens_per_second=made.tokens_per_second,
        peak_memory_bytes=made.peak_memory.total_bytes,
        fits=made.fits,
        runs_here=not lacks,
        words=_words(workload, device, lacks, is_own=is_own),
    )


def _lacking(workload: Workload) -> str:
    """What of a layout Luthier does not have, and which engines do."""
    layout = workload.layout
    sizes = {
        "tensor": layout.tensor_parallel,
        "pipeline": layout.pipeline_parallel,
        "expert": layout.expert_parallel,
    }
    kinds = " and no ".join(name for name, size in sizes.items() if size > 1)
    # These have published figures of LoRA; torchtitan's are of whole models (docs/scale.md).
    engines = ["NeMo AutoModel", *(["torchtitan"] if workload.method == "full" else []), "Megatron Bridge"]
    return f"it has no {kinds} parallelism; {', '.join(engines[:-1])} and {engines[-1]} do (docs/scale.md)"


def _words(workload: Workload, device: Device, lacks: str, *, is_own: bool) -> str:
    if lacks:
        return f"Luthier does not run this layout itself: {lacks}"
    asked = "luthier train RECIPE" + ("" if is_own else f" --set training.sharding={workload.sharding}")
    in_machine = min(device.num_devices, device.node_devices or device.num_devices)
    if device.num_nodes == 1:
        words = f"{asked} --devices {device.num_devices}"
    else:
        words = f"{asked} under torchrun or Ray, {device.num_nodes} machines of {in_machine} (docs/devices.md)"
    if device.num_nodes > _MOST_MACHINES_TRIED:
        words += f"; more than {_MOST_MACHINES_TRIED} machines have not been tried"
    if workload.sharding == "fsdp":
        num_bytes = in_machine * workload.structure.num_parameters * BYTES[workload.base]
        read = byte_sizes.size(num_bytes, in_decimal=True)
        words += f"; each process reads the whole base first: {read} of a machine's own memory"
    return words
