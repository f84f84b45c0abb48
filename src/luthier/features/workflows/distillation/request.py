"""The request of a distillation: checked, with its models, and the recipes that both students share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.defaults import TEACHER_TOKENS
from luthier.core.errors import NotFoundError, RecipeError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.recipe import Recipe
from luthier.core.system.files import expanded
from luthier.core.workflows.pipeline import DistilKind
from luthier.features.generation.engines import identity_of, is_address, parse_address
from luthier.features.recipes.file import read_recipe_file
from luthier.features.recipes.service import override_value, recipe_from
from luthier.platform.home.context import Context

_FORMAT: Final = 1
# The data settings that a recipe may have here: others would make the trainings differ, or are set by the command.
_KEPT_OF_DATA = ("template", "replay", "validation")
_PARTING_DATA = ("subset", "group_by")
# Above the default of full fine-tuning: each remaining layer must adapt to another predecessor.
_HEALING_RATE = 2e-4
_OBJECTIVES = {"sequence": ("sft",), "logit": ("distillation",)}


@dataclass(frozen=True, slots=True)
class DistilRequest:
    """The request.

    Attributes:
        teacher: A run, a base model, a folder, or a model behind a server.
        student: A base model, or `layers:15` or `layers:0,2,4-29` of the teacher.
        data: Rows with prompts and gold answers.
        kind: Whether the teacher's answers or its logits are learned.
        held_out: A file, or the fraction of rows held out.
        recipe: Training settings of both students and evaluation settings; its base model and rows are replaced.
        overrides: Individual values of the recipe.
        mapping: Field of the row format to field of the file.
        max_new_tokens: Limit of the teacher's answers; longer ones are not learned.
        uses_batch_api: Whether a teacher behind a server answers the rows by OpenAI's Batch API: all at once.
    """

    teacher: str
    student: str
    data: Path
    kind: DistilKind = "sequence"
    held_out: Path | float = 0.2
    recipe: Path | None = None
    overrides: Sequence[str] = ()
    mapping: Mapping[str, str] | None = None
    max_new_tokens: int = TEACHER_TOKENS
    uses_batch_api: bool = False


@dataclass(frozen=True, slots=True)
class Base:
    """The model from which both trainings start, and the teacher's name for them."""

    name: str
    layers: str | None
    num_parameters: int
    teacher: str
    teacher_parameters: int | None
    identity: dict[str, Any]


class DistilSpec(FrozenModel):
    """The stored request with its models.

    Attributes:
        command: The original command, which resumes it.
        teacher: The teacher's name for the trainings.
        student: The base of both trainings.
        layers: The teacher layers that the student keeps; None for an independent model.
        settings: The sections of the recipe that both trainings share.
        uses_batch_api: Whether the teacher answers by its Batch API.
    """

    command: str
    teacher: str
    student: str
    layers: str | None
    student_parameters: int
    teacher_parameters: int | None
    data: str
    kind: DistilKind
    held_out: float | str
    mapping: dict[str, str] | None
    settings: dict[str, Any]
    max_new_tokens: int
    uses_batch_api: bool = False

    @property
    def held_out_rows(self) -> Path | float:
        """The file of held-out rows, or their share."""
        return self.held_out if isinstance(self.held_out, float) else Path(self.held_out)


def spec_of(context: Context, request: DistilRequest, project_id: str = DEFAULT_PROJECT) -> tuple[str, DistilSpec]:
    """The id and the specification of a request; equal requests of a project have equal ids.

    Raises:
        RequestError: Incompatible settings.
        RecipeError: A recipe with which the trainings would differ in more than the teacher.
        NotFoundError: A file, model or run does not exist.
    """
    check(request)
    settings = read_settings(request.recipe, request.overrides, request.kind)
    evaluation_of(settings)
    base = find_base(context, request)
    spec = DistilSpec(
        command=_command(request),
        teacher=base.teacher,
        student=base.name,
        layers=base.layers,
        student_parameters=base.num_parameters,
        teacher_parameters=base.teacher_parameters,
        data=str(request.data.absolute()),
        kind=request.kind,
        held_out=str(request.held_out.absolute()) if isinstance(request.held_out, Path) else request.held_out,
        mapping=dict(request.mapping) if request.mapping else None,
        settings=settings,
        max_new_tokens=request.max_new_tokens,
        uses_batch_api=request.uses_batch_api,
    )
    return f"student-{digest_of(request, settings, base, project_id)[:16]}", spec


def _command(request: DistilRequest) -> str:
    # Absolute: the command is shown later, too, in any folder.
    held_out = request.held_out.absolute() if isinstance(request.held_out, Path) else request.held_out
    words = ["luthier", "distill", request.teacher, "--student", request.student]
    words += ["--data", str(request.data.absolute()), "--kind", request.kind, "--held-out", str(held_out)]
    words += [] if request.recipe is None else ["--recipe", str(request.recipe.absolute())]
    words += [word for one in request.overrides for word in ("--set", one)]
    words += [word for name, column in (request.mapping or {}).items() for word in ("--map", f"{name}={column}")]
    words += ["--batch"] if request.uses_batch_api else []
    return shlex.join([*words, "--max-new-tokens", str(request.max_new_tokens)])


