"""The search space: ranges around the plan of the recipe, first trials from prior knowledge, and narrowing.

The ranges rest on what is known to matter for adapters: the learning rate first and by factors, then how long and in
which batches, then the rank with its scale. The plan's own learning rate follows method, width and, in one step, the
length of a run (`planning.learning_rates`), but not what it learns: long runs and those that learn little need less. So
the recipe is tried with three times and a third of its rate (`start_points`); the first
rung costs little, and the sampler then knows on which side to look. After a trial that this machine has no room for,
the space is narrowed (`narrowed_by`). `height_of` puts a value on a scale from 0 to 1 for charts.

Sources: Schulman et al., 2025, "LoRA Without Regret"; Biderman et al., 2024, "LoRA Learns Less and Forgets Less",
arXiv:2405.09673, section 6; docs/tuning.md.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError

from luthier.core.aliases import new_key, stored_key, typed_key
from luthier.core.errors import RequestError, validation_reason
from luthier.core.plan import Plan
from luthier.core.registry import METHODS, OBJECTIVES
from luthier.core.workflows.study import ALPHA_OVER_RANK, DATA_FRACTION, Parameter, Plain, Space, StartPoint, Values

_TRIED_METHODS: Final = ("lora", "rslora", "dora")
_KEYS: Final = ("parameters", "only", "without")
_NOT_ALWAYS: Final = ("method.dropout",)
"""What some spaces do not have to begin with, so that a file may leave it out of any."""
_ENDS: Final = ("low", "high")


def default_space(plan: Plan, *, most_rank: int) -> Space:
    """The space around a plan.

    Args:
        plan: of the recipe.
        most_rank: the smaller side of the smallest matrix that may carry an adapter.
    """
    p, rules = plan.training, METHODS.find(plan.method.name)
    rate = p.learning_rate
    found = [
        Parameter(
            name="training.learning_rate",
            kind="float",
            # Three digits: the space is shown to people and kept in a file.
            low=float(f"{rate / 10:.3g}"),
            # Above 0.5 every run diverges.
            high=float(f"{min(rate * 10, 0.5):.3g}"),
            log=True,
            why=f"a tenth to ten times the plan's {rate:g}: what matters most, by factors",
        ),
        *_of_method(plan, most_rank, set() if rules is None else rules.settings),
        Parameter(
            name="training.global_batch_size",
            kind="choice",
            choices=_around(p.global_batch_size, in_whole=True),
            why="half to twice the plan's: fewer rows a step are more steps",
        ),
        Parameter(
            name="training.epochs",
            kind="choice",
            choices=_around(p.num_steps / p.num_steps_per_epoch),
            why="half to twice the plan's: more passes memorise the rows",
        ),
        Parameter(name="training.schedule", kind="choice", choices=("cosine", "linear", "constant"), why="how it ends"),
        Parameter(name="training.warmup_fraction", kind="choice", choices=(0.0, 0.03, 0.1), why="how it begins"),
    ]
    if rules is None or rules.takes_decay:
        found.append(
            Parameter(name="training.weight_decay", kind="choice", choices=(0.0, 0.01, 0.1), why="against overfitting")
        )
    if _searches_dropout(plan):
        found.append(
            Parameter(name="method.dropout", kind="choice", choices=(0.0, 0.05, 0.1, 0.2), why="against overfitting")
        )
    return Space(parameters=tuple(found))


def _searches_dropout(plan: Plan) -> bool:
    """Whether dropout may help: not where log-probabilities are compared with those of a model without any.

    A plan has it there only where its recipe asks for it (`planning.resolve`).
    """
    rules, objective = METHODS.find(plan.method.name), OBJECTIVES.find(plan.objective.name)
    if rules is None or "dropout" not in rules.settings:
        return False
    is_noise = objective is not None and (objective.learns_preferences or not objective.takes_dropout)
    return not is_noise or plan.method.dropout > 0


def _of_method(plan: Plan, most_rank: int, settings: Container[str]) -> list[Parameter]:
    """The method and its own settings, where it has a rank and a scale, which are searched together."""
    method = plan.method
    if "rank" not in settings or "alpha" not in settings:
        return []
    # Others were chosen for a reason (speed, memory, a start from the base), which another method would undo.
    is_tried = method.name in _TRIED_METHODS
    found = (
        [Parameter(name="method.name", kind="choice", choices=_TRIED_METHODS, why="how an update is written")]
        if is_tried
        else []
    )
    found += [
        Parameter(
            name="method.rank",
            kind="choice",
            # A tiny model may have no matrix with room for rank 4.
            choices=tuple(rank for rank in (4, 8, 16, 32, 64) if rank <= most_rank) or (most_rank,),
            why="room for what is learned: small for style, large for knowledge",
        ),
        Parameter(
            name=ALPHA_OVER_RANK,
            kind="choice",
            choices=(0.5, 1.0, 2.0, 4.0),
            when={"method.name": tuple(n for n in _TRIED_METHODS if n != "rslora")} if is_tried else {},
            why="the scale of the update; rsLoRA has its own",
        ),
    ]
    if "targets" in settings:
        found.append(
            Parameter(
                name="method.targets",
                kind="choice",
                choices=("all-linear", "attention"),
                why="all matrices, or those of attention alone",
            )
        )
    return found


def _around(value: float, *, in_whole: bool = False) -> tuple[Plain, ...]:
    """Half of a value, itself, and twice it. in_whole: half of an odd number is rounded down, to 1 at the least."""
    made = [value / 2, value, value * 2]
    if in_whole:
        return tuple(dict.fromkeys(max(1, int(one)) for one in made))
    whole = float(value).is_integer()
    # Whole numbers stay whole; half of an odd one, such as 1.5 epochs, may be a fraction. `dict.fromkeys` drops
    # repeats.
    return tuple(dict.fromkeys(max(1, int(one)) if whole and float(one).is_integer() else one for one in made))


def narrowed(space: Space, document: Any, *, place: str) -> Space:
    """The space as a user's file changes it.

        parameters:
          training.learning_rate: {low: 1e-4, high: 2e-3, log: true}
          method.rank: [8, 16]        # one of these
          training.lr_schedule: cosine   # this, and no other
        without: [training.epochs]    # left as the recipe has it
        only: true                    # nothing but these parameters

    Args:
        space: the space around the plan.
        document: the parsed file.
        place: names the file in errors.

    Raises:
        RequestError: the file describes no space.
    """
    asked = _document(document, place)
    given: dict[str, Parameter] = {}
    for typed, value in asked["parameters"].items():
        # A key that is not text is refused by `_parameter`, with that reason.
        name = stored_key(typed_key(typed)) if isinstance(typed, str) else typed
        if name in given:
            raise RequestError(
                f"{place} has both {name} and {new_key(name)}, and they are one parameter",
                expected=f"{new_key(name)} alone: the other is its name of an earlier version",
                do=f"remove {name}",
            )
        given[name] = _parameter(name, value, place)
    without = [stored_key(typed_key(str(name))) for name in asked["without"]]
    known = {parameter.name: parameter for parameter in space.parameters}
    if unknown := [name for name in without if name not in known and name not in _NOT_ALWAYS]:
        shown = [new_key(name) for name in known]
        near = get_close_matches(unknown[0], shown, n=1)
        raise RequestError(
            f"{place}: without {', '.join(unknown)}" + (f"; nearest known: {near[0]}" if near else ""),
            expected=f"names among {', '.join(shown)}",
            do="correct the names",
        )
    # `only` drops the whole default space, `without` single parameters of it.
    kept = {} if asked["only"] else {name: p for name, p in known.items() if name not in without}
    merged = {**kept, **{n: p.model_copy(update={"when": _when(known, n, kept, given)}) for n, p in given.items()}}
    # Conditional parameters last: whether they play a part depends on values drawn before. The sort is stable.
    ordered = sorted(merged.values(), key=lambda p: bool(p.when))
    usable = [p.model_copy(update={"when": {k: v for k, v in p.when.items() if k in merged}}) for p in ordered]
    if not usable:
        raise RequestError(
            f"{place} leaves nothing to search", expected="at least one parameter", do="add some, or leave `only` out"
        )
    return Space(parameters=tuple(usable))


def _document(document: Any, place: str) -> dict[str, Any]:
    if not isinstance(document, Mapping) or (unknown := [key for key in document if key not in _KEYS]):
        said = f"unknown keys {', '.join(map(str, unknown))}" if isinstance(document, Mapping) else "no mapping"
        raise RequestError(
            f"{place}: {said}", expected=f"the keys {', '.join(_KEYS)}", do="see docs/tuning.md for the form"
        )
    parameters, without = document.get("parameters") or {}, document.get("without") or []
    if not isinstance(parameters, Mapping) or not isinstance(without, list):
        raise RequestError(
            f"{place}: parameters is not a mapping, or without is not a list",
            expected="parameters by their names, and a list of names",
            do="see docs/tuning.md for the form",
        )
    return {"parameters": parameters, "without": without, "only": bool(document.get("only"))}


def _parameter(name: str, value: Any, place: str) -> Parameter:
    try:
        if isinstance(value, Mapping):
            # bool is a subclass of int.
            whole = all(isinstance(value.get(end), int) and not isinstance(value.get(end), bool) for end in _ENDS)
            kind = "int" if whole else "float"
            return Parameter.model_validate({"name": name, "kind": kind, "why": f"asked in {place}", **value})
        choices = tuple(value) if isinstance(value, list) else (value,)
        return Parameter(name=name, kind="choice", choices=choices, why=f"asked in {place}")
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            f"{place}: {name}: {value!r}: {validation_reason(first)}",
            expected="{low, high, log}, a list of values, or one value",
            do="correct it",
        ) from error


def _when(
    known: Mapping[str, Parameter], name: str, kept: Mapping[str, Parameter], given: Mapping[str, Parameter]
) -> dict[str, tuple[Plain, ...]]:
    """The condition that the parameter of this name has by default, if what it names is still searched."""
    own = known[name].when if name in known else {}
    return {key: values for key, values in own.items() if key in kept or key in given}


RATE: Final = "training.learning_rate"
FACTORS: Final = (3.0, 1 / 3)


def own_values(plan: Plan, space: Space) -> Values:
    """What the original recipe sets of all that is searched, if its plan has it as one value."""
    document = plan.model_dump(mode="json")
    training = plan.training
    derived: Values = {
        "training.epochs": training.num_steps / training.num_steps_per_epoch,
        "training.warmup_fraction": training.num_warmup_steps / training.num_steps,
        DATA_FRACTION: 1.0,  # of the rows of the recipe, which may themselves be a subset
    }
    if plan.method.rank:
        derived[ALPHA_OVER_RANK] = plan.method.alpha / plan.method.rank
    # These two are counted in whole steps.
    one_step = {
        "training.epochs": 1 / training.num_steps_per_epoch,
        "training.warmup_fraction": 1 / training.num_steps,
    }
    found: Values = {}
    for parameter in space.parameters:
        section, _, key = parameter.name.partition(".")
        asked = getattr(getattr(plan.recipe, section, None), key, None)
        value = derived.get(parameter.name, _value_at(document, parameter.name))
        # The plan lists resolved modules; what is searched is the requested group.
        value = asked if isinstance(value, list) or parameter.name == "method.targets" else value
        if isinstance(value, bool | int | float | str):
            found[parameter.name] = _nearest(parameter, value, within=one_step.get(parameter.name, 0.0))
    return found


def _value_at(document: Mapping[str, Any], name: str) -> Any:
    """What a plan has at a dotted key; None where that is no single value."""
    value: Any = document
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def start_points(space: Space, own: Values) -> tuple[StartPoint, ...]:
    """Recipes to try first, from what is known of all tasks.

    Args:
        space: what may vary.
        own: as `own_values` gives it.
    """
    parameter = next((p for p in space.parameters if p.name == RATE and p.kind == "float"), None)
    rate = own.get(RATE)
    if parameter is None or not isinstance(rate, float) or parameter.low is None or parameter.high is None:
        return ()
    found = []
    for factor in FACTORS:
        value = float(f"{rate * factor:.4g}")
        if parameter.low <= value <= parameter.high:
            why = f"{factor:.3g} times the plan's learning rate"
            found.append(StartPoint(values={RATE: value} | fixed_values(space, own), why=why))
    return tuple(found)


def fixed_values(space: Space, own: Values) -> Values:
    """What a file fixes to another value than the recipe's: any point of the space but the recipe itself has these.

    Args:
        space: what may vary.
        own: as `own_values` gives it.
    """
    found: Values = {}
    for parameter in space.parameters:
        if not parameter.is_fixed or parameter.when:
            continue
        if parameter.kind == "choice":
            value = parameter.choices[0]
        else:
            assert parameter.low is not None
            value = int(parameter.low) if parameter.kind == "int" else parameter.low
        if own.get(parameter.name) != value:
            found[parameter.name] = value
    return found


def _nearest(parameter: Parameter, value: Plain, *, within: float) -> Plain:
    """The matching choice: 3 of 100 steps of warm-up are a fraction of 0.03, and 2 epochs are 2.0.

    Args:
        parameter: what is searched.
        value: what the recipe has.
        within: how far a choice may be from it. A rate of 2e-4 is none of 1e-4 and 1e-3, and what counts as tried is
            never proposed.
    """
    numbers = [c for c in parameter.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if not isinstance(value, int | float) or isinstance(value, bool) or not numbers:
        return value
    nearest = min(numbers, key=lambda c: (abs(c - value), c))
    return nearest if abs(nearest - value) <= within else value


_TAKES_MEMORY: Final = ("method.rank", "training.global_batch_size", "training.micro_batch_tokens")


def narrowed_by(space: Space, values: Values) -> tuple[Space, str]:
    """The space without what is at least as large as in a trial that does not fit, and a sentence for it.

    Only parameters that take memory are narrowed, and none below its smallest value; the sentence is empty where
    nothing is left to take out.
    """
    taken: list[str] = []
    parameters = []
    for parameter in space.parameters:
        smaller = _below(parameter, values)
        if smaller is not None:
            taken.append(f"{parameter.name} below {values[parameter.name]}")
        parameters.append(smaller or parameter)
    if not taken:
        return space, ""
    return Space(parameters=tuple(parameters)), f"a trial did not fit into memory: from now on {' and '.join(taken)}"


def _below(parameter: Parameter, values: Values) -> Parameter | None:
    limit = values.get(parameter.name)
    if parameter.name not in _TAKES_MEMORY or not isinstance(limit, int | float):
        return None
    if parameter.kind == "choice":
        left = tuple(c for c in parameter.choices if isinstance(c, int | float) and c < limit)
        return parameter.model_copy(update={"choices": left}) if left else None
    assert parameter.low is not None
    assert parameter.high is not None
    # Never above the present end: a trial that began before the space was narrowed may fail after it.
    high = min(parameter.high, float(limit) - 1)
    return parameter.model_copy(update={"high": high}) if high >= parameter.low else None


def height_of(parameter: Parameter, values: Values) -> float | None:
    """Where a value is in its range, from 0 to 1; None where it is inactive or none of the choices."""
    value = values.get(parameter.name)
    if value is None:
        return None
    if parameter.kind == "choice":
        places = list(parameter.choices)
        return places.index(value) / max(1, len(places) - 1) if value in places else None
    assert parameter.low is not None
    assert parameter.high is not None
    low, high, x = float(parameter.low), float(parameter.high), float(value)
    if parameter.log:
        low, high, x = math.log(low), math.log(high), math.log(x)
    return (x - low) / (high - low) if high > low else 0.5


def ends_of(parameter: Parameter) -> tuple[str, str]:
    """The lower and the upper end of a range, as text."""
    if parameter.kind == "choice":
        return _said(parameter.choices[0]), _said(parameter.choices[-1])
    return f"{parameter.low:.3g}", f"{parameter.high:.3g}"


def short_name(name: str) -> str:
    """The name of a parameter without its section."""
    return "method" if name == "method.name" else name.rpartition(".")[2].replace("_", " ")


def _said(value: Plain) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
