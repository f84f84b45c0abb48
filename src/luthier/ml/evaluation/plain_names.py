"""What evaluated systems are called for people: the tuned model, the untuned model, a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import SystemResult
from luthier.ml.charts.judged_rows import start
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
