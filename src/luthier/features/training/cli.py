"""`luthier train`: train a recipe, evaluate the result, and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    AllowUnsignedOption,
    Answer,
    BudgetHoursOption,
    BudgetKwhOption,
    BudgetTokensOption,
    BudgetUsdOption,
    CheckpointsOption,
    DevicesOption,
    GoodEnoughOption,
    HomeOption,
    JsonOption,
    OptimisedPromptOption,
    PricesOption,
    ReflectionModelOption,
    SetOption,
    open_context,
    parse_good_enough,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.recipe import BudgetRecipe, Recipe
    from luthier.core.run import TrainResult
    from luthier.features.training.launchers.here import Launcher
    from luthier.features.training.service import TrainOutcome

_StageOption = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="PATH=URL", help="First copy data from URL to PATH, once per machine. Repeatable."),
]
_InterruptedOption = Annotated[
    int, typer.Option("--interrupted-exit-code", min=0, max=255, help="Exit code when a signal paused the run.")
]


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, as YAML or JSON.", show_default=False)
    ] = None,
    overrides: SetOption = None,
    resume_id: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Resume a run that was paused, failed or killed.")
    ] = None,
    budget_hours: BudgetHoursOption = None,
    budget_usd: BudgetUsdOption = None,
    budget_tokens: BudgetTokensOption = None,
    budget_kwh: BudgetKwhOption = None,
    prices: PricesOption = None,
    good_enough: GoodEnoughOption = None,
    optimised_prompt: OptimisedPromptOption = None,
    reflection_model: ReflectionModelOption = None,
    num_devices: DevicesOption = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="ray", help="Train on a Ray cluster: ray for the one on this machine, or ray://HOST:PORT."
        ),
    ] = None,
    checkpoints: CheckpointsOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    stages: _StageOption = None,
    interrupted_exit_code: _InterruptedOption = 0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer | None:
    """Train a recipe, evaluate the result on held-out rows, and write a report.

    The recipe names a base model and a file of rows; `luthier plan RECIPE` shows what would be done, how long it takes
    and what it costs. Ctrl-C, SIGTERM or a spent budget pauses the run with a checkpoint; --resume continues it. With
    --resume, a budget replaces that of the run; it counts from the start of the run and includes the evaluation.
    """
    overrides = _overrides(recipe, resume_id, overrides or (), good_enough, (optimised_prompt, reflection_model))
    from luthier.features.planning.budgets import asked_budget, merged
    from luthier.features.planning.format import show_plan
    from luthier.features.training import external
    from luthier.features.training import service as training

    # Before any home is opened: wrong options are rejected on every rank.
    launcher = _launcher(num_devices, on)
    budget = asked_budget(hours=budget_hours, usd=budget_usd, tokens=budget_tokens, energy_kwh=budget_kwh)
    is_remote = on is not None and on != "ray"  # `_launcher` has refused what is no address
    if on is not None and is_remote:
        _check_for_cluster(on, checkpoints, allow_unsigned, prices, resume_id, budget)
    asked = _read_and_stage(recipe, overrides, stages or ())
    if asked is not None:
        asked = asked.model_copy(update={"budget": merged(asked.budget, budget)})
    # Other ranks open the home only for its caches; rank 0 owns the run.
    if external.external_world_size() > 1 and not external.is_first():
        with open_context(home) as context:
            external.train_as_follower(context)
        return None  # rank 0 has the answer
    base_dir = Path() if recipe is None else recipe.absolute().parent
    # The run is in the home of the cluster, so none is opened here.
    if on is not None and is_remote:
        return _on_cluster(on, asked, base_dir, resume_id, num_devices or 1, interrupted_exit_code, as_json)
    with open_context(home, checkpoints=checkpoints, allow_unsigned=allow_unsigned) as context:
        if asked is not None:
            outcome = external.train(
                context, asked, base_dir=base_dir, prices=prices, show_plan=show_plan, launcher=launcher
            )
        else:
            outcome = training.resume(context, str(resume_id), budget=budget, prices=prices, launcher=launcher)
    exit_code = _exit_code(outcome, interrupted_exit_code)
    return Answer(as_json, outcome.as_json(), lambda console: show_outcome(console, outcome), exit_code)


def _overrides(
    recipe: Path | None,
    resume_id: str | None,
    overrides: Sequence[str],
    good_enough: str | None,
    search: tuple[int | None, str | None],
) -> list[str]:
    """The values that replace those of the recipe; options about judging are parts of the plan, too.

    Args:
        recipe: the file.
        resume_id: a run in place of it.
        overrides: `--set`.
        good_enough: `--good-enough`.
        search: `--optimised-prompt` and `--reflection-model`.

    Raises:
        RequestError: neither a recipe nor a run is given, or both, or overrides for an existing run.
    """
    from luthier.core.errors import RequestError

    asked = parse_good_enough(good_enough)
    of_options = {
        "--good-enough": []
        if asked is None
        else [f"evaluation.good_enough={asked.model_dump_json(exclude_none=True)}"],
        "--optimised-prompt": [] if search[0] is None else [f"evaluation.optimised_prompt.budget_tokens={search[0]}"],
        # As JSON, so that no character of a path or an address means something to YAML.
        "--reflection-model": []
        if search[1] is None
        else [f"evaluation.optimised_prompt.reflection_model={json.dumps(search[1])}"],
    }
    given = [value for values in of_options.values() for value in values]
    if (recipe is None) == (resume_id is None) or (resume_id is not None and (overrides or given)):
        came = "both a recipe and --resume" if recipe and resume_id else "neither a recipe nor --resume"
        option = "--set" if overrides else next((name for name, value in of_options.items() if value), "")
        raise RequestError(
            f"{option} with --resume: a run keeps the plan that it started with" if resume_id and not recipe else came,
            expected="a recipe (with --set where you like), or --resume RUN (with a budget where you like)",
            do="start a new run with `luthier train RECIPE`, or resume one with `luthier train --resume RUN`",
        )
    return [*overrides, *given]


def _launcher(num_devices: int | None, on: str | None) -> Launcher | None:
    """The training processes: those started by a launcher, the requested number, or None for this one."""
    from luthier.core.errors import RequestError
    from luthier.features.training.external import ExternalLauncher, external_world_size

    if on is not None:
        from luthier.features.training.launchers.ray import RayLauncher, is_address

        if on != "ray" and not is_address(on):
            raise RequestError(
                f"--on {on}",
                expected="ray (the cluster of this machine) or ray://HOST:PORT (one elsewhere)",
                do="leave --on out to train on this machine",
            )
        # Processes started by a launcher inside Ray must not start workers again.
        if on == "ray" and external_world_size() == 1:
            return RayLauncher(num_devices or 1)
    if external_world_size() == 1:
        if num_devices in (None, 1):
            return None
        from luthier.features.training.launchers.local import LocalLauncher

        return LocalLauncher(num_devices)
    if num_devices is not None:
        raise RequestError(
            f"--devices {num_devices} in a process that a launcher has started as one of {external_world_size()}",
            expected="one of the two: torchrun and srun have started the processes already",
            do="leave --devices out, or start `luthier train` without a launcher",
        )
    return ExternalLauncher()


def _read_and_stage(recipe: Path | None, overrides: Sequence[str], stages: Sequence[str]) -> Recipe | None:
    """The recipe, and the copies of what is to be staged: a wrong recipe is refused before anything is copied.

    A recipe that is itself below a staged path is read once it was copied. Processes that a launcher has started beside
    the first one may lack the file, which only the first one needs.
    """
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training.external import is_first
    from luthier.features.training.staging import parse_staged, stage
    from luthier.platform.cli.progress import make_progress

    staged = [parse_staged(text).path.absolute() for text in stages]
    if recipe is not None and not is_first() and not recipe.is_file():
        recipe = None
    is_staged = recipe is not None and any(recipe.absolute().is_relative_to(path) for path in staged)
    asked = None if recipe is None or is_staged else load_recipe(recipe, overrides)
    stage(stages, make_progress())
    return load_recipe(recipe, overrides) if recipe is not None and is_staged else asked


def _exit_code(outcome: TrainOutcome, interrupted: int) -> int:
    """1 for a run that failed; the code for interrupted runs where a signal has paused it."""
    if outcome.record.status == "paused" and outcome.record.stop_cause == "interrupted":
        return interrupted
    return 1 if outcome.record.status == "failed" else 0


def _check_for_cluster(
    on: str,
    checkpoints: str | None,
    allow_unsigned: bool,
    prices: Path | None,
    resume_id: str | None,
    budget: BudgetRecipe | None,
) -> None:
    """Raise RequestError for options that a run in the home of a cluster elsewhere does not have."""
    from luthier.core.errors import RequestError

    if checkpoints is not None:
        raise RequestError(
            f"--checkpoints with --on {on}: the run is in the home of that cluster",
            expected="the place for uploads among the settings of the cluster",
            do="set LUTHIER_CHECKPOINTS where the head of the cluster runs, and leave --checkpoints out",
        )
    if allow_unsigned:
        raise RequestError(
            f"--allow-unsigned with --on {on}: the run is in the home of that cluster",
            expected="the decision among the settings of the cluster",
            do="set LUTHIER_CHECKPOINT_ALLOW_UNSIGNED where the head of the cluster runs, and leave the option out",
        )
    if prices is not None or (resume_id is not None and budget is not None):
        raise RequestError(
            f"--on {on} with {'--prices' if prices is not None else 'a budget for a resumed run'}",
            expected="a job whose prices and larger budgets are those of the cluster's home",
            do="run `luthier train` on the cluster's head for that",
        )


def _on_cluster(
    address: str,
    asked: Recipe | None,
    base_dir: Path,
    resume_id: str | None,
    num_devices: int,
    interrupted_exit_code: int,
    as_json: bool,
) -> Answer:
    """Submit the work to a remote Ray cluster, show its output, and report how the job ended."""
    from luthier.features.training.launchers.ray import run_job
    from luthier.platform.cli.streams import Stderr

    ended = run_job(
        address,
        recipe=asked,
        base_dir=base_dir,
        resume_id=resume_id,
        num_devices=num_devices,
        interrupted_exit_code=interrupted_exit_code,
        # The output of the job is progress; stdout is reserved for the result.
        echo=Stderr().write,
    )
    line = f"job {ended.job_id} on {ended.address}: {ended.status}"
    exit_code = interrupted_exit_code if ended.is_interrupted else 0
    return Answer(as_json, ended.as_json(), lambda console: console.print(line, soft_wrap=True), exit_code)


def show_outcome(console: Console, outcome: TrainOutcome) -> None:
    """Print summary, warnings, verdict, and the path of the report."""
    from luthier.features.evaluations.verdict_format import print_warnings, show_evaluation
    from luthier.features.planning.format import bill_line, budget_lines
    from luthier.features.trackers.reporting import undelivered
    from luthier.features.training.format import show_fit
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    record, result = outcome.record, outcome.record.result
    rows = [
        ("run", record.run_id),
        ("status", record.status + (f": {record.stopped_because}" if record.stopped_because else "")),
        ("base model", record.base_model),
        ("method", record.method),
    ]
    if result is not None:
        rows += [
            ("steps", f"{result.num_steps:,} in {figures.duration(result.seconds)}"),
            (
                "trained",
                f"{result.num_trainable_parameters:,} parameters ({result.trainable_fraction:.2%}) on "
                f"{result.num_trained_tokens:,} learned of {result.num_tokens:,} tokens",
            ),
            ("training loss", _training_loss(result, outcome.plan.objective.loss_unit)),
            ("best validation", _best_validation(result, outcome.plan.objective.loss_unit)),
            (
                "speed",
                f"{figures.number(result.tokens_per_second)} tokens/s, "
                f"{figures.number(result.examples_per_second)} examples/s, "
                f"{figures.duration(result.seconds_per_step)} a step",
            ),
            ("peak memory", peak_memory(result)),
        ]
        if result.stream is not None:
            rows.append(("streamed", visible(result.stream.summary)))
        if result.bill is not None:
            rows.append(("bill", bill_line(result.bill)))
        if outcome.forecast is not None:
            rows.append(("forecast", outcome.forecast.sentence))
        # Full fine-tuning keeps its whole model there as well.
        if result.adapter_path is not None:
            rows.append(("weights", result.adapter_path))
    if outcome.plan.budget is not None:
        rows += [("budget", line) for line in budget_lines(outcome.plan.budget)]
    if record.report_path is not None:
        rows.append(("report", record.report_path))
    rows += [(state.name, visible(state.summary)) for state in outcome.trackers]
    facts(console, rows)
    print_warnings(console, outcome.warnings + tuple(undelivered(outcome.trackers, record.run_id)))
    if result is not None and result.fit is not None:
        show_fit(console, result.fit)
    if outcome.evaluation is not None:
        show_evaluation(console, outcome.evaluation, only_what_decides=True)
    if outcome.go_on is not None:
        console.print(in_home(f"\nTo resume: {outcome.go_on}"), soft_wrap=True)


def peak_memory(result: TrainResult) -> str:
    """Peak memory of training, and of evaluation if it was measured."""
    from luthier.platform.cli import figures

    training = figures.size(result.peak_memory_bytes)
    if result.judging_peak_memory_bytes is None:
        return training
    return f"{training} during training, {figures.size(result.judging_peak_memory_bytes)} during evaluation"


def _best_validation(result: TrainResult, unit: str) -> str:
    from luthier.platform.cli import figures

    if result.best_validation_loss is None:
        return "none: the recipe names no validation rows"
    loss = f"{figures.number(result.best_validation_loss)} {unit}".rstrip()
    return f"{loss} (step {result.best_step:,})"


def _training_loss(result: TrainResult, unit: str) -> str:
    """What was minimised, and what compares with validation losses where that is something else."""
    from luthier.platform.cli import figures

    minimised = figures.number(result.train_loss)
    plain = minimised if result.plain_train_loss is None else figures.number(result.plain_train_loss)
    loss = f"{minimised} {unit}".rstrip()
    return loss if plain == minimised else f"{loss} as minimised; {plain} of the task's rows without regularisation"