def check(request: DistilRequest) -> None:
    """Raise RequestError for incompatible settings."""
    behind_server = is_address(request.teacher)
    layers = request.student.startswith("layers:")
    problems = [
        (
            behind_server and request.kind == "logit",
            f"--kind logit with the teacher {request.teacher}",
            "a base model, a folder or a run: a server does not give the probability of every token",
            "let it write the answers: --kind sequence",
        ),
        (
            behind_server and layers,
            f"--student {request.student} with the teacher {request.teacher}",
            "a teacher whose weights are on this machine: the student is made of its layers",
            "name a base model as the student",
        ),
        (
            request.uses_batch_api and (not behind_server or request.kind == "logit"),
            f"--batch with --kind {request.kind} and the teacher {request.teacher}",
            "http(s)://host:port/v1#MODEL that writes answers, where a server has OpenAI's Batch API",
            "leave --batch out",
        ),
        (
            request.max_new_tokens < 1,
            f"max_new_tokens={request.max_new_tokens}",
            "at least 1",
            "correct max_new_tokens",
        ),
    ]
    for is_wrong, came, expected, do in problems:
        if is_wrong:
            raise RequestError(came, expected=expected, do=do)
    if behind_server:
        parse_address(request.teacher)


def find_base(context: Context, request: DistilRequest) -> Base:
    """The student's base, made of the teacher's layers where that is requested; and the teacher."""
    from luthier.features.models.names import find_model
    from luthier.features.models.resolve import find_candidate
    from luthier.ml.inference.models import catalog, sources
    from luthier.ml.inference.models.structure import read_structure

    layers = request.student.removeprefix("layers:") if request.student.startswith("layers:") else None
    if is_address(request.teacher):
        model = sources.pull(request.student, context.home, context.progress)
        url, name = parse_address(request.teacher)
        return Base(model.name, None, model.num_parameters, request.teacher, None, {"url": url, "model": name})
    found = find_model(context, request.teacher, takes_exports=False)
    # By its run, or by the full name or path of a base model: the same teacher is the same distillation.
    teacher = catalog.parse(found.name).text if found.run_id is None else found.name
    candidate = find_candidate(context, teacher)
    # Digests of the teacher's weights: the same name may later refer to other weights, which is another distillation.
    identity = identity_of(context, teacher, candidate)
    if layers is None or "@" in layers:  # a student made of layers earlier is a model like any other
        model = sources.pull(request.student, context.home, context.progress)
        layers = None
    else:
        licence = sources.pull(candidate.model_name, context.home, context.progress).licence
        lineage = {
            name: str(identity[key])
            for name, key in (("teacher_sha256", "sha256"), ("adapter_sha256", "trained_sha256"))
            if identity.get(key)
        }
        made_of = sources.LayerTeacher(candidate.model_path, candidate.adapter_path, licence, lineage)
        model = sources.pull_layers(f"layers:{layers}@{teacher}", context.home, context.progress, made_of)
    size = read_structure(candidate.model_path).num_parameters
    return Base(model.name, layers, model.num_parameters, teacher, size, identity | {"student": model.sha256})


def digest_of(request: DistilRequest, settings: dict[str, Any], base: Base, project_id: str = DEFAULT_PROJECT) -> str:
    """A digest over everything that determines the result.

    Raises:
        NotFoundError: A file of rows does not exist.
    """
    held_out = request.held_out
    for file in (request.data, *([held_out] if isinstance(held_out, Path) else [])):
        if not file.is_file():
            raise NotFoundError(f"{file}: no such file", expected="a file of rows", do="check the path")
    return sha256_document(
        {
            "format": _FORMAT,
            "teacher": base.identity | {"name": base.teacher},
            "student": base.name,
            "kind": request.kind,
            # By content: the same command on changed rows is another distillation.
            "data": sha256_file(request.data),
            "held_out": held_out if isinstance(held_out, float) else sha256_file(held_out),
            "mapping": dict(request.mapping or {}),
            "settings": settings,
            "max_new_tokens": request.max_new_tokens,
        }
        # Of its own: the stored request decides how the teacher is asked, whichever command continues it.
        | ({"batch": True} if request.uses_batch_api else {})
        | ({"files": files} if (files := _files_of(settings)) else {})
        # What a project distils is its own, although another one asked for the same.
        | ({} if project_id == DEFAULT_PROJECT else {"project": project_id})
    )


def _files_of(settings: dict[str, Any]) -> dict[str, str]:
    """The digests of the files that the recipe names beside the rows: they decide the result by their content, too."""
    data = settings["data"]
    replay = data.get("replay")
    named = {"validation": data.get("validation"), "replay": replay.get("file") if isinstance(replay, dict) else None}
    return {
        name: sha256_file(Path(file)) for name, file in named.items() if isinstance(file, str) and Path(file).is_file()
    }


