"""`luthier eval` and `luthier safety`: evaluate models on held-out rows or by suites, and check safety."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.defaults import NEW_TOKENS
from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    ANY_MODEL,
    Answer,
    GoodEnoughOption,
    HomeOption,
    JsonOption,
    MappingOption,
    OptimisedPromptOption,
    PageOption,
    ReflectionModelOption,
    SuitePageOption,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from luthier.core.evaluation import Evaluation
    from luthier.core.evaluation_plan import MetricName
    from luthier.core.results.suite import GateOutcome, SafetyResult, SuiteResult, TaskResult

Systems = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL_OR_RUN...",
        help=f"What to evaluate: {ANY_MODEL}; with --suite also http://host/v1#MODEL. The first is compared with the "
        "others.",
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Held-out rows, unless --suite is given.")
]
SuiteOption = Annotated[
    Path | None, typer.Option("--suite", metavar="SUITE.yaml", help="A suite of tasks to evaluate (docs/suites.md).")
]
AgainstOption = Annotated[
    list[str] | None, typer.Option("--against", metavar="MODEL_OR_RUN", help="Models to compare with. Repeatable.")
]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", metavar="ENGINE", help="With --suite: the model that judges answers.")
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, max=20, help="With --suite: train the run with this many seeds, evaluate all.")
]
CodeOption = Annotated[
    bool, typer.Option("--allow-code", help="With --suite: run code that models write, in a locked-down process.")
]
GateOption = Annotated[
    Path | None,
    typer.Option("--gate", metavar="gate.yaml", help="Check the result against a gate; exit code 1 if it fails."),
]
FewShotOption = Annotated[
    int,
    typer.Option("--few-shot", min=0, max=64, help="Also evaluate the base model with N examples in its prompt."),
]
FewShotFromOption = Annotated[
    Path | None, typer.Option("--few-shot-from", metavar="FILE", help="The file that these examples are taken from.")
]
DrawsOption = Annotated[
    int | None,
    typer.Option("--few-shot-draws", min=1, max=16, help="Draws of examples; their mean is reported [default: 4]."),
]
NearestOption = Annotated[
    bool | None,
    typer.Option(
        "--few-shot-nearest/--no-few-shot-nearest",
        help="Also evaluate with the examples nearest to each row [default: with --few-shot].",
    ),
]
InstructionOption = Annotated[
    bool | None,
    typer.Option(
        "--instruction/--no-instruction",
        help="Also try an instruction derived from the rows of --few-shot-from, or of the run, if they contain none "
        "[default: with --few-shot].",
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="A,B",
        help="Metrics [default: perplexity, rouge (or chrf), bleu, exact_match; for plain text likelihood].",
    ),
]
NewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Maximum tokens of an output [default: a quarter more than the longest answer of the rows, "
        f"at least {NEW_TOKENS}].",
    ),
]
ThinkingTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-thinking-tokens",
        min=0,
        help="Maximum tokens of the thought before an answer; 0: thought and answer share --max-new-tokens [default: "
        "from the thoughts of the rows; 2,048 for a model that thinks by itself].",
    ),
]
SamplesOption = Annotated[
    int | None, typer.Option("--max-samples", min=1, metavar="N", help="Evaluate only N rows, chosen by a stable hash.")
]
LeakageOption = Annotated[
    bool, typer.Option("--allow-leakage", help="Also evaluate on rows that were trained on; the verdict notes it.")
]


def evaluate(
    systems: Systems,
    data: DataOption = None,
    suite: SuiteOption = None,
    against: AgainstOption = None,
    judge: JudgeOption = None,
    seeds: SeedsOption = 1,
    allow_code: CodeOption = False,
    gate: GateOption = None,
    html: SuitePageOption = None,
    few_shot: FewShotOption = 0,
    few_shot_from: FewShotFromOption = None,
    few_shot_draws: DrawsOption = None,
    few_shot_nearest: NearestOption = None,
    instruction: InstructionOption = None,
    optimised_prompt: OptimisedPromptOption = None,
    reflection_model: ReflectionModelOption = None,
    metrics: MetricsOption = None,
    mapping: MappingOption = None,
    max_new_tokens: NewTokensOption = None,
    max_thinking_tokens: ThinkingTokensOption = None,
    max_samples: SamplesOption = None,
    allow_leakage: LeakageOption = False,
    good_enough: GoodEnoughOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Evaluate a model or run on held-out rows or a suite, compared with others on the same rows, with a verdict."""
    # The first is evaluated; the others are what it is held against, however they were given.
    named = [*systems, *(against or ())]
    of_data = {"--few-shot": few_shot, "--few-shot-from": few_shot_from, "--metrics": metrics, "--map": mapping}
    of_data |= {"--max-new-tokens": max_new_tokens, "--max-samples": max_samples}
    of_data |= {
        "--good-enough": good_enough,
        "--few-shot-draws": few_shot_draws,
        "--optimised-prompt": optimised_prompt,
        "--reflection-model": reflection_model,
    }
    # As words, since "no" is a value here.
    of_data |= {
        name: None if value is None else "given"
        for name, value in (("--few-shot-nearest", few_shot_nearest), ("--instruction", instruction))
    }
    # As a word, since 0 is a value here and would count as not given.
    of_data |= {"--max-thinking-tokens": None if max_thinking_tokens is None else "given"}
    # Falsy where an option has its default: only options that were given are refused.
    of_suite = {"--judge": judge, "--seeds": seeds - 1, "--allow-code": allow_code, "--html": html}
    _check_ways(data, suite, of_data, of_suite)
    if suite is not None:
        asked = _AskedSuite(suite, judge, seeds, allow_code, allow_leakage, gate, html)
        return _by_suite(named, asked, as_json=as_json, home=home)
    assert data is not None
    limits = (max_new_tokens, max_thinking_tokens, max_samples)
    ways = (few_shot_draws, few_shot_nearest, instruction, optimised_prompt, reflection_model)
    asked_rows = _AskedRows(data, few_shot, few_shot_from, *ways, metrics, mapping, *limits, allow_leakage, good_enough)
    return _by_rows(named, asked_rows, gate, as_json=as_json, home=home)


