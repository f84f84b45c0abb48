"""Use cases: the quote of a recipe on this machine or another device, of a described run, and which method to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RecipeError, RequestError, StorageFullError
from luthier.core.plan import Plan
from luthier.core.results.cost import Device, MachineLoad, Market, Option, PriceTable, Quote
from luthier.features.models.result_files import QUOTE_NAME, quote_file
from luthier.features.planning.service import Prepared
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.core.records.advice import Advice
    from luthier.core.run import RunRecord
    from luthier.ml.charts.forecast import Forecast
    from luthier.ml.data.tokenise.batches import ReplaySchedule, StepSchedule
    from luthier.ml.planning.batch_shapes import Batches
    from luthier.ml.planning.hypothetical_run import HypotheticalRun
    from luthier.ml.planning.predict import Calibration
    from luthier.ml.planning.workload import Workload

_MAX_STEPS_LOOKED_AT = 2000


def quote_of(
    context: Context,
    prepared: Prepared,
    *,
    on: str | None = None,
    prices: PriceTable | None = None,
    market: Market = "on_demand",
    is_probed: bool = False,
) -> Quote:
    """The price, time and memory of a prepared recipe.

    Args:
        context: The home. Earlier probes of this machine in it are used.
        prepared: The recipe.
        on: `cpu` or NAME[:COUNT]; None is this machine.
        prices: None takes the table that is shipped.
        market: On which devices are rented.
        is_probed: Whether a few real steps are run first, which only this machine can.

    Raises:
        RequestError: An unknown device, one without a price, more devices than a step has rows or that cannot share
            these evenly, or a probe of another device.
        WorkError: A probe fails.
    """
    from luthier.ml.planning.devices import alternatives_to, load_prices
    from luthier.ml.planning.quote import make_quote
    from luthier.ml.planning.resolve_for_device import steps_elsewhere

    # Always needed: probes and the load are those of this machine.
    here, notes = device_for(context, None), list[str]()
    device = here if on is None else device_for(context, on)
    # A probe runs real steps, which no other machine can do from here.
    if is_probed and not _is_same(device, here):
        raise _not_here(str(on))
    calibration = _calibration(context, prepared, device, here, is_probed, notes.append)
    data = prepared.plan.data
    workload_on = _sharded_where_needed(prepared.plan, workloads_of(prepared, here))
    workload = workload_on(device)
    if workload.gradient_checkpointing:
        notes.append("activations are recomputed in the backward pass (training.gradient_checkpointing)")
    splits = (data.train, data.validation, data.held_out)
    return make_quote(
        workload_on,
        device,
        longest_tokens=max(row.num_tokens for unit in prepared.trained_units for row in unit),
        num_rows=sum(split.num_examples for split in splits if split is not None),
        num_tokens=round(workload.num_steps * workload.step_tokens),
        prices=prices if prices is not None else load_prices(),
        market=market,
        calibration=calibration,
        other_devices=alternatives_to(device),
        load=_load_on(context, device, here),
        notes=(*notes, *steps_elsewhere(prepared.plan, device)),
        why_not_sharded=_why_not_sharded(prepared.plan) if device.num_devices > 1 else "",
        is_supervised=prepared.plan.objective.name == "sft",
    )


def _why_not_sharded(plan: Plan) -> str:
    """Why this project cannot shard the weights of a plan, and what to do; empty where it can."""
    from luthier.ml.training.sharding import refuse_unspreadable

    try:
        refuse_unspreadable(plan)
    except RecipeError as error:
        return f"{error.came} is not possible; {error.do}"
    return ""


def _sharded_where_needed(plan: Plan, workload_on: Callable[[Device], Workload]) -> Callable[[Device], Workload]:
    """The run as several devices carry it out where the recipe leaves `sharding` open: sharded if a copy does not fit.

    A run decides so before its first step (features/training/preparation.py).
    """
    from luthier.ml.planning.memory import predict_memory
    from luthier.ml.planning.predict import fits

    def on(device: Device) -> Workload:
        workload = workload_on(device)
        if device.num_devices == 1 or plan.training.sharding != "auto":
            return workload
        if fits(predict_memory(workload, device), device) or _why_not_sharded(plan):
            return workload
        return replace(workload, sharding="fsdp")

    return on


def compare_options(
    context: Context,
    prepared: Prepared,
    *,
    on: Sequence[str] = (),
    prices: PriceTable | None = None,
    market: Market = "on_demand",
    is_probed: bool = False,
) -> tuple[Option, ...]:
    """Every method on every device, those that fit first, the cheapest first.

    Args:
        context: of the home.
        prepared: the plan and its rows.
        on: device names; empty takes this machine and one of each in the table.
        prices: by device; None takes the shipped table.
        market: on-demand or spot prices.
        is_probed: whether steps are measured on this machine first.

    Raises:
        RequestError: a device is unknown, or has more processes than a step has rows.
        WorkError: a probe fails.
    """
    from luthier.ml.planning import quote as options
    from luthier.ml.planning.devices import accelerators, load_prices

    here = device_for(context, None)
    devices = [device_for(context, name) for name in on] if on else [here, *accelerators()]
    # This machine may also be in the table; it must not be listed twice.
    devices = list({(device.name, device.num_devices): device for device in devices}.values())
    if is_probed and not any(_is_same(device, here) for device in devices):
        raise _not_here(", ".join(on))
    calibrations = {}
    for device in devices:
        is_measured = is_probed and _is_same(device, here)
        found = _calibration(context, prepared, device, here, is_measured, lambda _: None)
        if found is not None:
            calibrations[device.title] = found
    return options.compare(
        workloads_of(prepared, here),
        devices,
        longest_tokens=max(row.num_tokens for unit in prepared.trained_units for row in unit),
        prices=prices if prices is not None else load_prices(),
        market=market,
        calibrations=calibrations,
        loads={device.title: load for device in devices if (load := _load_on(context, device, here)) is not None},
    )


def device_for(context: Context, name: str | None) -> Device:
    """The device of a name, or of this machine where there is none.

    Raises:
        RequestError: an unknown one.
    """
    from luthier.ml.planning.devices import device_of, this_machine
    from luthier.platform.home.hardware_benchmark import hardware_of

    hardware = hardware_of(context)
    return this_machine(hardware) if name is None else device_of(name, hardware)


def workloads_of(prepared: Prepared, here: Device) -> Callable[[Device], Workload]:
    """The run as each device would carry it out, its batches counted from the very rows.

    Args:
        prepared: the run.
        here: this machine.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.hypothetical_run import refuse_idle_devices
    from luthier.ml.planning.resolve_for_device import chosen_on, with_steps_on
    from luthier.ml.planning.workload import packs_on, workload_of
    from luthier.ml.training.distributed import refuse_unequal_shares

    structure = read_structure(prepared.model.path)
    known: dict[tuple[int, int, bool, int, int], Batches] = {}

    def on(device: Device) -> Workload:
        plan = with_steps_on(prepared.plan, device)
        size, least = plan.training.global_batch_size, plan.training.min_micro_batches
        # A device without a row in a step would be paid for and wait; a run refuses what it cannot share evenly.
        refuse_idle_devices(min(size, plan.data.train.num_examples), device)
        refuse_unequal_shares(size, device.num_devices)
        # Many devices cut the steps in the same way, and counting the batches is the slow part of a comparison.
        key = (_micro_batch_tokens(prepared, device), device.num_devices, packs_on(plan, device), size, least)
        if key not in known:
            its = replace(prepared, plan=plan)
            known[key] = exact_batches(its, micro_batch_tokens=key[0], num_devices=key[1], packs=key[2])
        workload = workload_of(plan, structure, device, batches=known[key])
        if device.title == here.title:
            return workload
        # As a plan that is made there decides: for one device, whose memory may need activations computed again.
        one = device.model_copy(update={"num_devices": 1})
        alone = replace(workload_of(plan, structure, one), is_compiled=False)
        return replace(workload, gradient_checkpointing=chosen_on(plan, alone, one).gradient_checkpointing)

    return on


