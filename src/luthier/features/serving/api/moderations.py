"""/v1/moderations: OpenAI's moderation of texts, by a text classifier of this server.

A request that names no model, or one of OpenAI's, is answered by the classifier of LUTHIER_MODERATION_MODEL; one that
names a classifier of its project by that. The categories are its labels without those of
LUTHIER_MODERATION_SAFE_LABELS, the scores its probabilities.

Source: OpenAI's API reference, "Create moderation".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Discriminator, Field, Tag

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.core.frozen_model import StrictModel
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Pooled, Served
from luthier.core.task_head import TaskHead, refuse_other_use
from luthier.features.models.names import find_model, is_tuned_name
from luthier.features.serving.api.pooling import PoolingBody, Texts, respond_pooled
from luthier.features.serving.head_answers import prompt_of
from luthier.features.serving.models import Routed, route, user_of
from luthier.features.serving.targets import served_export, served_target
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext
from luthier.platform.http.errors import documented

router = APIRouter(prefix="/v1/moderations", tags=["moderations"])

HOSTED: Final = (
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
    "text-moderation-007",
)
"""OpenAI's names, which clients send by themselves: they mean the classifier of the settings."""
ID_PREFIX: Final = "modr"
_MAX_PARTS: Final = 2048
_MODEL, _SAFE = "LUTHIER_MODERATION_MODEL", "LUTHIER_MODERATION_SAFE_LABELS"


def _refuse_images(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"a part of the type {kind!r}; expected: text; what to do: leave it out, or send its text")
    return value


class ModeratedPart(StrictModel):
    """A part of one input."""

    type: Literal["text"]
    text: str


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "as_string"
    # Decided before validation, so that an error names the form that was meant and not all three.
    is_parts = isinstance(value, list) and any(isinstance(one, dict) for one in value)
    return "as_parts" if is_parts else "as_texts"


Parts = Annotated[
    list[Annotated[ModeratedPart, BeforeValidator(_refuse_images)]],
    Field(fail_fast=True, min_length=1, max_length=_MAX_PARTS),
]
Moderated = Annotated[
    Annotated[str, Tag("as_string")] | Annotated[Texts, Tag("as_texts")] | Annotated[Parts, Tag("as_parts")],
    Discriminator(_kind_of),
]


class ModerationBody(StrictModel):
    """The request body: a text, several texts, or the parts of one text."""

    input: Moderated
    model: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


@dataclass(frozen=True, slots=True)
class Moderation:
    """A request with who has sent it.

    Attributes:
        context: The home.
        caller: Whose models may be asked.
        body: What is moderated.
    """

    context: Context
    caller: Caller
    body: ModerationBody

    @property
    def model(self) -> str | None:
        """The model that answers, as the caller sees it; None where the settings name none."""
        return shown_name(self.context.settings.moderation_model) if self._is_own else self.body.model

    @property
    def _is_own(self) -> bool:
        return self.body.model is None or self.body.model in HOSTED

    def target(self) -> Routed:
        """What answers. Raises LuthierError where there is no such model."""
        if self._is_own:
            return moderation_target(self.context, self.caller)
        return route(self.context, self.caller, self.body.model or "", user_of(self.caller, ()))

    def request(self, head: TaskHead | None) -> PoolingRequest:
        """The request for a model with this head. Raises RequestError for one that does not classify texts as safe."""
        refuse_other_use(self.model or "", None if head is None else head.kind, "classify")
        assert head is not None
        check_labels(head, safe_labels(self.context))
        return PoolingRequest(conversations=tuple(prompt_of(one) for one in _texts(self.body)), kind="classify")

    def document(self, moderation_id: str, head: TaskHead | None, made: Pooled) -> dict[str, Any]:
        """The response."""
        assert head is not None
        safe = safe_labels(self.context)
        results = [moderated(head, one, safe) for one in made.outputs]
        return {"id": moderation_id, "model": self.model, "results": results}