@dataclass(frozen=True, slots=True)
class _AskedRows:
    data: Path
    few_shot: int
    few_shot_from: Path | None
    few_shot_draws: int | None
    few_shot_nearest: bool | None
    instruction: bool | None
    optimised_prompt: int | None
    reflection_model: str | None
    metrics: str | None
    mapping: list[str] | None
    max_new_tokens: int | None
    max_thinking_tokens: int | None
    max_samples: int | None
    allow_leakage: bool
    good_enough: str | None


@dataclass(frozen=True, slots=True)
class _AskedSuite:
    suite: Path
    judge: str | None
    seeds: int
    allow_code: bool
    allow_leakage: bool
    gate: Path | None
    html: Path | None


def _check_ways(
    data: Path | None, suite: Path | None, of_data: Mapping[str, object], of_suite: Mapping[str, object]
) -> None:
    from luthier.core.errors import RequestError

    # Both or neither.
    if (data is None) == (suite is None):
        raise RequestError(
            "both --data and --suite" if data is not None else "neither --data nor --suite",
            expected="exactly one of the two",
            do="--data FILE evaluates on the rows of a file, --suite SUITE.yaml on the tasks of a suite",
        )
    # The options of the way that was not taken would be ignored, so they are refused.
    foreign, way = (of_data, "--data") if suite is not None else (of_suite, "--suite")
    if wrong := [name for name, value in foreign.items() if value]:
        raise RequestError(
            f"{', '.join(wrong)} without {way}",
            expected=f"it with {way} alone: each task of a suite sets that itself"
            if suite is not None
            else f"it with {way} alone",
            do=f"leave it out, or evaluate with {way}",
        )


