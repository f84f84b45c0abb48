"""What fits on a device, what makes a run fit that does not, and which method to choose.

`fit` has the largest micro-batch, the longest row, and what a run gives up first. Where that is not enough, the same
training in another way, another method or another device is suggested. `advise` chooses full fine-tuning, LoRA,
AdaLoRA or QLoRA by rows, model, memory and budget, each with its reason. Its rules rest on:

  LoRA is as good as full fine-tuning while what is to be learned fits into the adapter: as many parameters as learned
  tokens (Schulman et al., 2025, "LoRA Without Regret"; Thinking Machines' LoRA primer gives the rule of thumb).
  Beyond that full fine-tuning learns more, and it forgets more of what the base knew (Biderman et al., 2024, "LoRA
  Learns Less and Forgets Less", arXiv:2405.09673).
  A 4-bit base saves memory, costs time and some precision (Dettmers et al., 2023, arXiv:2305.14314): it is the way
  out where LoRA does not fit. AdaLoRA gains at small ranks and over many steps (Zhang et al., 2023, arXiv:2303.10512).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, get_args

from luthier.core.errors import RequestError
from luthier.core.recipe import BudgetRecipe
from luthier.core.results.cost import Change, Device, Market, Option, PriceTable, Room
from luthier.core.text import byte_sizes
from luthier.ml.planning.batch_shapes import KEPT_MAX_TOKENS
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import Calibration, fits, predict
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import Workload, WorkMethod
from luthier.ml.planning.workload_variants import with_method, with_micro_batch
from luthier.ml.training.methods.rules import LORA_RANK, RULES

if TYPE_CHECKING:
    from luthier.core.records.advice import Advice

_MAX_TOKENS: Final = 1 << 24
"""Nothing is looked for beyond: no micro-batch and no row is larger today."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A run that fits, and what was changed for it: names of changes, none where it fitted unchanged."""

    workload: Workload
    changes: tuple[str, ...]

    @property
    def micro_batch_tokens(self) -> int:
        """The budget that keeps micro-batches as small as they must be."""
        return self.workload.batches.peak_tokens


def room(workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None) -> Room:
    """The largest micro-batch of the run's longest rows, and the longest row that fits alone.

    Args:
        workload: the run.
        device: with its memory in bytes.
        longest_tokens: length of the run's longest row.
        calibration: of measured runs; None predicts without.
    """
    return Room(
        micro_batch_rows=max_rows(workload, device, length=longest_tokens, calibration=calibration),
        length_tokens=longest_tokens,
        longest_row_tokens=longest_row(workload, device, calibration=calibration),
    )