@router.post("", responses=documented(404, 503), response_class=Response)
async def create_moderation(body: ModerationBody, request: Request, context: HomeContext, caller: Asker) -> Response:
    """Whether each text is flagged, by which categories, and the probability of each category."""
    made = Moderation(context, caller, body)
    return await respond_pooled(
        request,
        context,
        caller,
        PoolingBody(model=made.model or "none"),
        "classify",
        lambda _, head: made.request(head),
        lambda run: made.document(run.exchange.exchange_id, run.head, run.pooled),
        find=made.target,
        prefix=ID_PREFIX,
    )


def safe_labels(context: Context) -> frozenset[str]:
    """The labels that do not flag a text."""
    return frozenset(label.strip() for label in context.settings.moderation_safe_labels.split(",") if label.strip())


def check_labels(head: TaskHead, safe: frozenset[str]) -> None:
    """Raises UnsupportedError for a classifier that gives each text one label, and has none for texts that are safe."""
    if head.is_multi_label or safe & set(head.labels):
        return
    shown = ", ".join(head.labels[:8])
    raise UnsupportedError(
        f"a classifier that gives each text one of the labels {shown}, none of which is that of a safe text",
        expected=f"one of its labels in {_SAFE} (now: {', '.join(sorted(safe)) or 'none'})",
        do=f"the operator of this server sets {_SAFE}, labels separated by commas",
        param="model",
    )


def moderation_target(context: Context, caller: Caller) -> Routed:
    """The classifier of the settings, for callers of all projects; nothing is fetched for it.

    Raises:
        UnsupportedError: The settings name none.
        NotFoundError: It is not on this machine.
        ConflictError: It is a run without a result.
    """
    name = context.settings.moderation_model
    if not name:
        raise UnsupportedError(
            "a moderation by the server's own classifier, and none is set",
            expected=f"{_MODEL} with a model that was trained with objective: {{name: classify}}",
            do=f"the operator of this server sets {_MODEL}; or name a classifier of your project as model",
            param="model",
        )
    if context.only is not None:
        return route(context, caller, name)
    shown = shown_name(name)
    return Routed(shown, shown, _served(context, name))


def shown_name(name: str) -> str:
    """A model of the settings as callers of all projects see it: of a folder its last part, not its place here."""
    return name if is_tuned_name(name) else Path(name).name


def _served(context: Context, name: str) -> Served:
    # As a local user: the operator may name a model of any project, or a folder.
    found = find_model(context, name)
    if found.run_id is not None:
        made = found.tuned
        project_id = context.runs.project_of(found.run_id) if made is None else made.project_id
        target = found.run_id if made is None else made.model_id
        return served_target(context, Caller(project_id=project_id), target)
    folder = Path(found.name).expanduser()
    if not folder.is_dir():
        raise NotFoundError(
            f"{_MODEL}, {shown_name(name)!r}, is not a classifier",
            expected="a run, a tuned model, or the folder of one, with a head that classifies",
            do=f"set {_MODEL} to one, and start the server again",
        )
    return served_export(context, folder.resolve())


def moderated(head: TaskHead, probabilities: tuple[float, ...], safe: frozenset[str]) -> dict[str, Any]:
    """The result of one text: its categories with their probabilities, without the safe labels."""
    # With the head's own threshold, or its likeliest label: flagged means what the classifier itself would answer.
    given = set(head.labels_of(probabilities))
    scores = {
        label: probability for label, probability in zip(head.labels, probabilities, strict=True) if label not in safe
    }
    categories = {label: label in given for label in scores}
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": {label: ["text"] for label in scores},
    }


def _texts(body: ModerationBody) -> list[str]:
    if isinstance(body.input, str):
        return [body.input]
    parts = [one.text for one in body.input if isinstance(one, ModeratedPart)]
    # Parts are one input with one result, as in OpenAI's API; texts are several.
    return ["\n".join(parts)] if parts else [one for one in body.input if isinstance(one, str)]
