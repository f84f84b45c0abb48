"""What systems and counts are called in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import SystemResult

_IN_PROSE = {"base": "the base model", "tuned": "the tuned model"}
_BASELINES = {
    "majority": "the commonest answer",
    "popularity": "the most popular of the answers offered",
    "nearest": "the answer of the nearest training row",
    "linear": "a linear classifier",
    "ridge": "ridge regression",
    "copy": "rules that copy from the prompt",
}


def system_title(system: SystemResult, results: Sequence[SystemResult]) -> str:
    """What a system is called in a sentence: the base model with 4 examples in its prompt.

    Args:
        system: the one to name.
        results: all systems of the evaluation; a few-shot one is named after the same model without examples among
            them.
    """
    if system.kind != "model":
        # Two ways to find the nearest row have one kind: the name says which, in brackets.
        _, bracket, way = system.name.partition(" (")
        return f"{_BASELINES[system.kind]}{bracket}{way}"
    bare = without_examples(system, results)
    if bare is None:
        return _IN_PROSE.get(system.name, system.name)
    return f"{system_title(bare, results)} with {examples(system)} in its prompt"


def without_examples(system: SystemResult, results: Sequence[SystemResult]) -> SystemResult | None:
    """The same model without examples in its prompt; None where it was not judged, or `system` has none itself."""
    if not system.num_few_shot:
        return None
    same = [r for r in results if not r.num_few_shot and (r.model, r.adapter) == (system.model, system.adapter)]
    return next((r for r in same if system.name.startswith(r.name)), None)


def examples(system: SystemResult) -> str:
    """`1 example`, `4 examples`."""
    return "1 example" if system.num_few_shot == 1 else f"{system.num_few_shot:,} examples"


def held_out_rows(number: int) -> str:
    """`1 held-out row`, `1,200 held-out rows`."""
    return "1 held-out row" if number == 1 else f"{number:,} held-out rows"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])
