"""docs/choices.md: every metric, method, objective, optimizer, check and export format, from what each declares.

python docsite/choices_page.py        # write it; a test holds the page and the declarations together
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "choices.md"
_HEAD = """# List of choices

All metrics, methods, objectives, optimizers, data checks, export formats and trackers that you can name in a recipe or
command. Other packages can add to each list by an entry point of the given group. (`docsite/choices_page.py` generates
this page from the declarations in the code.)
"""
_SIDE = 1000


def text() -> str:
    """The whole page."""
    parts = (_metrics, _methods, _objectives, _optimizers, _checks, _formats, _trackers)
    return "\n".join([_HEAD, *("\n".join(part()) for part in parts)])


def _metrics() -> Iterator[str]:
    from luthier.ml.evaluation.metrics.registry import BUILT_IN, RECIPE_NAMES, load_metrics

    yield "## Metrics\n\n`evaluation.metrics`; entry points `luthier.metrics`.\n"
    family_of = {figure: name for name, figures in RECIPE_NAMES.items() for figure in figures}
    rows = []
    for metric in load_metrics(list(BUILT_IN)):
        ends = f"{_number(metric.lower)} to {_number(metric.upper)}"
        better = "higher" if metric.higher_is_better else "lower"
        rows.append((f"`{family_of[metric.name]}`", metric.title, metric.unit, ends, better, _doc(type(metric))))
    yield from _table(("in a recipe", "figure", "unit", "range", "better is", "what it is"), rows)


def _methods() -> Iterator[str]:
    from luthier.ml.planning.learning_rates import REFERENCE_WIDTH
    from luthier.ml.training.methods.rules import RULES

    yield "## Methods\n\n`method.name`; entry points `luthier.methods`; more in [methods](methods.md).\n"
    rows = [
        (f"`{name}`", rules.title, rules.summary, f"{rules.learning_rate[0]:g}", _names(rules.settings))
        for name, rules in RULES.items()
    ]
    yield from _table(("name", "called", "what it means", "default rate", "settings"), rows)
    yield (
        f"The default rate is that of a model {REFERENCE_WIDTH:,} wide; those of methods that move matrices are higher "
        "for narrower models and lower for wider ones ([recipe](recipe.md#the-learning-rate)).\n"
    )


def _objectives() -> Iterator[str]:
    from luthier.core.aliases import new_key
    from luthier.ml.training.objectives.rules import RULES

    yield "## Objectives\n\n`objective.name`; entry points `luthier.objectives`; more in [objectives](objectives.md).\n"
    rows = []
    for name, rules in RULES.items():
        settings = [new_key(f"objective.{setting}").removeprefix("objective.") for setting in rules.settings]
        rows.append((f"`{name}`", rules.name, rules.summary, ", ".join(rules.shapes), _names(settings)))
    yield from _table(("name", "called", "what it means", "rows", "settings"), rows)


def _optimizers() -> Iterator[str]:
    from luthier.ml.training.optimizers.rules import RULES, Matrices, TrainedSizes

    yield "## Optimizers\n\n`training.optimizer`; entry points `luthier.optimizers`;"
    yield "more in [methods](methods.md#optimizers).\n"
    num = _SIDE * _SIDE
    matrix = TrainedSizes(num, is_full=True, matrices=(Matrices(1, _SIDE, _SIDE),))
    rows = []
    for name, rules in RULES.items():
        held = rules.state_bytes(matrix)
        where = f"{held.device / num:.3g}" + (f", {held.host / num:.3g} in the host's memory" if held.host else "")
        settings = ", ".join(f"`{setting}` {value:g}" for setting, value in rules.settings.items()) or "none"
        only = "only full fine-tuning" if rules.only_full else "only on a GPU" if rules.only_accelerator else ""
        rows.append((f"`{name}`", rules.title, rules.summary, where, settings, only))
    head = ("name", "called", "take it for", "bytes of state per parameter of a matrix", "settings", "limits")
    yield from _table(head, rows)
    yield f"For {_SIDE:,} x {_SIDE:,}. Each also needs 8 bytes a parameter for fp32 copies and gradients.\n"


def _checks() -> Iterator[str]:
    from luthier.ml.data.audit.run import BUILT_IN

    yield "## Checks of data\n\n`luthier data audit`; entry points `luthier.checks`; more in [data](data.md).\n"
    rows = [(f"`{name}`", _doc(_documented(place))) for name, place in BUILT_IN.items()]
    yield from _table(("name", "what it finds"), rows)


def _formats() -> Iterator[str]:
    from luthier.ml.export.exporters.registry import FORMATS

    yield "## Export formats\n\n`luthier export`; entry points `luthier.exporters`; more in [exports](exports.md).\n"
    rows = []
    for name, one in FORMATS.items():
        # The default first; a format without one takes what the model was trained in.
        own = [one.default] if one.default else []
        precisions = _names([*own, *(precision for precision in one.precisions if precision not in own)])
        usual = _names(precision for precision, how in one.precisions.items() if how.is_usual)
        tried = f"no: {one.unrehearsed}" if one.unrehearsed else "yes"
        install = f"`{one.install}`" if one.install else ""
        cells = ("" if one.default else "as it was trained; ") + precisions, one.contents, usual, tried, install
        rows.append((f"`{name}`", one.title, *cells))
    head = ("`--to`", "called", "`--quantise` (first: the default)", "what is in the folder", "usual in a benchmark")
    yield from _table((*head, "a small copy is tried first", "needs"), rows)
    yield "The most that a log-probability may differ from the source's; of fewer bits the loss of quality is judged.\n"
    bounds = [
        (f"`{name}`", f"`{precision}`", f"{how.bound_nats:g}", how.why)
        for name, one in FORMATS.items()
        for precision, how in one.precisions.items()
        if how.bound_nats is not None
    ]
    yield from _table(("format", "precision", "nats", "why not 0"), bounds)


def _documented(place: str) -> Any:
    """What describes a check: its module where that has one check, named `check`, else its function."""
    module, _, function = place.partition(":")
    loaded = import_module(module)
    return loaded if function == "check" else getattr(loaded, function)


def _doc(documented: Any) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _number(end: float) -> str:
    return "no end" if math.isinf(end) else f"{end:g}"


def _names(settings: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in settings) or "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def _trackers() -> Iterator[str]:
    from luthier.ml.tracking.registry import TRACKERS

    yield "## Experiment trackers\n\n`tracking`; entry points `luthier.trackers`; more in [trackers](trackers.md).\n"
    rows = [
        (f"`{name}`", rules.title, rules.summary, _names(rules.chosen_by), f"`{rules.install}`")
        for name, rules in TRACKERS.items()
    ]
    yield from _table(("name", "called", "what it is", "chosen by", "needs"), rows)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
