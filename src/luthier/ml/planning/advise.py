"""Full fine-tuning, LoRA, AdaLoRA or QLoRA: chosen by rows, model, memory and budget, each reason said.

What the rules rest on:
    LoRA is as good as full fine-tuning while what is to be learned fits into the adapter: as many parameters as learned
    tokens (Schulman et al., 2025, "LoRA Without Regret"; Thinking Machines' LoRA primer gives the rule of thumb).
    Beyond that full fine-tuning learns more, and it forgets more of what the base knew (Biderman et al., 2024, "LoRA
    Learns Less and Forgets Less", arXiv:2405.09673).
    A 4-bit base saves memory, costs time and some precision (Dettmers et al., 2023, arXiv:2305.14314): it is the way
    out where LoRA does not fit. AdaLoRA gains at small ranks and over many steps (Zhang et al., 2023,
    arXiv:2303.10512).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from luthier.core.cost import Option
from luthier.core.recipe import BudgetRecipe
from luthier.core.records.advice import Advice, AdvisedMethod
from luthier.ml.planning.fit_suggestions import METHOD_TITLES
from luthier.ml.planning.workload import WorkMethod
from luthier.ml.training.methods.rules import LORA_RANK, RULES

FEW_ROWS: Final = 1000
"""Below that, full fine-tuning has so much more room than there is to learn that it learns rows by heart."""
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
    by_method = {
        method: option for method in _methods() for option in options if option.method == METHOD_TITLES[method]
    }
    # By the expected value: a run that only may go over a cap is still possible, and the reason says so.
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
        return "full", [*reasons, "full fine-tuning learns more from so much, and it fits; it also forgets more"]
    if not fits_adapter:
        reasons.append("full fine-tuning would learn more, but it does not fit into this device and budget")
    if data.num_examples < FEW_ROWS and "full" in usable:
        reasons.append(f"full fine-tuning would fit, but learns {data.num_examples:,} rows by heart and forgets more")
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
        memory = option.prediction.peak_memory.total_bytes.value / 2**30
        return f"needs about {memory:.3g} GiB even in the smallest micro-batches"
    if word == "over the budget":
        return _over(option, budget)
    general = {
        "full": "learns most, forgets most; every copy is a whole model",
        "lora": "a small adapter on a base that stays as it is; forgets least",
        "adalora": "LoRA whose ranks move between matrices; a little more memory and time, many steps wanted",
        "qlora": "LoRA on 4-bit weights: least memory, slower, and the base is coarser",
    }
    capped = "; a cap may stop it before its end" if _over(option, budget, at_worst=True) else ""
    tight = option.prediction.peak_memory.total_bytes.high > option.prediction.device.memory_bytes
    return general[method] + capped + ("; memory may just not be enough" if tight else "")


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
        return "no method fits on this device: take a smaller model, shorter rows, or another device (see --compare)"
    least = min(fitting, key=lambda method: options[method].prediction.hours.value)
    hours = options[least].prediction.hours
    return (
        f"no method keeps to the budget: the quickest, {METHOD_TITLES[least]}, should take {hours.value:.3g} h "
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
