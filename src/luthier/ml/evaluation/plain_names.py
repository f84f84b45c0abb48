"""What evaluated systems are called for people: the tuned model, the untuned model, a linear classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from luthier.core.evaluation import Comparison, Evaluation, SystemResult
from luthier.ml.charts.judged_rows import start
from luthier.ml.charts.system_names import SIDES, has_examples, is_baseline
from luthier.ml.evaluation.result_views import base_of
from luthier.ml.evaluation.verdict_text import is_tuned, prompt_of, system_title, without_prompting

_TUNED, _UNTUNED = "the tuned model", "the untuned model"
_OURS = ("the ", "a ", "rules ", "ridge ")
"""How names of ours begin; other names are those that people and programs gave."""


def judged_system(systems: Sequence[SystemResult]) -> SystemResult:
    """The system that a verdict is about: the last one."""
    return systems[-1]


def plain_name(system: SystemResult, systems: Sequence[SystemResult]) -> str:
    """The system in the middle of a sentence.

    Args:
        system: the one to name.
        systems: all systems of the evaluation.
    """
    judged = judged_system(systems)
    if system is judged:
        return _TUNED if is_tuned(system) else system_title(system, systems)
    if not system.is_model:
        return system_title(system, systems)
    own = _untuned(systems)
    if system.name == own:
        return _UNTUNED
    bare = without_prompting(system, systems)
    if bare is not None and bare.name == own:
        return f"{_UNTUNED} with {prompt_of(system, ' in its prompt')}"
    return system_title(system, systems)


def name_at_start(system: SystemResult, systems: Sequence[SystemResult]) -> str:
    """The same at the start of a sentence; a name that a person or a program gave is not changed."""
    name = plain_name(system, systems)
    return start(name) if name.startswith(_OURS) else name


def short_name(system: SystemResult, systems: Sequence[SystemResult]) -> str:
    """The system as the label of a row in a chart, without its article."""
    judged, own = judged_system(systems), _untuned(systems)
    if system is judged and is_tuned(system):
        return "tuned model"
    if system.name == own:
        return "untuned model"
    if system.is_model and (bare := without_prompting(system, systems)) is not None and bare.name == own:
        return prompt_of(system, " in the prompt").removeprefix("an ").removeprefix("its ").removeprefix("the ")
    return system.name


def _untuned(systems: Sequence[SystemResult]) -> str | None:
    """The name of the base model of a tuned system; None where the evaluated system is not tuned."""
    judged = judged_system(systems)
    return base_of(systems, judged.name) if is_tuned(judged) else None


def names_in(systems: Sequence[SystemResult], translate: Callable[[str], str]) -> dict[str, str]:
    """What tables in another language call the systems that have names of ours, by these names.

    Names that people and programs gave stay, and so do those of systems that would be called the same.

    Args:
        systems: All systems of the evaluation.
        translate: A text of ours in the language of the page.
    """
    shown = {one.name: short_name(one, systems) for one in systems}
    # A model that is evaluated by its own name or by that of its run keeps it: "tuned model" would say less.
    ours = {one.name for one in systems if not one.is_model or one.name in SIDES or one.is_prompted}
    made = {
        name: translate(short) if name in ours else _with_examples(name, translate) for name, short in shown.items()
    }
    counts = Counter(made.values())
    return {name: new for name, new in made.items() if counts[new] == 1 and (name in ours or new != name)}


def listed_names(names: Sequence[str], translate: Callable[[str], str]) -> tuple[str, ...]:
    """Names of systems in another language where nothing else is known of them; those of people stay."""
    sides = {name: translate(side) for name, side in zip(SIDES, ("untuned model", "tuned model"), strict=True)}
    found = []
    for name in names:
        side, plus, more = name.partition(" + ")
        if side in sides:
            name = translate(f"{sides[side]}{plus}{more}") if plus else sides[side]
        found.append(translate(name) if is_baseline(name) else _with_examples(name, translate))
    return tuple(found)


def _with_examples(name: str, translate: Callable[[str], str]) -> str:
    return translate(name) if has_examples(name) else name


def renamed(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    """The evaluation with other names of its systems, wherever tables and charts take them from; sentences stay."""
    if not names:
        return evaluation

    def other(name: str) -> str:
        return names.get(name, name)

    def of_systems(systems: Sequence[SystemResult]) -> tuple[SystemResult, ...]:
        return tuple(one.model_copy(update={"name": other(one.name)}) for one in systems)

    def of_pairs(pairs: Sequence[Comparison]) -> tuple[Comparison, ...]:
        both = [{"candidate": other(one.candidate), "baseline": other(one.baseline)} for one in pairs]
        return tuple(one.model_copy(update=update) for one, update in zip(pairs, both, strict=True))

    forgetting, verdict = evaluation.forgetting, evaluation.verdict
    if forgetting is not None:
        changed = {"systems": of_systems(forgetting.systems), "comparisons": of_pairs(forgetting.comparisons)}
        forgetting = forgetting.model_copy(update=changed)
    if verdict is not None:
        ways = tuple(one.model_copy(update={"name": other(one.name)}) for one in verdict.alternatives)
        verdict = verdict.model_copy(update={"alternatives": ways})
    confidence = (one.model_copy(update={"system": other(one.system)}) for one in evaluation.label_confidence)
    return evaluation.model_copy(
        update={
            "systems": of_systems(evaluation.systems),
            "comparisons": of_pairs(evaluation.comparisons),
            "forgetting": forgetting,
            "verdict": verdict,
            "label_confidence": tuple(confidence),
        }
    )
