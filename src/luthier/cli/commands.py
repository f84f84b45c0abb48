"""The commands of `luthier` by name: where each is, and its line in the help.

A command is named as "module:function" and imported when it is used: importing all of them takes longer than most other
steps of a start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
        target: its function, as "module:function".
        short_help: its line in the help of `luthier`.
        kind: the class that parses its arguments, as "module:class"; None for Typer's own.
        epilog: the end of its own help; None for none.
    """

    target: str
    short_help: str
    kind: str | None = None
    epilog: str | None = None


class CommandGroup(NamedTuple):
    """A command that has subcommands.

    Attributes:
        verbs: dictionaries of functions by the names of the subcommands, as "module:name".
        help: what it is for.
    """

    verbs: tuple[str, ...]
    help: str


COMMANDS: Final[Mapping[str, Command | CommandGroup]] = {
    "quickstart": Command(
        "luthier.features.workflows.quickstart.cli:quickstart",
        "Try the whole workflow on data from this machine's Python.",
    ),
    "train": Command("luthier.features.training.cli:train", "Train a recipe, evaluate the result and write a report."),
    "tune": Command("luthier.features.studies.cli:tune", "Search for the best recipe within one budget."),
    "automl": Command(
        "luthier.features.workflows.automl.cli:automl", "Go from a data file and a goal to an evaluated model."
    ),
    "compare-models": Command(
        "luthier.features.workflows.model_comparison.cli:compare_models",
        "Find the best base model, and whether a prompt is enough.",
    ),
    "plan": Command("luthier.features.training.plan_cli:plan", "Show the plan of a recipe, with time and cost."),
    "import": Command(
        "luthier.features.recipes.import_cli:import_recipe", "Convert another tool's training file into a recipe."
    ),
    "worth": Command("luthier.features.roi.cli:worth", "Does fine-tuning pay off? Yes, no, or open."),
    "report": Command(
        "luthier.features.assessments.report_cli:report", "Rewrite the report of a run with its newest results."
    ),
    "eval": Command("luthier.features.suites.cli:evaluate", "Evaluate models on held-out rows."),
    "safety": Command("luthier.features.suites.cli:safety", "Measure how tuning changed a model's safety."),
    "distill": Command("luthier.features.workflows.distillation.cli:distill", "Distill into a smaller model."),
    "export": Command(
        "luthier.features.exports.cli:export",
        "Export a model to another runtime, proved equal.",
        kind="luthier.features.exports.cli:ExportCommand",
        epilog="`luthier export benchmark` compares the size, speed and quality of the formats.",
    ),
    "export benchmark": Command(
        "luthier.features.exports.formats.cli:benchmark",
        "Benchmark a model's export formats: size, speed, quality.",
        kind="luthier.features.exports.cli:ExportCommand",
    ),
    "deploy": Command(
        "luthier.features.deployments.cli:deploy", "Deploy a model under a name, for all traffic or as a canary."
    ),
    "promote": Command("luthier.features.deployments.cli:promote", "Give a canary all traffic."),
    "rollback": Command("luthier.features.deployments.cli:rollback", "Go back to the previous revision."),
    "canary": Command("luthier.features.deployments.cli:canary", "Compare a canary with the rest of its deployment."),
    "retrain": Command(
        "luthier.features.workflows.retraining.cli:retrain", "Retrain a deployed model on reviewed answers."
    ),
    "lineage": Command("luthier.features.lineage.cli:lineage", "Show which models were trained on a row."),
    "deployments": Command("luthier.features.deployments.cli:list_or_show", "List deployments, or show one."),
    "chat": Command("luthier.features.serving.chat_cli:chat", "Chat with a model, or with two side by side."),
    "predict": Command("luthier.features.serving.predict_cli:predict", "Classify, score, rank or embed texts."),
    "serve": Command("luthier.server.cli:serve", "Serve models with OpenAI's API, without pages or jobs."),
    "usage": Command("luthier.features.usage.cli:usage", "Requests and tokens by key and day."),
    "monitor": Command(
        "luthier.features.monitoring.cli:monitor",
        "Check a deployed model's traffic for drift.",
        epilog="`luthier monitor check` checks all monitored models once; a model of that name is given after `--`.",
    ),
    "monitor check": Command("luthier.features.monitoring.cli:check", "Check all monitored models once, now."),
    "up": Command("luthier.server.cli:start", "Short for `luthier server start`."),
    "worker": Command("luthier.features.training.jobs_cli:worker", "Run jobs from the queue."),
    "mcp": Command(
        "luthier.features.mcp_server.cli:serve", "Serve this home to an agent through the Model Context Protocol."
    ),
    "launch": Command(
        "luthier.features.training.launch_cli:launch", "Write a job file for a cluster or a cloud, or start it."
    ),
    "verify": Command("luthier.features.exports.cli:verify", "Verify an exported bundle and its signature."),
    "sign": Command("luthier.features.exports.cli:sign", "Sign an exported bundle with your key."),
    "push": Command("luthier.features.exports.cli:push", "Upload an exported bundle to a hub or object storage."),
    "doctor": Command("luthier.features.doctor.cli:doctor", "Show what this machine can do."),
    "glossary": Command("luthier.features.glossary.cli:glossary", "Explain Luthier's terms in plain words."),
    "completion": Command("luthier.cli.completion:completion", "Print the completion script for a shell."),
    "runs": CommandGroup(
        ("luthier.features.runs.cli:COMMANDS",), "List, show, edit, compare, watch, track and remove runs."
    ),
    "recipe": CommandGroup(
        ("luthier.features.recipes.schema_cli:COMMANDS",), "The JSON Schema of recipes, for editors."
    ),
    "jobs": CommandGroup(
        ("luthier.features.training.jobs_cli:COMMANDS",),
        "Queue recipes for workers; list, pause, resume and cancel jobs.",
    ),
    "studies": CommandGroup(
        ("luthier.features.studies.cli:COMMANDS",), "List, show and compare studies; save the best recipe."
    ),
    "pipelines": CommandGroup(
        ("luthier.features.workflows.cli:COMMANDS",),
        "List and show model comparisons, automl and retrainings, stage by stage.",
    ),
    "models": CommandGroup(
        ("luthier.features.model_browser.cli:COMMANDS",), "List, fetch, show, check and remove base models."
    ),
    "data": CommandGroup(
        (
            "luthier.features.datasets.cli:COMMANDS",
            "luthier.features.lineage.cli:DATA_COMMANDS",
        ),
        "Turn documents into rows; audit, repair, split and remove rows.",
    ),
    "evals": CommandGroup(("luthier.features.evals_api.cli:COMMANDS",), "Turn evals of OpenAI's API into suites."),
    "batches": CommandGroup(("luthier.features.batches.cli:COMMANDS",), "List, show and cancel batches of requests."),
    "judge": CommandGroup(
        ("luthier.features.judges.cli:COMMANDS",), "Calibrate a judge model against people's ratings."
    ),
    "human-eval": CommandGroup(
        ("luthier.features.human_eval.cli:COMMANDS",),
        "Have people rate answers blind: panels, links, agreement, preference pairs.",
    ),
    "gates": CommandGroup(
        ("luthier.features.release_gates.cli:COMMANDS",), "Show, set and remove the release gate of a project."
    ),
    "alerts": CommandGroup(
        ("luthier.features.monitoring.cli:COMMANDS",), "Alerts on deployed models, and who receives them."
    ),
    "feedback": CommandGroup(
        ("luthier.features.feedback.cli:COMMANDS",), "Import and list feedback on answers, and have answers reviewed."
    ),
    "inbox": CommandGroup(
        ("luthier.features.inbox.cli:COMMANDS",), "Work waiting for people: list, assign, snooze, mark as done."
    ),
    "keys": CommandGroup(
        ("luthier.features.accounts.keys_cli:COMMANDS",), "Create, list and revoke API keys of the server."
    ),
    "users": CommandGroup(
        ("luthier.features.accounts.members_cli:COMMANDS",),
        "Create, list, change and remove users who sign in to the pages.",
    ),
    "server": CommandGroup(("luthier.server.cli:COMMANDS",), "The server for pages and APIs, with its workers."),
    "projects": CommandGroup(
        ("luthier.features.accounts.projects_cli:COMMANDS",),
        "Create and list projects, which own keys, files, jobs and models.",
    ),
    "traffic": CommandGroup(
        ("luthier.features.traffic.cli:COMMANDS",), "Recorded requests: retention, viewing, forgetting a user."
    ),
    "audit-log": CommandGroup(
        ("luthier.features.audit_log.cli:COMMANDS",), "Show who did what, and verify that the log is unchanged."
    ),
}
"""In the order of the help's own list: commands, then those that have subcommands."""
