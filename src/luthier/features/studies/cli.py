"""`luthier tune`: the best recipe that a budget finds, and `luthier studies`: what was searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.features.studies import cli_options as tune_options
from luthier.platform.cli.command import (
    Answer,
    ForceOption,
    HomeOption,
    JsonOption,
    ProjectOption,
    SetOption,
    caller_of,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.evaluation import Verdict
    from luthier.core.workflows.study import Study, Trial

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="The id of a study, from `luthier studies list`.")]


def tune(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, as YAML or JSON.", show_default=False)
    ] = None,
    overrides: SetOption = None,
    budget_hours: tune_options.HoursOption = None,
    budget_usd: tune_options.UsdOption = None,
    trials: tune_options.TrialsOption = None,
    space: tune_options.SpaceOption = None,
    sampler: tune_options.SamplerOption = None,
    objective: tune_options.ObjectiveOption = None,
    warm_start: tune_options.WarmStartOption = False,
    seed: tune_options.SeedOption = None,
    workers: tune_options.WorkersOption = None,
    resume: tune_options.ResumeOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Search for the best recipe within one budget, train it on all rows, and evaluate it on the held-out rows.

    Trials are compared by their validation loss, most of them early; those that are continued resume where they
    stopped. The held-out rows are used once, at the end. Ctrl-C pauses, --resume continues; --budget-hours or
    --budget-usd then set a new budget, counted from the start of the study.
    """
    from luthier.features.studies import service as studies
    from luthier.features.studies.end import final_verdict

    # What a study keeps from its beginning: with --resume these options are refused.
    kept = {"set": overrides or None, "trials": trials, "space": space, "sampler": sampler, "seed": seed}
    kept |= {"objective": objective, "warm_start": warm_start or None, "workers": workers}
    tune_options.refuse_mixed(recipe, resume, kept)
    with open_context(home) as context:
        study_id = resume
        if recipe is not None:
            # The options default to None, so that --resume can see which of them were given.
            most, who = trials or 40, sampler or "tpe"
            request = _request(recipe, overrides or (), budget_hours, budget_usd, most, space, who, seed or 0)
            goals = tune_options.goals(objective or "quality")
            request = replace(request, workers=workers or 1, goals=goals, knows_others=warm_start)
            study = studies.begin(context, request)
            study_id = study.study_id
            _say(
                as_json,
                f"{study_id}: {study.spec.hours:.3g} h, at most {counted(study.spec.most_trials, 'trial')} over "
                f"{counted(len(study.spec.space.parameters), 'parameter')}",
            )
        found = studies.go_on(context, str(study_id), hours=budget_hours, usd=budget_usd, tell=_teller(as_json))
        ran, verdict = context.studies.trials(found.study_id), final_verdict(context, found)
    return Answer(as_json, _document(found, ran, verdict), lambda console: _show(console, found, ran, verdict))