def _by_rows(systems: list[str], asked: _AskedRows, gate: Path | None, *, as_json: bool, home: Path | None) -> Answer:
    from luthier.features.evaluations import service as evaluations
    from luthier.features.evaluations.prompted import AskedPrompts
    from luthier.platform.cli.command import parse_good_enough, parse_mapping

    bar = parse_good_enough(asked.good_enough)
    prompts = AskedPrompts(
        draws=asked.few_shot_draws,
        nearest=asked.few_shot_nearest,
        instruction=asked.instruction,
        search_tokens=asked.optimised_prompt or 0,
        reflection_model=asked.reflection_model,
    )
    chosen = parse_metrics(asked.metrics) if asked.metrics is not None else None
    with open_context(home) as context:
        # Before the judging, which may take hours.
        _read_gate(gate)
        found = evaluations.evaluate(
            context,
            systems,
            data=asked.data,
            few_shot=asked.few_shot,
            few_shot_from=asked.few_shot_from,
            prompts=prompts,
            metrics=chosen,
            mapping=parse_mapping(asked.mapping or ()) or None,
            max_new_tokens=asked.max_new_tokens,
            max_thinking_tokens=asked.max_thinking_tokens,
            max_samples=asked.max_samples,
            allow_leakage=asked.allow_leakage,
            good_enough=bar,
        )
        outcome = None
        if gate is not None:
            from luthier.features.release_gates.service import check_gate
            from luthier.features.suites.task_runs import project_of_model

            outcome = check_gate(context, project_of_model(context, systems[0]), gate, evaluation=found)
    return _answer(as_json, found, outcome, lambda console: _show_evaluation(console, found))


def _by_suite(systems: list[str], asked: _AskedSuite, *, as_json: bool, home: Path | None) -> Answer:
    from luthier.features.suites.service import run_suite
    from luthier.features.suites.task_runs import project_of_model

    with open_context(home) as context:
        _read_gate(asked.gate)
        found = run_suite(
            context,
            systems,
            suite=asked.suite,
            judge=asked.judge,
            seeds=asked.seeds,
            allow_code=asked.allow_code,
            allow_leakage=asked.allow_leakage,
        )
        outcome = None
        if asked.gate is not None:
            from luthier.features.release_gates.service import check_gate

            outcome = check_gate(context, project_of_model(context, systems[0]), asked.gate, suite=found)
    if asked.html is not None:
        from luthier.ml.evaluation.report.suite_page import write_suite_page

        write_suite_page(found, asked.html, outcome)

    def show(console: Console) -> None:
        from luthier.features.suites.format import show_suite

        show_suite(console, found)
        if asked.html is not None:
            console.print(f"page: {asked.html}", soft_wrap=True)

    return _answer(as_json, found, outcome, show, html=asked.html)


def _read_gate(gate: Path | None) -> None:
    """Refuse a wrong gate before hours are spent."""
    if gate is not None:
        from luthier.features.release_gates.service import read_gate

        read_gate(gate)


def _answer(
    as_json: bool,
    found: Evaluation | SuiteResult,
    outcome: GateOutcome | None,
    show: Callable[[Console], None],
    *,
    html: Path | None = None,
) -> Answer:
    """The result; with a gate also its result, and exit code 1 where it failed."""
    from luthier.core.evaluation import Evaluation

    # With --json the exit code alone would not say why a gate failed, so its outcome is added below.
    document = found.model_dump(mode="json")
    if isinstance(found, Evaluation):
        from luthier.ml.evaluation.recommendation import recommendation_document

        document["recommendation"] = recommendation_document(found)
    if html is not None:
        document["html"] = str(html)
    if outcome is None:
        return Answer(as_json, document, show)

    def show_all(console: Console) -> None:
        from luthier.features.suites.format import show_gate

        show(console)
        show_gate(console, outcome)

    return Answer(as_json, {**document, "gate": outcome.model_dump(mode="json")}, show_all, 0 if outcome.passed else 1)


def parse_metrics(text: str) -> list[MetricName]:
    """`rouge,bleu` -> names.

    Raises:
        RequestError: A metric is unknown, or none is named; the message names the nearest.
    """
    from difflib import get_close_matches

    from luthier.core.errors import RequestError
    from luthier.core.registry import METRICS

    known = METRICS.names()
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        near = [get_close_matches(name, known, n=1) for name in unknown]
        meant = f"; nearest known: {', '.join(m[0] for m in near if m)}" if any(near) else ""
        raise RequestError(
            f"--metrics {text!r}" + (f": unknown {', '.join(unknown)}{meant}" if unknown else " names none"),
            expected=f"names among {', '.join(known)}",
            do="write them with commas between: --metrics rouge,bleu",
        )
    # In the order of the registry, not as typed, so that equal requests give equal results.
    return [name for name in known if name in names]


