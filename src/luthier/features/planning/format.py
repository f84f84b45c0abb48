"""Plans, quotes, bills and advice as text.

The plan is a few lines shown before training; all of it is in `luthier plan` and in the report. A quote lists memory by
part, time, money, power and people, what fits and what would. Advice names the recommended method, why, and the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import DatasetProfile, reading_notes, sequence_notes
from luthier.core.estimate import Estimate
from luthier.core.plan import DataPlan, MethodPlan, Plan
from luthier.core.results.cost import Quote
from luthier.core.run import Bill, BudgetPlan, JudgeBill
from luthier.core.text.counted import counted
from luthier.core.text.target_modules import target_summary
from luthier.platform.cli import figures

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.advice import Advice
    from luthier.core.results.cost import Change, Device, Option

_BAR_WIDTH: Final = 32
_NUM_OPTIONS_SHOWN: Final = 20
_MAX_TOKENS_TRIED: Final = 1 << 24
NOT_IN_IT: Final = "starting a machine and fetching the base model are not in time or money"
_BASIS: Final = {
    "list_prices": "public list prices",
    "typical_range": "a typical range",
    "assumption": "an assumption",
    "own": "your own price",
}


def show_quote(console: Console, quote: Quote) -> None:
    """Print the whole quote."""
    from luthier.platform.cli.console import facts, visible

    device = quote.prediction.device
    title = device.title if device.num_devices == 1 else f"{device.num_devices} x {device.title}"
    console.print(f"\nquote for {visible(title)}", style="bold", soft_wrap=True)
    show_memory(console, quote)
    rows = [
        ("time", time_line(quote)),
        *(("grading", line) for line in _grading_time(quote)),
        ("speed", _speed(quote)),
        ("money", money_line(quote)),
        ("power", _power(quote)),
        *(("layout", line) for line in layout_lines(quote)),
    ]
    rows += [("people", line) for line in _people(quote)]
    rows.append(("room", _room(quote)))
    facts(console, rows)
    for note in (NOT_IN_IT, *quote.prediction.notes):
        console.print(f"note: {visible(note)}", soft_wrap=True)
    if not quote.prediction.fits:
        show_changes(console, quote.changes, device)


def show_memory(console: Console, quote: Quote) -> None:
    """The peak of memory, part by part with bars, and whether it fits."""
    prediction, memory = quote.prediction, quote.prediction.peak_memory
    each = " on each device" if prediction.device.num_devices > 1 else ""
    word = "fits" if prediction.fits else "does not fit"
    total = _memory(memory.total_bytes, prediction.device)
    console.print(f"memory  {total}{each} of {_size(prediction.device.memory_bytes)}: {word}", soft_wrap=True)
    # Other encodings lack the blocks, and printing them would raise.
    mark, little = ("\u2588", "\u258f") if console.encoding.lower().startswith("utf") else ("#", ".")
    # Bars are relative to the largest part, not to the device, so that small models show bars as well.
    largest = max(memory.parts().values())
    for name, num_bytes in memory.parts().items():
        if num_bytes:
            # A part that rounds to no mark at all still shows a sliver.
            bar = mark * round(num_bytes / largest * _BAR_WIDTH) or little
            console.print(f"  {name:<12}{_size(num_bytes, prediction.device.memory_bytes):>9}  {bar}", soft_wrap=True)


def time_line(quote: Quote) -> str:
    """Hours and what they are made of: `42 min (30 min to 1 h): 180 steps of 12 s, validations 2 min, ...`."""
    prediction = quote.prediction
    step = figures.between(prediction.step_seconds, figures.duration)
    parts = [f"{counted(prediction.num_steps, 'step')} of {step}"]
    if (grading := quote.hours_by_part.get("grading")) is not None:
        parts.append(f"{figures.duration(grading.value * 3600)} of these for grading by models")
    for name in ("reference", "teacher", "validations", "checkpoints", "judging"):
        if name in quote.hours_by_part and quote.hours_by_part[name].value:
            parts.append(f"{name} {figures.duration(quote.hours_by_part[name].value * 3600)}")
    return f"{figures.between(prediction.hours.times(3600), figures.duration)}: {', '.join(parts)}"


def _grading_time(quote: Quote) -> list[str]:
    """What models that grade take of the steps; nothing where none grades."""
    if (grading := quote.hours_by_part.get("grading")) is None:
        return []
    count = quote.prediction.num_steps
    of_step = figures.between(grading.times(3600 / count), figures.duration)
    whole = figures.between(grading.times(3600), figures.duration)
    return [f"{of_step} of a step, {whole} in all: models that grade the answers"]


def money_line(quote: Quote) -> str:
    """USD, its price, the source of the price, and its date."""
    # Predictions of a comparison may lack one; `quote_of` refuses devices without.
    assert quote.prediction.usd is not None, "a quote has a price"
    market = "on demand" if quote.market == "on_demand" else "spot"
    each = " a device" if quote.prediction.device.num_devices > 1 else ""
    price = figures.between(quote.usd_per_hour, figures.usd)
    return (
        f"{figures.between(quote.prediction.usd, figures.usd)} rented, {market}, at {price} an hour{each} "
        f"({_BASIS[quote.price_basis]}, {quote.price_as_of.isoformat()})"
    )


def load_lines(quote: Quote) -> list[str]:
    """How busy this machine is while the prediction is made; nothing on a quiet one, or for another device."""
    load = quote.prediction.load
    if load is None or load.slowdown <= 1:
        return []
    return [
        f"  load       other processes use {load.busy_cores:.1f} of {load.num_cores} cores now: if that lasts, up to "
        f"{figures.duration(quote.prediction.hours.high * 3600)}"
    ]


def layout_lines(quote: Quote) -> list[str]:
    """How several accelerators share the run, and a better layout where there is one; nothing for one device."""
    lines = []
    for option in quote.layouts:
        speed = figures.between(option.tokens_per_second, lambda rate: f"{figures.number(rate)} tokens/s")
        memory = _memory(option.peak_memory_bytes, quote.prediction.device)
        fits = "" if option.fits else " (does not fit)"
        lines.append(f"{option.title}: {speed}, {memory} a device{fits}; {option.words}")
    return lines


def show_changes(console: Console, changes: Sequence[Change], device: Device) -> None:
    """What makes it fit the device, the least given up first."""
    from luthier.platform.cli.console import visible

    if not changes:
        console.print("no known change makes it fit", soft_wrap=True)
        return
    console.print("to make it fit, the smallest change first:", soft_wrap=True)
    for place, change in enumerate(changes, start=1):
        usd = "" if change.usd is None else f", {figures.between(change.usd, figures.usd)}"
        cost = f"{figures.between(change.hours.times(3600), figures.duration)}{usd}"
        memory = _memory(change.peak_memory_bytes, device)
        console.print(f"  {place}. {visible(change.words)}: {cost}, {memory}", soft_wrap=True)
        if change.ask:
            console.print(f"     {change.ask}", soft_wrap=True)


def show_options(console: Console, options: Sequence[Option]) -> None:
    """The comparison as a table, this machine always in it; what does not fit, or is too far down, is below it."""
    from luthier.platform.cli.console import make_table, visible

    table = make_table(["method", "device", "fits", "time", "USD", "energy kWh"], num_text_columns=3)
    # They come cheapest first.
    fitting = [option for option in options if option.fits]
    shown = [o for place, o in enumerate(fitting) if place < _NUM_OPTIONS_SHOWN or o.prediction.device.is_cpu]
    for option in shown:
        made = option.prediction
        table.add_row(
            option.method,
            option.device,
            f"with {option.needs}" if option.needs else "as it is",
            figures.between(made.hours.times(3600), figures.duration),
            "-" if made.usd is None else figures.between(made.usd, figures.short),
            "-" if made.energy_kwh is None else figures.between(made.energy_kwh, figures.short),
        )
    console.print(table)
    if len(fitting) > len(shown):
        console.print(f"{len(fitting) - len(shown):,} more expensive ones that fit: see --json", soft_wrap=True)
    # By method: one line for each instead of one for each pair.
    lacking: dict[str, list[str]] = {}
    for option in options:
        if not option.fits:
            lacking.setdefault(option.method, []).append(option.device)
    for method, names in lacking.items():
        console.print(f"{method} does not fit on {visible(', '.join(names))}", soft_wrap=True)
    console.print(f"note: {NOT_IN_IT}", soft_wrap=True)
    # Notes repeat from option to option; `dict.fromkeys` keeps each once, in order.
    for note in dict.fromkeys(note for option in options for note in option.prediction.notes if "price" in note):
        console.print(f"note: {visible(note)}", soft_wrap=True)


def quote_lines(quote: Quote | str) -> list[str]:
    """The quote in a few lines, for the plan that `luthier train` shows; or why there is none."""
    if isinstance(quote, str):
        return [f"  {quote}"]
    prediction = quote.prediction
    memory = _memory(prediction.peak_memory.total_bytes, prediction.device)
    basis = "probed" if prediction.calibrated else "no probe yet, `luthier plan RECIPE --probe` narrows this"
    lines = [
        f"  predicted  {time_line(quote)} ({basis})",
        *(f"  grading    {line}" for line in _grading_time(quote)),
        *load_lines(quote),
        f"  memory     {memory} of {_size(prediction.device.memory_bytes)}",
        f"  money      {money_line(quote)}",
    ]
    if not prediction.fits:
        first = quote.changes[0] if quote.changes else None
        lines[-2] += ": does not fit" + (f"; try {first.words}: {first.ask}" if first else "")
    return [*lines, *(f"  layout     {line}" for line in layout_lines(quote))]


def _speed(quote: Quote) -> str:
    tokens = figures.between(quote.prediction.tokens_per_second, lambda rate: f"{figures.number(rate)} tokens/s")
    return f"{tokens}; {figures.count(quote.num_tokens)} tokens in all"


def _power(quote: Quote) -> str:
    energy = quote.prediction.energy_kwh
    if energy is None or quote.electricity_usd is None:
        return "not known for this device"
    own = figures.between(quote.electricity_usd, figures.usd)
    return f"{figures.between(energy, lambda kwh: f'{figures.short(kwh)} kWh')}: {own} where the machine is your own"


def _people(quote: Quote) -> list[str]:
    lines = [
        f"{work.kind.replace('_', ' ')} of {counted(quote.num_rows, 'row')}, if done manually: "
        f"{figures.between(work.hours, lambda hours: f'{figures.short(hours)} h')}, "
        f"{figures.between(work.usd, figures.usd)}"
        for work in quote.people
    ]
    return [*lines, "at assumed rates, and not part of the money above: set your own with --prices"]


def _room(quote: Quote) -> str:
    room = quote.room
    if not room.longest_row_tokens:
        return "none: not even one row fits"
    rows = f"{room.micro_batch_rows:,} of the longest rows ({room.length_tokens:,} tokens) in one micro-batch"
    more = " or more" if room.longest_row_tokens >= _MAX_TOKENS_TRIED else ""
    return f"{rows}; one row of up to {room.longest_row_tokens:,} tokens{more} alone"


def _size(num_bytes: float, beside: float | None = None) -> str:
    return figures.size(round(num_bytes), beside)


def _memory(needed: Estimate, device: Device) -> str:
    """Memory with its range, in the unit of the memory that is there."""
    return figures.between(needed, lambda value: _size(value, device.memory_bytes))


def bill_line(bill: Bill) -> str:
    """What is spent, and the expected total, on one line."""
    done = bill.left_seconds <= 0
    parts = [_hours(bill, done)]
    for unit, now, end in (("USD", bill.usd, bill.final_usd), ("kWh", bill.energy_kwh, bill.final_energy_kwh)):
        if now is not None and end is not None:
            parts.append(
                f"{_between(now)} {unit}" if done else f"{figures.number(now.value)} of {_between(end)} {unit}"
            )
    lost = f"; {figures.duration(bill.interrupted_hours * 3600)} of it lost to kills" if bill.interrupted_hours else ""
    return f"spent {', '.join(parts)}{lost}{_judges_paid(bill.judges)}"


def _judges_paid(judges: JudgeBill | None) -> str:
    if judges is None:
        return ""
    money = "" if judges.usd is None else f", {figures.number(judges.usd)} USD of it"
    return (
        f"; judges behind servers: {counted(judges.calls, 'call')}, {counted(judges.prompt_tokens, 'token')} of "
        f"questions, {judges.new_tokens:,} of replies{money}"
    )


def budget_lines(budget: BudgetPlan) -> list[str]:
    """The caps of a run and the rates that they are counted at; nothing where there is no cap."""
    caps = [
        f"{figures.plain(value)} {unit}"
        for value, unit in (
            (budget.hours, "hours"),
            (budget.usd, "USD"),
            (budget.tokens, "tokens"),
            (budget.energy_kwh, "kWh"),
        )
        if value is not None
    ]
    if not caps:
        return []
    rates = []
    if budget.usd is not None and budget.usd_per_hour is not None:
        rates.append(
            f"money at {figures.number(budget.usd_per_hour.high)} USD an hour, the upper end of {budget.price_source}"
        )
    if budget.energy_kwh is not None and budget.watts is not None:
        rates.append(f"energy at {figures.number(budget.watts.high)} W, the upper end of {budget.watts_source}")
    counted = f" (counted: {'; '.join(rates)})" if rates else ""
    return [f"at most {', '.join(caps)}{counted}; evaluation counts, too"]


def _hours(bill: Bill, done: bool) -> str:
    now = figures.duration(bill.hours * 3600)
    if done:
        return now
    low, high = (figures.duration(end * 3600) for end in (bill.final_hours.low, bill.final_hours.high))
    return f"{now} of about {figures.duration(bill.final_hours.value * 3600)} [{low}, {high}]"


def _between(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return figures.number(estimate.value)
    return f"{figures.number(estimate.value)} [{figures.number(estimate.low)}, {figures.number(estimate.high)}]"


def show_plan(run_id: str, plan: Plan, quote: Quote | str) -> None:
    """Print the plan of a run and what it is predicted to take on stderr, where the progress goes."""
    from luthier.platform.cli.console import stderr_console

    console = stderr_console()
    for line in [*plan_lines(run_id, plan), *quote_lines(quote)]:
        console.print(line, soft_wrap=True)


def plan_lines(run_id: str, plan: Plan, device: Device | None = None) -> list[str]:
    """Run, rows, what is trained, how long, how precise and how it is evaluated: one line each.

    Args:
        run_id: Empty for a plan that is not run.
        plan: of the run.
        device: the one that the quote is for; None for this machine's.
    """
    from luthier.platform.cli.console import visible

    training, method, data = plan.training, plan.method, plan.data
    # A split that is missing is shown as "none": that nothing is evaluated must be seen.
    splits = {"train": data.train, "validation": data.validation, "held-out": data.held_out}
    rows = ", ".join(_rows(name, found) for name, found in splits.items())
    if data.stream is not None:
        others = ", ".join(_rows(name, found) for name, found in splits.items() if name != "train")
        is_known = data.stream.num_rows is not None
        rows = rows.replace("train ", "train about ", 1) if is_known else f"train of unknown number, {others}"
    # Says at a glance whether an adapter or the whole model is trained.
    share = method.num_trainable_parameters / plan.base_model.num_parameters
    what = _what_is_trained(method)
    judged = f"{', '.join(plan.evaluation.metrics)}" if data.held_out else "nothing: the recipe names no held-out rows"
    return [
        *([f"run {run_id}, plan {plan.hash[:12]}"] if run_id else ()),
        f"  rows       {rows}",
        *(f"  source     {one.split.replace('_', '-')} {visible(one.summary)}" for one in data.sources),
        *([f"  stream     {data.stream.summary}"] if data.stream else ()),
        *(f"  columns    {visible(note)}" for note in data_notes(data)),
        *_replay_line(data),
        *(
            [f"  canaries   {data.canaries.num:,} made-up secrets planted among the training rows"]
            if data.canaries
            else ()
        ),
        *(f"  task head  {visible(note)}" for note in plan.objective.task_head_notes),
        f"  method     {method.name}, {what}: {method.num_trainable_parameters:,} parameters, {share:.2%} of the base",
        f"  training   {counted(training.num_steps, 'step')} of {counted(training.global_batch_size, 'example')}"
        f"{_step_tokens(plan)}{_updates(plan)}, peak learning rate {training.learning_rate:g} "
        f"({training.schedule}{_end_of_rate(training.min_lr_ratio)})",
        *(f"  graded by  {visible(line)}" for line in _graders_of(plan)),
        f"  precision  {_precision(plan, device)}",
        f"  evaluated  {judged}",
        *(f"  budget     {line}" for line in (budget_lines(plan.budget) if plan.budget else ())),
        *_tracking_lines(plan),
    ]


def _step_tokens(plan: Plan) -> str:
    """The tokens of a step on average, where the recipe sets the batch by tokens; else empty."""
    if plan.recipe.training is None or plan.recipe.training.global_batch_tokens is None:
        return ""
    rows, asked = plan.data.train, plan.recipe.training.global_batch_tokens
    mean = min(plan.training.global_batch_size, rows.num_examples) * rows.num_tokens / rows.num_examples
    return f" (about {mean:,.0f} tokens; training.global_batch_tokens {asked:,})"


def _graders_of(plan: Plan) -> list[str]:
    """Each grader that asks a model: which one, how often, and with how many tokens; and those that run code."""
    from luthier.features.planning.remote_judges import cost_line, judge_costs

    objective, training = plan.objective, plan.training
    num_answers = training.global_batch_size * (objective.num_samples or 0)
    lines = []
    for one in objective.grading or ():
        read = one.answers_read * (objective.max_new_tokens or 0)
        answer = f" and up to {figures.count(read)} of the answer" if read else ""
        lines.append(
            f"{one.judge} ({one.grader}): {counted(num_answers, 'question')} a step of about "
            f"{figures.count(round(one.prompt_tokens))} tokens{answer}, replies of up to "
            f"{counted(one.new_tokens, 'token')}"
        )
    lines += [cost_line(one) for one in judge_costs(plan)]
    code = [one.name for reward in objective.rewards or () for one in reward.code]
    return [*lines, *(f"code ({name}), locked down: its time is not in the prediction" for name in code)]


def _updates(plan: Plan) -> str:
    """How often a step updates the weights, where that is not once."""
    num = plan.objective.num_iterations or 1
    return f" and {num:,} updates" if num > 1 else ""


def _end_of_rate(ratio: float) -> str:
    return f" to {ratio:g} of it" if ratio else ""


def _precision(plan: Plan, device: Device | None) -> str:
    """What is computed in, and where the quote is for a device that computes in something else, that as well."""
    from luthier.ml.planning.workload import plan_precision_on

    here = f"{plan.training.precision}: {plan.sources['training.precision'].why}"
    if device is None or (there := plan_precision_on(plan, device)) == plan.training.precision:
        return here
    return f"{there} on {device.title}; on this machine {here}"


def _tracking_lines(plan: Plan) -> list[str]:
    """The trackers of a plan, and why one that the environment names is not used."""
    from luthier.platform.cli.console import visible

    source = plan.sources.get("tracking")
    lines = [visible(one.summary) + (f" ({one.source} is set)" if one.source else "") for one in plan.tracking]
    if source is not None and not lines:
        lines = [f"none: {source.why}"]
    return [f"  tracker    {line}" for line in lines]


def data_notes(data: DataPlan) -> list[str]:
    """How the files of a plan were read, where that is more than every row with the fields of its shape."""
    # General rows that are mixed in are read by the same rules, so their files are named as well.
    replay = (data.replay.rows, data.replay.held_out) if data.replay else ()
    profiles = (data.train, data.validation, data.held_out, *replay)
    there = [one for one in profiles if one is not None]
    written = [note for one in there for _, note in sequence_notes(one)]
    return [*reading_notes((one.file, one.shape_reason) for one in there), *written]


def _replay_line(data: DataPlan) -> list[str]:
    replay = data.replay
    if replay is None:
        return []
    replayed, judged = replay.rows, replay.held_out
    rows = (
        f"{replay.num_per_step} of each step, from {counted(replayed.num_examples, 'general row')}"
        if replayed
        else "no rows"
    )
    held_out = f"; forgetting is measured on {judged.num_examples:,} others" if judged else ""
    return [f"  replay     {rows}{held_out}"]


def _rows(name: str, found: DatasetProfile | None) -> str:
    """`train 120 (48k tokens)`; of texts how they fill blocks, and how many had to be cut."""
    if found is None:
        return f"{name} none"
    tokens = f"{figures.count(found.num_tokens)} tokens"
    if (packed := found.packed) is None:
        return f"{name} {found.num_examples:,} ({tokens})"
    cut = f"{packed.num_cut:,} of them cut, " if packed.num_cut else ""
    return (
        f"{name} {counted(packed.num_blocks, 'block')} of up to {packed.block_tokens:,} tokens from "
        f"{counted(packed.num_documents, 'text')} ({cut}{tokens}, {packed.filled_fraction:.0%} full)"
    )


def _what_is_trained(method: MethodPlan) -> str:
    if method.num_virtual_tokens:
        return counted(method.num_virtual_tokens, "virtual token")
    if not method.is_adapter:
        return "every weight"
    rank = f"rank {method.rank} " if method.rank else ""
    if method.target_rank:
        rank = f"rank {method.rank} falling to {method.target_rank} on average "
    held = f" over a base in {method.quantisation}" if method.quantisation else ""
    return f"{rank}on {target_summary(method)}{held}"


def show_advice(console: Console, advice: Advice) -> None:
    """Print the whole of it."""
    from luthier.platform.cli.console import make_table, visible

    console.print(f"\nadvice: {visible(advice.headline)}", style="bold", soft_wrap=True)
    for reason in advice.reasons:
        console.print(f"  {visible(reason)}", soft_wrap=True)
    if advice.ask:
        console.print(f"  use it with: {advice.ask}", soft_wrap=True)
    table = make_table(["method", "verdict", "hours", "USD", "kWh", "peak memory", "why"], num_text_columns=7)
    for one in advice.methods:
        table.add_row(
            one.title,
            one.word,
            figures.between(one.hours, figures.number),
            figures.between(one.usd, figures.number) if one.usd else "-",
            figures.between(one.energy_kwh, figures.number) if one.energy_kwh else "-",
            figures.between(one.peak_memory_bytes, lambda value: figures.size(value, in_decimal=True)),
            visible(one.why + (f"; needs {one.needs}" if one.needs else "")),
        )
    console.print(table)