def list_studies(project: ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the studies of a project, newest first."""
    with open_context(home) as context:
        found = context.studies.list(caller_of(context, project).project_id)
        trials = context.studies.trials_of([study.study_id for study in found])
    documents = [_summary(study, trials[study.study_id]) for study in found]
    return Answer(as_json, documents, lambda console: _show_all(console, documents))


def show(study_id: StudyArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show a study: its trials, where its budget went, and its result."""
    from luthier.features.studies.end import final_verdict

    with open_context(home) as context:
        study, trials = context.studies.get(study_id), context.studies.trials(study_id)
        verdict = final_verdict(context, study)
    return Answer(as_json, _document(study, trials, verdict), lambda console: _show(console, study, trials, verdict))


def compare(
    study_ids: Annotated[list[str], typer.Argument(metavar="STUDY STUDY...", help="Two studies or more.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare studies: hours, trials, and the lowest loss after a whole training."""
    with open_context(home) as context:
        rows = []
        for study_id in study_ids:
            trials = context.studies.trials(study_id)
            rows.append(row := _summary(context.studies.get(study_id), trials))
            # Trials that were stopped early have losses of shorter trainings, which would not compare.
            row["best_loss"] = min((t.loss for t in trials if t.state == "done" and t.loss is not None), default=None)
    return Answer(as_json, rows, lambda console: _show_all(console, rows, also=("best_loss",)))


def apply(
    study_id: StudyArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write the recipe to.")],
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, metavar="N", help="The recipe of this trial [default: the winner].")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Write the recipe of a study's winner, or of another trial, to a file, ready to train."""
    from luthier.features.recipes.schema import recipe_file_text, write_schema
    from luthier.features.studies.end import winning_document
    from luthier.ml.data.rows.outputs import check_free, write_output

    # Before the home is opened, so that nothing is looked up in vain.
    check_free([output], force=force)
    with open_context(home) as context:
        study = context.studies.get(study_id)
        document = winning_document(study, context.studies.trials(study_id), trial)
    write_output(output, recipe_file_text(document).encode(), force=force)
    write_schema(output.absolute().parent)
    # `winning_document` has refused a study without a winner.
    number = study.winner if trial is None else trial
    said = {"study_id": study_id, "winner": study.winner, "trial": number, "file": str(output), "recipe": document}
    return Answer(as_json, said, lambda console: console.print(f"{output}: trial {number} of {study_id}"))


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_studies,
    "show": show,
    "compare": compare,
    "apply": apply,
}


def _request(
    recipe: Path,
    overrides: Sequence[str],
    hours: float | None,
    usd: float | None,
    trials: int,
    space: Path | None,
    sampler: str,
    seed: int,
) -> Any:
    from luthier.core.errors import RequestError
    from luthier.core.text.plain_yaml import parse_yaml
    from luthier.core.text.utf8 import read_utf8
    from luthier.features.recipes.service import load_recipe
    from luthier.features.studies.service import StudyRequest

    document = None
    if space is not None:
        # Before the recipe is read, in the words of the option.
        if not space.is_file():
            raise RequestError(f"--space {space}: no such file", expected="a YAML file", do="correct the path")
        document, _ = parse_yaml(str(space), read_utf8(space, "--space"))
    return StudyRequest(
        recipe=load_recipe(recipe, overrides),
        hours=hours,
        usd=usd,
        most_trials=trials,
        space=document,
        space_name="the usual space" if space is None else str(space),
        sampler=tune_options.sampler(sampler),
        seed=seed,
    )


def _teller(as_json: bool) -> Callable[[Study, Trial], None]:
    from luthier.features.studies.service import trial_line

    def tell(_study: Study, trial: Trial) -> None:
        # A trial that only begins has nothing to report.
        if trial.state in ("paused", "stopped", "done", "failed"):
            _say(as_json, trial_line(trial) + (f": {trial.reason}" if trial.reason else ""))

    return tell


def _say(as_json: bool, text: str) -> None:
    from luthier.platform.cli.console import stderr_console, stdout_console, visible
    from luthier.platform.cli.streams import NoReaderError

    # With --json, stdout belongs to the document alone.
    console = stderr_console() if as_json else stdout_console()
    # A search must not end because no one reads it: Ctrl-C, which pauses it, has ended `tee` as well.
    with suppress(NoReaderError):
        console.print(visible(text), soft_wrap=True)


def _document(study: Study, trials: Sequence[Trial], verdict: Verdict | None) -> dict[str, Any]:
    return {
        **study.model_dump(mode="json"),
        "trials": [trial.model_dump(mode="json") for trial in trials],
        "verdict": None if verdict is None else verdict.model_dump(mode="json"),
    }


def _summary(study: Study, trials: Sequence[Trial]) -> dict[str, Any]:
    from luthier.core.workflows.study import hours_spent

    return {
        "study_id": study.study_id,
        "status": study.status,
        "base_model": study.spec.recipe.base_model,
        "num_trials": len(trials),
        "hours": hours_spent(study, trials),
        "budget_hours": study.spec.hours,
        "winner": study.winner,
        "final_run_id": study.final_run_id,
    }


def _show_all(console: Console, rows: Sequence[dict[str, Any]], also: Sequence[str] = ()) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not rows:
        console.print(in_home("No studies yet: luthier tune RECIPE --budget-hours 2"))
        return
    names = ("study_id", "status", "base_model", "num_trials", "hours", "budget_hours", "winner", *also)
    table = make_table([name.replace("_", " ") for name in names], num_text_columns=3)
    for row in rows:
        table.add_row(*(visible(_cell(row[name])) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(console: Console, study: Study, trials: Sequence[Trial], verdict: Verdict | None) -> None:
    from luthier.features.studies.end import mean_losses
    from luthier.features.studies.service import trial_line
    from luthier.ml.search.report.page import budget_rows, front_rows, headline
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    console.print(visible(headline(study, trials, mean_losses(trials))), soft_wrap=True)
    for trial in trials:
        console.print(visible("  " + trial_line(trial)), soft_wrap=True)
    for number, point, is_knee in front_rows(study, trials, mean_losses(trials)):
        goals = ", ".join(f"{goal} {value}" for goal, value in zip(study.spec.goals, point, strict=True))
        console.print(f"  on the front: trial {number}: {goals}{', the knee' if is_knee else ''}", soft_wrap=True)
    for name, hours, share in budget_rows(study, trials):
        console.print(f"  {name}: {figures.duration(hours * 3600)}, {100 * share:.1f}% of the budget", soft_wrap=True)
    for note in study.notes:
        console.print(visible(f"note: {note}"), soft_wrap=True)
    if verdict is not None:
        sentence = f"on the held-out rows, which were not used for any choice: {verdict.title}. {verdict.headline}"
        console.print(visible(sentence), soft_wrap=True)
    if study.status == "done":
        console.print(f"final run: {study.final_run_id}; report: {study.report_path}", soft_wrap=True)
        take = f"take the recipe: luthier studies apply {study.study_id} -o recipe.yaml"
        console.print(in_home(take), soft_wrap=True)
    else:
        if study.needs_hours is not None:
            console.print(f"its budget ended before the final run, {study.final_run_id}", soft_wrap=True)
        console.print(in_home(f"{study.status}; resume it: {study.way_on}"), soft_wrap=True)
