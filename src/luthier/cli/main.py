"""The entry point: `luthier VERB ...`. Turns every ending into an exit code and, under --json, into one document.

0    done
1    the work failed (or a bug, which alone shows a traceback)
2    the request is wrong
130  interrupted
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, cast

import typer
import typer.core

from luthier.cli import completion
from luthier.cli.help import epilog, write_commands
from luthier.core.aliases import COMMANDS, warn_renamed
from luthier.core.system.process_setup import (
    collect_rarely,
    end_process,
    follow_starter,
    is_watched,
    keep_few_kernels,
    keep_products_exact,
    wait_briefly,
)
from luthier.features.accounts import keys_cli as keys
from luthier.features.accounts import members_cli as users
from luthier.features.accounts import projects_cli as projects
from luthier.features.assessments import report_cli as report
from luthier.features.audit_log import cli as audit_log
from luthier.features.batches import cli as batches
from luthier.features.datasets import cli as data
from luthier.features.deployments import cli as canary
from luthier.features.deployments import cli as deploy
from luthier.features.doctor import cli as doctor
from luthier.features.evals_api import cli as evals
from luthier.features.exports import cli as export
from luthier.features.exports import cli as push
from luthier.features.exports import cli as verify
from luthier.features.exports.formats import cli as format_prices
from luthier.features.feedback import cli as feedback
from luthier.features.glossary import cli as glossary
from luthier.features.human_eval import cli as human_eval
from luthier.features.inbox import cli as inbox
from luthier.features.judges import cli as judge
from luthier.features.lineage import cli as lineage
from luthier.features.mcp_server import cli as mcp
from luthier.features.model_browser import cli as models
from luthier.features.monitoring import cli as alerts
from luthier.features.monitoring import cli as monitor
from luthier.features.recipes import import_cli
from luthier.features.recipes import schema_cli as recipe
from luthier.features.release_gates import cli as gates
from luthier.features.roi import cli as worth
from luthier.features.runs import cli as runs
from luthier.features.serving import chat_cli as chat
from luthier.features.serving import predict_cli as predict
from luthier.features.studies import cli as tune
from luthier.features.suites import cli as evaluate
from luthier.features.suites import cli as safety
from luthier.features.traffic import cli as traffic
from luthier.features.training import cli as train
from luthier.features.training import jobs_cli as jobs
from luthier.features.training import launch_cli as launch
from luthier.features.training import plan_cli as plan
from luthier.features.usage import cli as usage
from luthier.features.workflows import cli as pipelines
from luthier.features.workflows.automl import cli as automl
from luthier.features.workflows.distillation import cli as distill
from luthier.features.workflows.model_comparison import cli as compare_models
from luthier.features.workflows.quickstart import cli as quickstart
from luthier.features.workflows.retraining import cli as retrain
from luthier.platform.cli.command import Answer, Ending, end_of
from luthier.server import cli as serve
from luthier.server import cli as server


class _Commands(typer.core.TyperGroup):
    """Commands by their names of one or two words, and by the names that they had in an earlier version.

    `export` and `monitor` are commands with arguments, `export benchmark` and `monitor check` are others: the longest
    name that fits is taken. After `--` nothing is a name: `luthier monitor -- check` is about a model called check.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Old names first: they may have two words of which the first is a command today.
        for num_words in (2, 1):
            given = " ".join(args[:num_words])
            if given in COMMANDS:
                warn_renamed("command", f"luthier {given}", f"luthier {COMMANDS[given]}")
                args = [*COMMANDS[given].split(), *args[num_words:]]
                break
        two_words = " ".join(args[:2])
        if two_words in self.commands:
            args = [two_words, *args[2:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of the help in groups."""
        write_commands(self.list_commands(ctx), lambda name: self.get_command(ctx, name), formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What the Tab key offers; names of two words would be cut at the blank."""
        return [item for item in super().shell_complete(ctx, incomplete) if " " not in str(item.value)]


class _LazyCommands(Mapping[str, Any]):
    """Commands by name, each built when it is first looked up.

    Typer evaluates the annotations of every option. For all commands together that takes longer than the other steps of
    a start, and one command line needs one or two of them.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Any]]) -> None:
        self._builders = builders
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._builders[name]()
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


def command_tree() -> typer.core.TyperGroup:
    """The group of all commands; each command and each group is built when it is first looked up."""
    return _lazy_group(_build_app())


def _lazy_group(app: typer.Typer) -> typer.core.TyperGroup:
    """What Typer builds of an app, with its commands and groups built on lookup."""
    commands, groups = app.registered_commands, app.registered_groups
    app.registered_commands, app.registered_groups = [], []
    group = typer.main.get_group(app)
    builders: dict[str, Callable[[], Any]] = {}
    for command in commands:
        builders[cast(str, command.name)] = functools.partial(
            typer.main.get_command_from_info,
            command,
            pretty_exceptions_short=app.pretty_exceptions_short,
            rich_markup_mode=app.rich_markup_mode,
        )
    for inner in groups:
        below = cast(typer.Typer, inner.typer_instance)
        builders[cast(str, below.info.name)] = functools.partial(_lazy_group, below)
    group.commands = cast(Any, _LazyCommands(builders))
    return group


def _build_app() -> typer.Typer:
    """The commands. Help is plain text: rich's would cost half of the time that a start may take."""
    app = typer.Typer(
        name="luthier",
        cls=_Commands,
        help="Fine-tune language models on your own machine, and get an honest answer to: was it worth it?",
        epilog=epilog(),
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    app.command("quickstart", short_help="Try everything on rows from this machine's Python.")(quickstart.quickstart)
    app.command("train", short_help="Train a recipe, evaluate the result and write a report.")(train.train)
    app.command("tune", short_help="Search for the best recipe within one budget.")(tune.tune)
    app.command("automl", short_help="From a file and a goal to an evaluated model.")(automl.automl)
    app.command("compare-models", short_help="Which base model? And is a prompt enough?")(compare_models.compare_models)
    app.command("plan", short_help="Show the plan of a recipe, with time and cost.")(plan.plan)
    app.command("import", short_help="Make a recipe of another tool's file.")(import_cli.import_recipe)
    app.command("worth", short_help="Does fine-tuning pay off? Yes, no, or open.")(worth.worth)
    app.command("report", short_help="Write the report of a run again.")(report.report)
    app.command("eval", short_help="Evaluate models on held-out rows.")(evaluate.evaluate)
    app.command("safety", short_help="Measure how tuning changed safety.")(safety.safety)
    app.command("distill", short_help="Distill into a smaller model.")(distill.distill)
    app.command(
        "export",
        cls=export.ExportCommand,
        short_help="Export a model to another runtime, proved equal.",
        epilog="`luthier export benchmark` measures what each format costs and loses.",
    )(export.export)
    app.command(
        "export benchmark",
        cls=export.ExportCommand,
        short_help="Benchmark a model's export formats: size, speed, quality.",
    )(format_prices.benchmark)
    _add_groups(app)
    _add_serving(app)
    return app


def _add_groups(app: typer.Typer) -> None:
    """The commands that have subcommands."""
    for name, verbs, text in (
        ("runs", runs.COMMANDS, "List, show, edit, compare, watch, track and remove runs."),
        ("recipe", recipe.COMMANDS, "The JSON Schema of recipes, for editors."),
        ("jobs", jobs.COMMANDS, "Queue recipes for workers; list, pause, resume and cancel jobs."),
        ("studies", tune.COMMANDS, "List, show and compare searches; take over the best recipe."),
        (
            "pipelines",
            pipelines.COMMANDS,
            "List and show model comparisons, automl and retrainings, stage by stage.",
        ),
        ("models", models.COMMANDS, "List, fetch, show, check and remove base models."),
        ("data", data.COMMANDS | lineage.DATA_COMMANDS, "Make rows of documents; audit, repair, split, remove rows."),
        ("evals", evals.COMMANDS, "Turn evals of OpenAI's API into suites."),
        ("batches", batches.COMMANDS, "List, show and cancel batches of requests."),
        ("judge", judge.COMMANDS, "Calibrate a model that judges against people's ratings."),
        (
            "human-eval",
            human_eval.COMMANDS,
            "Have people rate answers blind: panels, links, agreement, preference pairs.",
        ),
        ("gates", gates.COMMANDS, "Show, set and remove the release gate of a project."),
        ("alerts", alerts.COMMANDS, "Alerts on deployed models, and who receives them."),
        ("feedback", feedback.COMMANDS, "Import and list feedback on answers, and have answers reviewed."),
        ("inbox", inbox.COMMANDS, "Work that waits for people: list, assign, snooze, mark as done."),
        ("keys", keys.COMMANDS, "Create, list and revoke API keys of the server."),
        ("users", users.COMMANDS, "Create, list, change and remove users who sign in to the pages."),
        ("server", server.COMMANDS, "The server of pages and APIs, with its workers."),
        ("projects", projects.COMMANDS, "Create and list projects, which own keys, files, jobs and models."),
        (
            "traffic",
            traffic.COMMANDS,
            "Recorded requests: retention, viewing, forgetting a user.",
        ),
        ("audit-log", audit_log.COMMANDS, "Show who did what, and verify that the log is unchanged."),
    ):
        group = typer.Typer(name=name, help=text, rich_markup_mode=None, no_args_is_help=True)
        for verb, function in verbs.items():
            group.command(verb)(function)
        app.add_typer(group)


def _add_serving(app: typer.Typer) -> None:
    """Models as they answer, what runs for that, and what leaves the home."""
    app.command("deploy", short_help="Deploy a model under a name, for all traffic or as a canary.")(deploy.deploy)
    app.command("promote", short_help="Give a canary all traffic.")(deploy.promote)
    app.command("rollback", short_help="Go back to the previous revision.")(deploy.rollback)
    app.command("canary", short_help="Compare a canary with the rest of its deployment.")(canary.canary)
    app.command("retrain", short_help="Retrain a deployed model on reviewed answers.")(retrain.retrain)
    app.command("lineage", short_help="Show which models were trained on a row.")(lineage.lineage)
    app.command("deployments", short_help="List deployments, or show one.")(deploy.list_or_show)
    app.command("chat", short_help="Chat with a model, or with two side by side.")(chat.chat)
    app.command("predict", short_help="Classify, score, rank or embed texts.")(predict.predict)
    app.command("serve", short_help="Serve models by OpenAI's API, without pages or jobs.")(serve.serve)
    app.command("usage", short_help="Requests and tokens by key and day.")(usage.usage)
    app.command(
        "monitor",
        short_help="Check a deployed model's traffic for drift.",
        epilog="`luthier monitor check` checks all monitored models once; a model of that name is given after `--`.",
    )(monitor.monitor)
    app.command("monitor check", short_help="Check watched models once, now.")(alerts.check)
    app.command("up", short_help="Short for `luthier server start`.")(server.start)
    app.command("worker", short_help="Run jobs from the queue.")(jobs.worker)
    app.command("mcp", short_help="Serve this home to an agent by the Model Context Protocol.")(mcp.serve)
    app.command("launch", short_help="Write a job file for a cluster or a cloud, or start it.")(launch.launch)
    app.command("verify", short_help="Verify an exported bundle and its signature.")(verify.verify)
    app.command("sign", short_help="Sign an exported bundle with your key.")(push.sign)
    app.command("push", short_help="Upload an exported bundle to a hub or object storage.")(push.push)
    app.command("doctor", short_help="Show what this machine can do.")(doctor.doctor)
    app.command("glossary", short_help="Explain the terms in plain words.")(glossary.glossary)
    app.command("completion", short_help="Print the completion script of a shell.")(completion.completion)


def main(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code."""
    wants_json = _wants_json(arguments)
    # Kept before it is redirected: the document goes there.
    stdout = sys.stdout
    # Even if a library prints, stdout carries the one document and nothing else.
    quiet = contextlib.redirect_stdout(sys.stderr) if wants_json else contextlib.nullcontext()
    with quiet:
        ending = _carry_out(arguments)
    if wants_json:
        ending.write_json(stdout)
    else:
        ending.write_text()
    return ending.exit_code


def run() -> None:
    """What the installed script calls."""
    follow_starter()
    # Before any command imports torch, which reads these variables when it is loaded.
    wait_briefly()
    keep_few_kernels()
    keep_products_exact()
    collect_rarely()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) is gone: no one reads the rest.
        # Python flushes stdout again at exit, and would print a second error about the broken pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    # Taking torch and what it has loaded down would keep the shell waiting for a second.
    if "torch" in sys.modules and not is_watched():
        end_process(code)
    sys.exit(code)


def _carry_out(arguments: Sequence[str]) -> Ending:
    command = command_tree()
    if completion.VARIABLE in os.environ:
        completion.prepare()
    try:
        # standalone_mode=False: click raises instead of printing and exiting, so that endings are ours to write.
        answer = command.main(args=list(arguments), prog_name="luthier", standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place that can report it
        return end_of(error)
    if isinstance(answer, Answer):
        return Ending(answer.exit_code, answer=answer)
    if answer == 130:  # typer's word for an interrupt
        return end_of(KeyboardInterrupt())
    return Ending(answer if isinstance(answer, int) else 0)


def _wants_json(arguments: Sequence[str]) -> bool:
    options = list(arguments)
    if "--" in options:
        # Behind `--` it is the name of a thing.
        options = options[: options.index("--")]
    return "--json" in options and not {"--help", "--version"} & set(options)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"luthier {version('luthier')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
]


def _common(version: VersionOption = False) -> None:
    """Options of `luthier` itself; the help of the app says what it is."""