def exact_batches(prepared: Prepared, *, micro_batch_tokens: int, num_devices: int = 1, packs: bool = False) -> Batches:
    """The batches of the run's own schedule, up to its first 2,000 steps; devices share the rows of a step evenly.

    Args:
        prepared: the plan and its rows.
        micro_batch_tokens: most tokens of a micro-batch, padding included.
        num_devices: among which the rows of a step are divided.
        packs: whether rows are packed without padding.
    """
    from luthier.features.planning import batch_schedules as schedules
    from luthier.ml.planning.batch_shapes import batches_of, splits_by_length

    training, units = prepared.plan.training, prepared.trained_units
    schedule = schedules.of_training(
        prepared, shares_prefix=training.shared_prefix, packs=packs, micro_batch_tokens=micro_batch_tokens
    )
    # Their rows are not known before they are drawn, so the longest are taken.
    if prepared.plan.objective.draws:
        return _drawn_batches(prepared, schedule, micro_batch_tokens, num_devices)
    steps: list[list[tuple[int, ...]]] = []
    # More steps would change the mean by little, and take long to count.
    for number in range(min(training.num_steps, _MAX_STEPS_LOOKED_AT)):
        batches = schedule.step(number)
        # Steps of a stream are full; among its first rows the last one of each pass is not.
        is_part = prepared.train.stream is not None and sum(map(len, batches)) < training.global_batch_size
        if steps and is_part:
            continue
        # Ceiling division: the device with the most rows decides how long a step takes.
        share = -(-sum(map(len, batches)) // num_devices)
        steps.append([batch[i : i + share] for batch in batches for i in range(0, len(batch), share)])
    return batches_of(
        [[[row.num_tokens for i in batch for row in units[i]] for batch in step] for step in steps],
        learned_fraction=_num_learned(prepared, units) / sum(row.num_tokens for unit in units for row in unit),
        shared=[[schedule.shared_tokens(batch) for batch in step] for step in steps],
        apart=splits_by_length(prepared.plan.objective),
    )


def _drawn_batches(
    prepared: Prepared, schedule: StepSchedule | ReplaySchedule, micro_batch_tokens: int, num_devices: int
) -> Batches:
    """The same of steps that draw their answers, all as long as they may be."""
    from luthier.features.planning import batch_schedules as schedules
    from luthier.ml.planning.batch_shapes import batches_of

    num_steps = min(prepared.plan.training.num_steps, _MAX_STEPS_LOOKED_AT)
    steps = [
        schedules.shapes_of_drawn(prepared, schedule, number, micro_batch_tokens, num_devices)
        for number in range(num_steps)
    ]
    rows = [row for step in steps for _, rows in step for row in rows]
    return batches_of(
        [[[row[0] for row in rows] for _, rows in step] for step in steps],
        learned_fraction=sum(row[1] for row in rows) / sum(row[0] for row in rows),
        shared=[[prefixes for prefixes, _ in step] for step in steps],
    )


def _num_learned(prepared: Prepared, units: Sequence[Sequence[TokenisedExample]]) -> int:
    """Tokens of all rows at which a loss is computed: the learned ones, and what ORPO uses in addition."""
    learned = sum(row.num_trained_tokens for unit in units for row in unit)
    if prepared.plan.objective.nll_over == "all":
        # ORPO adds the likelihood of the whole chosen row; its first token has nothing before it to be predicted from.
        learned += sum(unit[0].num_tokens - 1 - unit[0].num_trained_tokens for unit in units)
    return learned


def save_quote(
    context: Context, run_id: str, prepared: Prepared, prices: Path | None = None, *, num_devices: int = 1
) -> Quote | str:
    """The quote of a run on this machine, kept in its folder for the report; or why there is none.

    A run must not fail because of its quote: a device that the table lacks has none.

    Args:
        context: The home.
        run_id: Of the run.
        prepared: Its plan and rows.
        prices: A file whose entries replace those of the table that is shipped.
        num_devices: Accelerators like this machine's that train it together; processes on a CPU share one machine.
    """
    from luthier.core.system.files import replace_text
    from luthier.ml.planning.devices import load_prices

    try:
        device = device_for(context, None)
        # Processes on a CPU share its cores, so they are no more of a machine.
        on = None if device.is_cpu or num_devices == 1 else f"{device.name}:{num_devices}"
        quote = quote_of(context, prepared, on=on, prices=load_prices(prices))
    except RequestError as error:
        return f"no prediction: {error.came}"
    folder = context.settings.run_folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(StorageFullError):  # the run's own first file reports it, and closes its record
        replace_text(folder / QUOTE_NAME, quote.model_dump_json(indent=1) + "\n")
    return quote


def load_quote(context: Context, run_id: str) -> Quote | None:
    """The quote that was kept for a run; None where there is none that can be read."""
    try:
        return Quote.model_validate_json(quote_file(context, run_id).read_bytes())
    except (OSError, ValueError):
        return None


def forecast_of_run(context: Context, record: RunRecord) -> Forecast | None:
    """The prediction of a run and its actual cost; None where no prediction was stored."""
    from luthier.ml.charts.forecast import forecast_of

    validations = context.runs.of_kinds(record.run_id, ["validation"])
    return forecast_of(record, validations, load_quote(context, record.run_id))


def _micro_batch_tokens(prepared: Prepared, device: Device) -> int:
    """The requested budget, or what the plan would have taken on that device."""
    from luthier.ml.planning.hypothetical_run import usual_micro_batch_tokens

    plan = prepared.plan
    source = plan.sources["training.micro_batch_tokens"].source
    is_alike = device.is_cpu == (plan.training.device == "cpu")
    if source == "asked" or (source == "derived" and is_alike):
        return plan.training.micro_batch_tokens
    return usual_micro_batch_tokens(device, plan.data.train.max_tokens)


def _not_here(asked: str) -> RequestError:
    return RequestError(
        f"a probe of {asked}",
        expected="this machine: a probe runs real steps on it",
        do="leave --probe or --on out, or probe on a machine that has the device",
    )


def _load_on(context: Context, device: Device, here: Device) -> MachineLoad | None:
    """How busy the device is now; None where it is not this machine's CPU."""
    from luthier.platform.home.hardware_benchmark import load_of

    return load_of(context) if device.is_cpu and _is_same(device, here) else None


def _is_same(device: Device, here: Device) -> bool:
    return (device.title, device.num_devices) == (here.title, here.num_devices)


def _calibration(
    context: Context,
    prepared: Prepared,
    device: Device,
    here: Device,
    is_probed: bool,
    tell: Callable[[str], None],
) -> Calibration | None:
    from luthier.features.planning import probes

    if is_probed:
        return probes.probe(context, prepared)
    return probes.stored(context, device, prepared.plan, tell=tell) if _is_same(device, here) else None


def estimate_quote(
    model: Path,
    described: HypotheticalRun,
    *,
    on: str,
    prices: PriceTable | None = None,
    market: Market = "on_demand",
) -> Quote:
    """The price, time and memory of a described run of a model on a device, part by part.

    Where the run does not fit unchanged, the fastest way that trains the same is priced, and the quote's notes say what
    was changed; where none fits, the quote says what would.

    Args:
        model: a folder with config.json; weights are not needed.
        described: the run.
        on: `cpu` or NAME[:COUNT].
        prices: by device; None takes the shipped table.
        market: on-demand or spot prices.

    Raises:
        ModelSourceError: the folder has no config that can be read.
        RequestError: the device is unknown or has no price, or no run has such numbers.
        RecipeError: a rank is above that of a matrix.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import hardware
    from luthier.ml.planning.devices import device_of
    from luthier.ml.planning.quote import hypothetical_quote

    device = device_of(on, hardware.measure())
    return hypothetical_quote(read_structure(str(model)), described, device, prices=prices, market=market)


def advise(context: Context, prepared: Prepared, *, on: str | None = None, prices: PriceTable | None = None) -> Advice:
    """The method to take for these rows on a device (None: this machine), within the recipe's budget.

    Raises:
        RequestError: an unknown device.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import fit as rules
    from luthier.ml.planning.adapter import place_adapters, targeted
    from luthier.ml.planning.fit import name_of
    from luthier.ml.planning.workload import work_method

    plan, recipe = prepared.plan, prepared.plan.recipe
    structure = read_structure(prepared.model.path)
    asked = recipe.method.targets if recipe.method and recipe.method.targets else "all-linear"
    # At the highest rank that is advised: a gate that is left out there must not keep all ranks below its own.
    place = place_adapters(structure, asked, rank=rules.MAX_RANK)
    # Experts count only where nothing else is adapted: their rank is a share of the others'.
    layers = targeted(structure, place.targets) or targeted(structure, (), place.expert_targets)
    name = on or name_of(device_for(context, None))
    found = rules.advise(
        compare_options(context, prepared, on=[name], prices=prices),
        rules.DataFacts(
            num_examples=plan.data.train.num_examples,
            num_learned_tokens=plan.data.train.num_trained_tokens,
            num_steps=plan.training.num_steps,
            parameters_per_rank=sum(layer.num_inputs + layer.num_outputs for layer in layers),
            largest_rank=min(layer.full_rank for layer in layers),
            asked_rank=(recipe.method.rank or recipe.method.target_rank) if recipe.method else None,
            asked_method=work_method(recipe.method.name) if recipe.method else None,
        ),
        recipe.budget,
    )
    return found.model_copy(update={"reasons": (*found.reasons, *head_advice(context, prepared, on=on))})


def head_advice(context: Context, prepared: Prepared, *, on: str | None = None) -> tuple[str, ...]:
    """What a task head would save on a device, where the recipe has the model write answers that are labels.

    Raises:
        RequestError: an unknown device.
    """
    from luthier.ml.charts import figures
    from luthier.ml.evaluation.metrics.classification import answer_labels
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.speed import judging_seconds, step_seconds
    from luthier.ml.planning.workload import workload_of

    held_out = prepared.held_out
    if prepared.plan.objective.name != "sft" or held_out is None:
        return ()
    held, train = ([row.reference or "" for row in one.good_examples] for one in (held_out, prepared.train))
    if not (labels := answer_labels(held, train)):
        return ()
    structure, device = read_structure(prepared.model.path), device_for(context, on)
    # Batches are estimated, not counted: a step is only the pace at which rows are read.
    workload = workload_of(prepared.plan, structure, device)
    if (judging := workload.judging) is None:
        return ()

    plain = replace(judging, systems=(True,), scores=False, measures_kl=False, teacher_share=0.0)
    plain = replace(plain, num_drawn=0, num_nearest=0, search_tokens=0, num_labelled=0, num_other_runs=0)

    def seconds(*, writes: bool = False, num_read: int = 0) -> float:
        own = replace(workload, judging=replace(plain, writes=writes, num_read=num_read))
        return judging_seconds(own, device, step_seconds(own, device)).value

    # Loading the models takes the same time in both ways.
    loading = seconds()
    reading, writing = seconds(num_read=judging.num_rows) - loading, seconds(writes=True) - loading
    took = [figures.with_spaces(figures.duration(value)) for value in (reading, writing)]
    return (
        f"the answers are {len(labels)} labels: with objective {{name: classify}} the tuned model reads each of the "
        f"{judging.num_rows:,} evaluated rows once and writes nothing, about {took[0]} instead of {took[1]}, and gives "
        "a probability for each label (docs/heads.md)",
    )
