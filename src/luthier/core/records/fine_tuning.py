"""What a client sends to create a job: the request of OpenAI's fine-tuning API, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.tracking import Text

Auto = Literal["auto"]
NumEpochs = Auto | Annotated[int, Field(ge=1, le=50, strict=True)]
BatchSize = Auto | Annotated[int, Field(ge=1, le=256, strict=True)]
RateMultiplier = Auto | Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Beta = Auto | Annotated[float, Field(gt=0, le=2, strict=True)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
MIN_EXAMPLES: Final = 10
"""As the hosted service: what fewer rows teach cannot be distinguished from chance."""


class Hyperparameters(FrozenModel):
    """How long and how fast. `learning_rate_multiplier` counts times our own default rate for the method.

    Attributes:
        n_epochs: passes over the rows.
        batch_size: rows a step.
        learning_rate_multiplier: times our own default rate for the method.
    """

    n_epochs: NumEpochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: RateMultiplier = "auto"


class DpoHyperparameters(Hyperparameters):
    """Those, and how far the model may go from where it began: less the larger `beta` is.

    Attributes:
        beta: how far the model may go from where it began: less, the larger it is.
    """

    beta: Beta = "auto"


class ReinforcementHyperparameters(Hyperparameters):
    """Those, and others that the hosted service knows.

    Attributes:
        reasoning_effort: as the hosted service has it.
        compute_multiplier: as the hosted service has it.
        eval_interval: steps between two evaluations.
        eval_samples: answers of an evaluation.
    """

    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    compute_multiplier: Auto | Annotated[float, Field(ge=1e-5, le=10, strict=True)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1, strict=True)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1, strict=True)] = "auto"


class SupervisedMethod(FrozenModel):
    """Learn to write the answers of the rows."""

    hyperparameters: Hyperparameters | None = None


class DpoMethod(FrozenModel):
    """Learn to prefer one answer to another."""

    hyperparameters: DpoHyperparameters | None = None


class ReinforcementMethod(FrozenModel):
    """Learn to write what a grader likes.

    Attributes:
        grader: one of OpenAI's graders, as a document.
        hyperparameters: how long and how fast; None takes the defaults.
    """

    grader: dict[str, Any]
    hyperparameters: ReinforcementHyperparameters | None = None


class MethodRequest(FrozenModel):
    """The method; of the three sections only that of `type` counts.

    Attributes:
        type: the name of the method.
        supervised: settings of supervised fine-tuning.
        dpo: settings of preference optimisation.
        reinforcement: settings of reinforcement.
    """

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None


class WandbIntegration(FrozenModel):
    """Where Weights & Biases would be notified of the job.

    Attributes:
        project: the project there.
        name: the name of the run there.
        entity: the user or team there.
        tags: tags of the run there.
    """

    # As in a recipe: what would be refused there is refused now, not by the job.
    project: Text
    name: Text | None = None
    entity: Text | None = None
    tags: Annotated[tuple[Text, ...], Field(max_length=50)] | None = None


class Integration(FrozenModel):
    """Another service that would be notified of the job.

    Attributes:
        type: names the service.
        wandb: its settings.
    """

    type: Literal["wandb"]
    wandb: WandbIntegration


class FineTuningRequest(FrozenModel):
    """The body of `POST /v1/fine_tuning/jobs`.

    Attributes:
        model: the base model, by its name in the API.
        training_file: id of the file of training rows.
        validation_file: id of the file of validation rows; None for none.
        suffix: becomes part of the name of the tuned model.
        seed: of the run; None takes the default.
        metadata: the client's own notes.
        integrations: other services, as the hosted service has them.
        hyperparameters: deprecated in OpenAI's API, and still taken.
        method: the method with its settings; None for supervised.
    """

    model: Annotated[str, Field(min_length=1, max_length=255)]
    training_file: Annotated[str, Field(min_length=1, max_length=64)]
    validation_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2147483647, strict=True)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[tuple[Integration, ...], Field(max_length=5)] | None = None
    hyperparameters: Hyperparameters | None = None
    method: MethodRequest | None = None

    @property
    def method_name(self) -> Literal["supervised", "dpo", "reinforcement"]:
        """Which method; supervised where none is named."""
        return self.method.type if self.method else "supervised"

    @property
    def asked(self) -> Hyperparameters:
        """The hyperparameters of that method; what it leaves open is taken from the deprecated ones."""
        kinds = {
            "supervised": Hyperparameters, "dpo": DpoHyperparameters, "reinforcement": ReinforcementHyperparameters
        }  # fmt: skip
        section = getattr(self.method, self.method_name) if self.method else None
        own: Hyperparameters = (section.hyperparameters if section else None) or kinds[self.method_name]()
        old = self.hyperparameters or Hyperparameters()
        # Only where the section of the method leaves "auto": what it says explicitly wins.
        open_ones = {n: v for n, v in old.model_dump().items() if getattr(own, n) == "auto"}
        return own.model_copy(update=open_ones)