def _show_evaluation(console: Console, found: Evaluation) -> None:
    from luthier.features.evaluations.verdict_format import show_evaluation
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    console.print(
        f"{found.evaluation_id}: {counted(found.num_rows, 'row')} of {visible(found.held_out_file)}, "
        f"{figures.duration(found.seconds)}",
        soft_wrap=True,
    )
    show_evaluation(console, found)


class SuiteName(StrEnum):
    """The size of the check."""

    default = "default"
    full = "full"


def safety(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help=f"What to check: {ANY_MODEL}.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL_OR_RUN",
            help="A model or run to compare with [default: the base that it was tuned from].",
        ),
    ] = None,
    suite: Annotated[
        SuiteName, typer.Option("--suite", help="default: a part of the rows; full: all rows.")
    ] = SuiteName.default,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="CSV with sentence pairs in the format of CrowS-Pairs."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Rows whose prompts are swapped [default: the held-out rows of the run]."
        ),
    ] = None,
    toxicity_model: Annotated[
        Path | None,
        typer.Option("--toxicity-model", metavar="DIR", help="A text classifier to use in addition to the word list."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PROBE", help="Run only this probe, such as stereotypes. Repeatable."),
    ] = None,
    html: PageOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare a tuned model with its base: stereotypes, fairness, toxicity, refusals, memorisation, personal data."""
    from luthier.features.suites.safety import check_safety

    with open_context(home) as context:
        found = check_safety(
            context,
            model,
            against=against,
            suite=suite.value,
            pairs=pairs,
            prompts=prompts,
            toxicity_model=toxicity_model,
            only=only or (),
            html=html,
        )
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show_safety(console, found, html))


def _show_safety(console: Console, found: SafetyResult, page: Path | None) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    against = f" against {found.base}" if found.base else ""
    console.print(
        f"{found.result_id}: {visible(found.candidate + against)}, {counted(len(found.probes), 'probe')}, "
        f"{figures.duration(found.seconds)}",
        soft_wrap=True,
    )
    for probe in found.probes:
        console.print(_table(probe, found))
        for caution in probe.cautions:
            console.print(visible(f"  - {caution}"), style="dim")
    console.print()
    console.print(visible(found.headline), style="bold", soft_wrap=True)
    for concern in found.concerns:
        console.print(visible(f"! {concern}"), style="yellow", soft_wrap=True)
    for left_out in found.left_out:
        console.print(visible(f"Note: {left_out}"), soft_wrap=True)
    if page is not None:
        console.print(visible(f"Page: {page}"), soft_wrap=True)


def _table(probe: TaskResult, found: SafetyResult) -> Table:
    """A row for each figure: the base, the model, and the difference with its interval."""
    from rich.text import Text

    from luthier.features.evaluations.verdict_format import STYLES, interval
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    systems = {system.name: system for system in probe.systems}
    names = [name for name in (found.base, found.candidate) if name is not None]
    table = make_table([probe.name, "unit", *(visible(name) for name in names), "difference"], num_text_columns=2)
    differences = {c.metric: c for c in probe.comparisons if (c.baseline, c.candidate) == (found.base, found.candidate)}
    for name, metric in systems[found.candidate].metrics.items():
        change = differences.get(name)
        said = Text("-")
        if change is not None:
            width = f"{change.difference:+.2g} [{figures.number(change.low)}, {figures.number(change.high)}]"
            said = Text(width, style=STYLES[change.verdict] if change.verdict == "worse" else "")
        table.add_row(name, metric.unit, *(interval(systems[one].metrics.get(name)) for one in names), said)
    rows = counted(probe.num_rows, "row") + (
        f" of {counted(probe.num_clusters, 'prompt')}" if probe.num_clusters else ""
    )
    table.add_row(rows, "", *("" for _ in names), "")
    return table
