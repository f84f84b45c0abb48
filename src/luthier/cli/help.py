"""The help of `luthier`: its commands in ten groups, the everyday ones first, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "Everyday": ("quickstart", "train", "plan", "eval", "chat", "export", "deploy", "up"),
    "Data": ("data", "lineage"),
    "Recipes and searches": (
        "recipe", "import", "tune", "studies", "automl", "compare-models", "distill", "pipelines",
    ),
    "Runs and jobs": ("runs", "report", "jobs", "worker", "launch"),
    "Evaluation": ("safety", "evals", "judge", "human-eval", "gates", "worth"),
    "Models and exports": ("models", "export benchmark", "verify", "sign", "push"),
    "Serving": ("serve", "server", "predict", "batches", "mcp", "deployments", "promote", "rollback", "canary"),
    "Monitoring": ("monitor", "monitor check", "alerts", "traffic", "usage", "retrain"),
    "People and access": ("inbox", "feedback", "users", "keys", "projects", "audit-log"),
    "This machine": ("doctor", "glossary", "completion"),
}  # fmt: skip
"""The title of each group, and its commands in their order."""
EXAMPLES: Final = (
    ("luthier plan recipe.yaml", "time and cost, before it starts"),
    ("luthier train recipe.yaml", "train, evaluate, report"),
    ("luthier runs show RUN", "progress and results of a run"),
    ("luthier eval RUN --data test.jsonl", "evaluate it on other rows"),
    ("luthier chat RUN", "chat with it"),
    ("luthier export RUN --to gguf -o model", "for Ollama and LM Studio"),
    ("luthier up", "pages and API on this machine"),
)


def epilog() -> str:
    """The end of the help; \\b keeps the lines of the examples as they are."""
    width = max(len(command) for command, _ in EXAMPLES)
    lines = [f"  {command:<{width}}  {text}" for command, text in EXAMPLES]
    return "\n\n".join(
        [
            "\b\n" + "\n".join(["Examples:", *lines]),
            "`luthier COMMAND --help` explains a command; `luthier completion SHELL` sets up the Tab key.",
            "New here? Start with `luthier quickstart`: no account, no GPU, under 6 minutes.",
        ]
    )


def write_commands(lines: Mapping[str, str], formatter: Any) -> None:
    """Write the commands in their groups; those that are in none come last.

    Args:
        lines: What each command does, in one line, by its name.
        formatter: Of the help.
    """
    grouped = {name for some in GROUPS.values() for name in some}
    sections = {title: [name for name in some if name in lines] for title, some in GROUPS.items()}
    sections["Other commands"] = [name for name in lines if name not in grouped]
    # One width for all sections, so that their second columns are below each other.
    longest = max(map(len, lines))
    for title, some in sections.items():
        rows = [(f"{name:<{longest}}", lines[name]) for name in some]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
