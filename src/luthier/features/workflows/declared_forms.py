"""The forms that start workflows: for each command the options that a page offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

FieldKind = Literal[
    "file", "models", "model", "teacher", "deployment", "panels", "text", "long", "yaml", "mapping", "number", "whole",
    "choice", "flag",
]  # fmt: skip
"""What a field takes. file: of the project. models, model: on this machine. teacher: a run or a base model. deployment:
a name that answers. text, long: one line, several. yaml: keys of a recipe. mapping: fields of rows."""
FormName = Literal["tune", "compare-models", "automl", "distill", "retrain"]


@dataclass(frozen=True, slots=True)
class FormEntry:
    """One option of a command that a form offers.

    Attributes:
        name: The parameter of the command, or the name of a key of its recipe.
        label: What the page calls it.
        kind: What it takes.
        is_required: Whether the form cannot be sent without it.
        is_advanced: Whether it is behind "More settings".
        unit: Behind the field.
        default: What the form begins with, where that is not the default of the command.
        choices: Of a choice; by default those that the option names.
        titles: What the page calls the choices, by the choice; one without a title is shown as it is.
        recipe_key: Where it goes in the recipe that the command reads; empty for an option.
        help: In place of the help of the option.
        least: The smallest number, for what is no option of the command.
        most: The largest number.
    """

    name: str
    label: str
    kind: FieldKind
    is_required: bool = False
    is_advanced: bool = False
    unit: str = ""
    default: Any = None
    choices: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    recipe_key: str = ""
    help: str = ""
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class WorkflowForm:
    """A workflow that can be started from a page.

    Attributes:
        name: Its command.
        id_prefix: Of the ids of such workflows; empty where the id follows from the request.
        title: Of the page.
        lead: What it does, in a sentence.
        button: On the button that starts it.
        command: "module:function" of the command.
        entries: The fields, in order.
        runner: "module:function" that carries it out in a job.
        page: Where one of them is shown, with a slash.
    """

    name: FormName
    id_prefix: str
    title: str
    lead: str
    button: str
    command: str
    entries: tuple[FormEntry, ...]
    runner: str
    page: str = "/pipelines/"


_ROWS: Final = "Rows that are learned: a version of a dataset, or an uploaded file."
_SEED: Final = FormEntry("seed", "Seed", "whole", is_advanced=True)
_MAPPING: Final = FormEntry(
    "mapping", "Columns", "mapping", is_advanced=True, help="One a line: FIELD=COLUMN, such as `prompt=question`."
)
_METRIC: Final = FormEntry(
    "metric",
    "Deciding metric",
    "text",
    is_advanced=True,
    help="Empty: the one that `luthier eval` takes.",
)
_NEW_TOKENS: Final = FormEntry("max_new_tokens", "Longest answer", "whole", is_advanced=True, unit="tokens")
_SAMPLES: Final = FormEntry("max_samples", "Rows to evaluate", "whole", is_advanced=True, unit="rows at most")
_PROBE: Final = FormEntry("probe", "Measure a few real steps first", "flag", is_advanced=True)
_STARTERS: Final = "luthier.features.workflows.job"

FORMS: Final[Mapping[str, WorkflowForm]] = {
    form.name: form
    for form in (
        WorkflowForm(
            name="tune",
            id_prefix="study",
            title="New study",
            lead="Search for the best recipe within one budget: many short trials; the best are trained to the end.",
            button="Start the study",
            command="luthier.features.studies.cli:tune",
            runner=f"{_STARTERS}:run_study",
            page="/studies/",
            entries=(
                FormEntry("base_model", "Base model", "model", True, recipe_key="base_model", help="What is tuned."),
                FormEntry("train", "Rows to train on", "file", True, recipe_key="data.train", help=_ROWS),
                FormEntry(
                    "validation",
                    "Share for validation",
                    "number",
                    True,
                    default=0.1,
                    recipe_key="data.validation",
                    help="Trials are compared by their loss on these rows.",
                    least=0.001,
                    most=0.9,
                ),
                FormEntry(
                    "held_out",
                    "Share held out",
                    "number",
                    default=0.1,
                    recipe_key="data.held_out",
                    help="Used once, by the evaluation at the end. Empty: no evaluation.",
                    least=0.001,
                    most=0.9,
                ),
                FormEntry("budget_hours", "Budget", "number", True, default=2.0, unit="hours", least=0.001),
                FormEntry("trials", "Trials", "whole", default=40, unit="at most"),
                FormEntry("workers", "Parallel trials", "whole", is_advanced=True, default=1),
                FormEntry("sampler", "Sampler", "choice", is_advanced=True, default="tpe"),
                FormEntry("objective", "Goals", "text", is_advanced=True, default="quality"),
                FormEntry(
                    "space",
                    "Search space",
                    "yaml",
                    is_advanced=True,
                    help="YAML, such as `parameters: {method.rank: [4, 8, 16]}`. Empty: the usual space.",
                ),
                FormEntry("warm_start", "Use results of earlier studies", "flag", is_advanced=True),
                FormEntry("seed", "Seed", "whole", is_advanced=True, default=0),
                FormEntry(
                    "recipe",
                    "Other keys of the recipe",
                    "yaml",
                    is_advanced=True,
                    help="YAML, such as `training: {epochs: 3}`. Keys above win.",
                ),
            ),
        ),
        WorkflowForm(
            name="compare-models",
            id_prefix="showdown",
            title="Compare base models",
            lead="Evaluate base models without and with examples, tune each briefly, and recommend one or none.",
            button="Start the comparison",
            command="luthier.features.workflows.model_comparison.cli:compare_models",
            runner=f"{_STARTERS}:run_model_comparison",
            entries=(
                FormEntry("models", "Base models", "models", True, help="Models on this machine."),
                FormEntry("data", "Rows to train on", "file", True),
                FormEntry("held_out", "Rows to evaluate on", "file", True),
                FormEntry("budget_hours", "Budget", "number", True, default=1.0, unit="hours", least=0.001),
                FormEntry("few_shot", "Examples in the prompt", "whole", is_advanced=True),
                FormEntry(
                    "instruction",
                    "Task instruction",
                    "long",
                    is_advanced=True,
                    help="For models that are not tuned. Empty: derived from the rows where they contain none.",
                ),
                FormEntry("method", "Method", "text", is_advanced=True),
                _METRIC,
                _MAPPING,
                _NEW_TOKENS,
                _SAMPLES,
                _SEED,
                _PROBE,
            ),
        ),
        WorkflowForm(
            name="automl",
            id_prefix="auto",
            title="From rows to a model",
            lead="Audit, repair and split the rows, choose a model, search for its recipe, and evaluate it once.",
            button="Start",
            command="luthier.features.workflows.automl.cli:automl",
            runner=f"{_STARTERS}:run_automl",
            entries=(
                FormEntry("data", "Rows", "file", True),
                FormEntry("goal", "Task", "long", True),
                FormEntry("budget_hours", "Budget", "number", True, default=2.0, unit="hours", least=0.001),
                FormEntry("models", "Base models", "models", help="None: those of the catalogue on this machine."),
                FormEntry("trials", "Trials", "whole", is_advanced=True, unit="at most"),
                FormEntry("group_by", "Keep together", "text", is_advanced=True),
                FormEntry("tune_anyway", "Search even if prompting is enough", "flag", is_advanced=True),
                _METRIC,
                _MAPPING,
                _NEW_TOKENS,
                _SAMPLES,
                _SEED,
                _PROBE,
            ),
        ),
        WorkflowForm(
            name="distill",
            id_prefix="",
            title="Distill into a smaller model",
            lead="Train a smaller model on a teacher, and also without it, and measure what the teacher was worth.",
            button="Start the distillation",
            command="luthier.features.workflows.distillation.cli:distill",
            runner=f"{_STARTERS}:run_distillation",
            entries=(
                FormEntry("teacher", "Teacher", "teacher", True),
                FormEntry("student", "Student", "model"),
                FormEntry(
                    "layers",
                    "Or layers of the teacher",
                    "whole",
                    least=1,
                    most=1000,
                    help="The student is made of this number of the teacher's layers. Empty: the model above.",
                ),
                FormEntry("data", "Rows", "file", True),
                FormEntry("held_out", "Share held out", "number", default=0.2, least=0.001, most=0.9),
                FormEntry(
                    "kind",
                    "What is learned",
                    "choice",
                    default="sequence",
                    titles={"sequence": "The teacher's answers", "logit": "The teacher's probabilities"},
                    help="Answers, or the probabilities of every token, which require the same tokenizer.",
                ),
                _MAPPING,
                _NEW_TOKENS,
                FormEntry(
                    "overrides",
                    "Recipe values",
                    "long",
                    is_advanced=True,
                    help="Of training and method, one a line: `training.epochs=3`.",
                ),
            ),
        ),
        WorkflowForm(
            name="retrain",
            id_prefix="retrain",
            title="Retrain a deployed model",
            lead="Learn from reviewed answers, compare with the deployed model, and offer a canary.",
            button="Start the retraining",
            command="luthier.features.workflows.retraining.cli:retrain",
            runner=f"{_STARTERS}:run_retraining",
            entries=(
                FormEntry("model", "Deployment", "deployment", True),
                FormEntry("min_rows", "Reviewed rows", "whole", unit="at least"),
                FormEntry("review", "Begin only if the review queue is empty", "flag"),
                FormEntry("from_traffic", "Also learn from sampled answers that were accepted", "flag"),
                FormEntry(
                    "start",
                    "Start from",
                    "choice",
                    is_advanced=True,
                    titles={"base": "The base model", "last": "The last model"},
                    help="The base model is trained on all rows; the last model is trained further.",
                ),
                FormEntry(
                    "canary",
                    "Canary",
                    "number",
                    is_advanced=True,
                    unit="of the users",
                    help="Share of users, such as 0.1, who get the new model. Empty: a canary is only offered.",
                    least=0.001,
                    most=0.999,
                ),
                FormEntry(
                    "panel", "Rating panels", "panels", is_advanced=True, help="Preferences of raters are learned, too."
                ),
            ),
        ),
    )
}
"""Every workflow that a page starts, by its command."""