def max_rows(
    workload: Workload,
    device: Device,
    *,
    length: int,
    most: int | None = None,
    calibration: Calibration | None = None,
) -> int:
    """Rows of `length` tokens that fit in one micro-batch; 0 where none does.

    Args:
        workload: the run.
        device: where it runs.
        length: tokens of a row.
        most: none beyond is tried.
        calibration: of the device; None uses the priors.
    """
    limit = max(1, _MAX_TOKENS // length) if most is None else most
    return _largest(limit, lambda rows: _fits(with_micro_batch(workload, rows, length), device, calibration))


def longest_row(workload: Workload, device: Device, *, calibration: Calibration | None = None) -> int:
    """Tokens of the longest row that fits when it is alone; 0 where not even one token does."""

    def holds(length: int) -> bool:
        return _fits(with_micro_batch(workload, 1, length), device, calibration)

    # Rows just above the limit keep no probabilities and may need less than those just below.
    beyond = KEPT_MAX_TOKENS + 1
    if workload.attention == "by_length" and holds(beyond):
        return _largest(_MAX_TOKENS, holds, least=beyond)
    most = KEPT_MAX_TOKENS if workload.attention == "by_length" else _MAX_TOKENS
    return _largest(most, holds)


def made_to_fit(
    workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None
) -> Fitted | None:
    """The fastest way to run the same training on a device; None where it does not fit by any of these.

    Tried: unchanged; smaller micro-batches; activations computed again; weights spread over the devices where there are
    several; all of these together. None of them changes what is learned.

    Args:
        workload: the run.
        device: with its memory in bytes.
        longest_tokens: length of the run's longest row.
        calibration: of measured runs; None predicts without.
    """
    found = ways_to_fit(workload, device, longest_tokens=longest_tokens, calibration=calibration)
    return found[0] if found else None


def ways_to_fit(
    workload: Workload, device: Device, *, longest_tokens: int, calibration: Calibration | None = None
) -> list[Fitted]:
    """All of these ways that fit, the fastest step first; only one where the run fits unchanged.

    Args:
        workload: of the run.
        device: that it is to fit on.
        longest_tokens: of the longest row.
        calibration: of the device; None uses the priors.
    """
    if _fits(workload, device, calibration):
        return [Fitted(workload, ())]
    found: list[Fitted] = []
    for is_spread in (False, True) if device.num_devices > 1 and workload.sharding != "fsdp" else (False,):
        for is_recomputed in (False, True) if not workload.gradient_checkpointing else (False,):
            changed = replace(
                workload,
                sharding="fsdp" if is_spread else workload.sharding,
                gradient_checkpointing=is_recomputed or workload.gradient_checkpointing,
            )
            names = (("sharding",) if is_spread else ()) + (("checkpointing",) if is_recomputed else ())
            if _fits(changed, device, calibration):
                found.append(Fitted(changed, names))
                continue
            smaller = _smaller(changed, device, longest_tokens, calibration)
            if smaller is not None:
                found.append(Fitted(smaller, ("micro_batch", *names)))
    # Stable: of ways that are equally fast the one that changes least stays first.
    return sorted(found, key=lambda way: step_seconds(way.workload, device, calibration).value)


def _smaller(
    workload: Workload, device: Device, longest_tokens: int, calibration: Calibration | None
) -> Workload | None:
    """The run in the largest micro-batches that fit, each of rows as long as the longest; None where no row fits."""
    most = max(1, workload.batches.peak_tokens // longest_tokens)
    rows = max_rows(workload, device, length=longest_tokens, most=most, calibration=calibration)
    return with_micro_batch(workload, rows, longest_tokens) if rows else None


def _fits(workload: Workload, device: Device, calibration: Calibration | None) -> bool:
    return fits(predict_memory(workload, device, calibration), device)


def _largest(limit: int, holds: Callable[[int], bool], *, least: int = 1) -> int:
    """The largest number from `least` to `limit` for which `holds` is true; 0 where it is false at `least`.

    It must be true up to some number and false from there on.
    """
    if not holds(least):
        return 0
    # Doubling finds a bound in log2(limit) predictions, bisection between the last two finds the number.
    low, high = least, 2 * least
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


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
    "checkpointing": "activations recomputed in the backward pass (gradient checkpointing)",
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
    """What makes a run fit on a device, or where else it fits; empty where it fits unchanged.

    In the order of what is given up: first what changes only how the same is computed, the fastest first; then methods
    that train less or on a coarser base; then other devices, the cheapest run first. Each with its hours and USD.

    Args:
        workload_on: gives the workload of the run on a device.
        device: that it is to fit on.
        longest_tokens: of the longest row.
        other_devices: that are considered where nothing else fits.
        prices: by device.
        market: on-demand or spot prices.
        calibration: of the device; None uses the priors.
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
    """The text to request a device: `h100`, `a100-80g:4`."""
    return device.name if device.num_devices == 1 else f"{device.name}:{device.num_devices}"


FEW_ROWS: Final = 1000
"""Below that, full fine-tuning has so much more capacity than there is to learn that it memorises rows."""
MAX_RANK: Final = 256
"""Above that an adapter is no longer small, and full fine-tuning is the plainer way."""
_SMALL_RANK: Final = 8
_ADALORA_STEPS: Final = 1000


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the rows and the adapter's places say.

    Attributes:
        num_learned_tokens: of one pass over the rows.
        parameters_per_rank: of an adapter on the recipe's targets.
        largest_rank: of the smallest of these matrices.
    """

    num_examples: int
    num_learned_tokens: int
    num_steps: int
    parameters_per_rank: int
    largest_rank: int
    asked_rank: int | None
    asked_method: WorkMethod | None

    @property
    def needed_rank(self) -> int:
        """The smallest usual rank whose adapter has a parameter for each learned token, the default one at least."""
        # Ceiling division: an adapter with at least one parameter for each learned token.
        needed = -(-self.num_learned_tokens // self.parameters_per_rank)
        rank = LORA_RANK[0]
        while rank < needed:
            rank *= 2
        return rank


def advise(options: Sequence[Option], data: DataFacts, budget: BudgetRecipe | None = None) -> Advice:
    """The method to take among these options, all of one device and one option a method."""
    from luthier.core.records.advice import Advice, AdvisedMethod

    by_method = {
        method: option for method in _methods() for option in options if option.method == METHOD_TITLES[method]
    }
    # By the expected value: a run that might exceed a cap is still possible, and the reason states it.
    words = {method: _word(option, budget) for method, option in by_method.items()}
    usable = [method for method, word in words.items() if word == "possible"]
    chosen, reasons = _choose(usable, by_method, data)
    # No adapter's rank exceeds that of the smallest matrix that it is put on.
    rank = None if chosen in (None, "full") else min(data.needed_rank, MAX_RANK, data.largest_rank)
    if chosen == "adalora":
        rank = data.asked_rank
    methods = tuple(
        AdvisedMethod(
            method=method,
            title=option.method,
            word="recommended" if method == chosen else words[method],
            why=_why(method, option, words[method], budget),
            needs=option.needs,
            hours=option.prediction.hours,
            usd=option.prediction.usd,
            energy_kwh=option.prediction.energy_kwh,
            peak_memory_bytes=option.prediction.peak_memory.total_bytes,
        )
        for method, option in by_method.items()
    )
    return Advice(
        method=chosen,
        headline=_headline(chosen, rank, by_method, words),
        reasons=tuple(reasons),
        rank=rank,
        ask=_ask(chosen, rank, data),
        methods=methods,
    )


def _methods() -> tuple[WorkMethod, ...]:
    found: tuple[WorkMethod, ...] = get_args(WorkMethod)
    return found


def _choose(
    usable: Sequence[WorkMethod], options: Mapping[WorkMethod, Option], data: DataFacts
) -> tuple[WorkMethod | None, list[str]]:
    tokens, rank = f"{data.num_learned_tokens:,} learned tokens", data.needed_rank
    most = min(MAX_RANK, data.largest_rank)
    fits_adapter = rank <= most
    reasons = [
        f"{tokens} in {data.num_examples:,} rows fit into an adapter of rank {rank} "
        f"({rank * data.parameters_per_rank:,} parameters), and then LoRA is as good as full fine-tuning"
        if fits_adapter
        else f"{tokens} are more than an adapter of rank {most} has parameters ({most * data.parameters_per_rank:,})"
    ]
    if not usable:
        return None, reasons
    if not fits_adapter and "full" in usable:
        return "full", [*reasons, "full fine-tuning learns more from that much data, and it fits; it also forgets more"]
    if not fits_adapter:
        reasons.append("full fine-tuning would learn more, but it does not fit into this device and budget")
    if data.num_examples < FEW_ROWS and "full" in usable:
        reasons.append(f"full fine-tuning would fit, but memorises {data.num_examples:,} rows and forgets more")
    rank_asked = data.asked_rank or 0
    holds = data.num_learned_tokens <= rank_asked * data.parameters_per_rank
    if rank_asked <= _SMALL_RANK and holds and data.num_steps >= _ADALORA_STEPS and "adalora" in usable:
        reasons.append(
            f"rank {rank_asked} is small and {data.num_steps:,} steps are many: AdaLoRA moves ranks to the matrices "
            "that need them"
        )
        return "adalora", reasons
    if "lora" in usable:
        if options["lora"].needs:
            reasons.append(f"LoRA needs {options['lora'].needs} to fit, which changes memory and time, not the result")
        return "lora", reasons
    if "qlora" in usable:
        return "qlora", [
            *reasons,
            "LoRA on the full base does not fit into this device and budget; on 4-bit weights it does",
        ]
    return usable[0], [*reasons, f"only {METHOD_TITLES[usable[0]]} fits into this device and budget"]


def _word(option: Option, budget: BudgetRecipe | None) -> str:
    if not option.fits:
        return "does not fit"
    return "over the budget" if _over(option, budget) else "possible"


def _over(option: Option, budget: BudgetRecipe | None, *, at_worst: bool = False) -> str:
    """The first cap that the run goes over, as expected or at worst, as text; empty where it follows all of them."""
    made = option.prediction
    if budget is None:
        return ""
    for cap, figure, unit in (
        (budget.hours, made.hours, "h"),
        (budget.usd, made.usd, "USD"),
        (budget.energy_kwh, made.energy_kwh, "kWh"),
    ):
        if cap is not None and figure is not None and (figure.high if at_worst else figure.value) > cap:
            return f"about {figure.value:.3g} {unit} [{figure.low:.3g}, {figure.high:.3g}] against a cap of {cap:g}"
    return ""


def _why(method: WorkMethod, option: Option, word: str, budget: BudgetRecipe | None) -> str:
    if word == "does not fit":
        made = option.prediction
        memory = byte_sizes.size(made.peak_memory.total_bytes.value, made.device.memory_bytes)
        return f"needs about {memory} even in the smallest micro-batches"
    if word == "over the budget":
        return _over(option, budget)
    general = {
        "full": "learns most, forgets most; every copy is a whole model",
        "lora": "a small adapter on an unchanged base; forgets least",
        "adalora": "LoRA that moves ranks between matrices; needs slightly more memory and time, and many steps",
        "qlora": "LoRA on 4-bit weights: least memory, slower, and the base is coarser",
    }
    capped = "; a cap may stop it before its end" if _over(option, budget, at_worst=True) else ""
    tight = option.prediction.peak_memory.total_bytes.high > option.prediction.device.memory_bytes
    return general[method] + capped + ("; memory may not be enough" if tight else "")


def _headline(
    chosen: WorkMethod | None,
    rank: int | None,
    options: Mapping[WorkMethod, Option],
    words: Mapping[WorkMethod, str],
) -> str:
    if chosen is not None:
        return METHOD_TITLES[chosen] + (f" with rank {rank}" if rank else "")
    fitting = [method for method, word in words.items() if word == "over the budget"]
    if not fitting:
        return "no method fits on this device: use a smaller model, shorter rows, or another device (see --compare)"
    least = min(fitting, key=lambda method: options[method].prediction.hours.value)
    hours = options[least].prediction.hours
    return (
        f"no method fits the budget: the quickest, {METHOD_TITLES[least]}, should take {hours.value:.3g} h "
        f"[{hours.low:.3g}, {hours.high:.3g}]; raise it, or train on fewer rows"
    )


def _ask(chosen: WorkMethod | None, rank: int | None, data: DataFacts) -> str:
    if chosen is None or chosen not in RULES:
        return ""
    asks = [] if data.asked_method == chosen else [f"--set method.name={chosen}"]
    if data.asked_rank is not None and asks and "adalora" in (chosen, data.asked_method):
        # each refuses the other's name for the rank
        asks.append(f"--set method.{'rank' if chosen == 'adalora' else 'target_rank'}=")
    if rank is not None and rank != (data.asked_rank or LORA_RANK[0]):
        asks.append(f"--set method.{'target_rank' if chosen == 'adalora' else 'rank'}={rank}")
    return " ".join(asks)