def read_settings(path: Path | None, overrides: Sequence[str], kind: DistilKind) -> dict[str, Any]:
    """The sections of a recipe file that both trainings share, without `base_model` and the files of `data`.

    Args:
        path: The recipe; None for an empty recipe.
        overrides: Such as `training.epochs=3`.
        kind: What is learned from the teacher.

    Raises:
        RecipeError: A setting with which the trainings would differ in more than the teacher: a budget, a part of the
            rows, validation rows as a fraction, another objective.
    """
    keys = dict(read_recipe_file(path).keys) if path is not None else {}
    for override in overrides:
        override_value(keys, override)
    data = dict(keys.get("data") or {})
    objective = keys.get("objective")
    # A recipe may give only the name of the objective.
    named = objective.get("name") if isinstance(objective, dict) else objective
    problems = [
        ("budget", "budget" in keys, "caps would stop the two at different steps"),
        *((f"data.{name}", data.get(name) is not None, "the rows are split by --held-out") for name in _PARTING_DATA),
        ("data.validation", isinstance(data.get("validation"), float), "name a file: both must see the same rows"),
        ("training.early_stopping_patience", _stops_early(keys), "each would stop at a different step"),
        (
            f"objective {named}",
            objective is not None and named not in _OBJECTIVES[kind],
            f"--kind {kind} trains with {_OBJECTIVES[kind][0]}, and the student without the teacher with sft",
        ),
    ]
    for name, is_there, why in problems:
        if is_there:
            raise RecipeError(
                f"{name} in the recipe of a distillation",
                expected=f"two trainings that differ only in the teacher: {why}",
                do="remove it from the recipe",
            )
    folder = path.absolute().parent if path is not None else Path.cwd()
    kept = {name: data[name] for name in _KEPT_OF_DATA if data.get(name) is not None}
    if isinstance(kept.get("validation"), str):
        # Made absolute here: the recipes of both trainings are written into another folder.
        kept["validation"] = str(folder / expanded(kept["validation"]))
    if isinstance(kept.get("replay"), dict) and isinstance(kept["replay"].get("file"), str):
        kept["replay"] = kept["replay"] | {"file": str(folder / expanded(kept["replay"]["file"]))}
    return {name: value for name, value in keys.items() if name not in ("base_model", "data")} | {"data": kept}


def recipe_of(settings: dict[str, Any], *, student: str, rows: Path, teacher: str | None, is_whole: bool) -> Recipe:
    """The recipe of one training.

    Args:
        settings: The recipe of the request, as a document.
        student: The model to train.
        rows: The file of training rows.
        teacher: The source of the logits; None for plain supervised fine-tuning.
        is_whole: Whether every weight is trained where the recipe names no method: a student that lacks layers must
            adapt all others.

    Raises:
        RecipeError: The result is no recipe.
    """
    document = {name: value for name, value in settings.items() if name not in ("evaluation", "objective")}
    document |= {"base_model": student, "data": {**settings["data"], "train": str(rows)}}
    training = dict(document.get("training") or {})
    if is_whole and document.get("method") is None:
        document["method"] = {"name": "full"}
        training.setdefault("learning_rate", _HEALING_RATE)
    training.setdefault("early_stopping_patience", 0)  # the same number of steps for both; more is refused
    document["training"] = training
    asked = settings.get("objective")
    asked = asked if isinstance(asked, dict) else {}
    if teacher is not None:
        document["objective"] = {**asked, "name": "distillation", "teacher": teacher}
    elif own := _without_teacher(asked):
        document["objective"] = {**own, "name": "sft"}
    return recipe_from(document, base_dir=rows.parent)


def _stops_early(keys: dict[str, Any]) -> bool:
    training = keys.get("training")
    return isinstance(training, dict) and bool(training.get("early_stopping_patience"))


def _without_teacher(asked: dict[str, Any]) -> dict[str, Any]:
    """The settings of an objective that hold without a teacher, too: all of sft, and those that distillation shares."""
    from luthier.ml.training.objectives.rules import rules_of

    shared = rules_of("sft").settings
    return {name: v for name, v in asked.items() if name != "name" and (asked["name"] == "sft" or name in shared)}


def evaluation_of(settings: dict[str, Any]) -> Recipe:
    """The recipe with only its evaluation, checked.

    Raises:
        RecipeError: A key of the evaluation is unknown, or a value is wrong.
    """
    asked = settings.get("evaluation")
    document = {"base_model": "none", "data": {"train": "none"}} | ({"evaluation": asked} if asked else {})
    return recipe_from(document, base_dir=Path.cwd())


def seed_of(settings: dict[str, Any]) -> int:
    """The seed of the recipe, used to split rows."""
    training = settings.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    return seed if isinstance(seed, int) else 0
