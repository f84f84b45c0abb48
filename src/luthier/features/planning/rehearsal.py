"""Rehearsal: one tiny step of a plan on a small copy of its model, so that nothing crashes or is refused later.

config of the base -> a small copy of the architecture -> the plan's method on it -> a step of the plan's objective
    and optimizer, saved, loaded, answers generated -> by which path the loss is computed, or the reason why not

The weights of the copy are random. It takes about a second, once for an architecture, a method and an objective: the
answer is kept in the home; a refusal is not, since a full disk may have caused it. The names and shapes of the base's
own tensors are compared with its architecture as well, and a teacher is checked in the same way. The step is the loop's
own, with all that an objective does before it: a reference is computed, answers are sampled and graded by made-up
rewards, a teacher of the plan's architecture is asked.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import LuthierError, RequestError
from luthier.core.forward_path import ForwardPath
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.plan import ObjectivePlan, Plan, TeacherPlan, ValueSource
from luthier.core.ports import Grade, Rollout, SilentProgress
from luthier.core.system.files import replace_text, scratch_folder
from luthier.core.system.libraries import code_stamp, version
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from luthier.ml.inference.models.forward import ScaledHead
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objective_protocol import Objective, Unit
    from luthier.ml.training.optimizer import MasterOptimizer

_FORMAT: Final = 2
_RANK: Final = 2
_VIRTUAL_TOKENS: Final = 2
_SEEN: Final = 1.05
"""A smaller factor is within what a prediction can tell."""
_TEACHER_WIDTH: Final = 16
_TEACHER_VOCABULARY: Final = 512
_LIBRARIES: Final = ("luthier", "torch", "transformers", "peft")
_known: dict[str, dict[str, Any]] = {}


def rehearsed(context: Context, plan: Plan) -> Plan:
    """The plan with the path by which its loss is computed, once a small copy of it has run.

    Raises:
        ModelSourceError: a tensor of the base is missing, superfluous or of another shape than its config says.
        RequestError: the method cannot be trained on this architecture, or what it saves cannot be loaded again.
    """
    key = _key(plan)
    # Memory first, then the home: a study plans the same recipe for every trial.
    answer = _known.get(key) or _read(context, key)
    if answer is None:
        answer = _answer(plan)
        _keep(context, key, answer)
    _known[key] = answer
    if answer["path"] is None:
        return plan
    path = ForwardPath.model_validate(answer["path"])
    training = plan.training.model_copy(update={"forward": path})
    plan = plan.model_copy(update={"training": training})
    times = _slowdown(context, plan)
    cost = f"about {times:.1f}x the time of a step by the fast path, as predicted" if times >= _SEEN else "slower"
    why = f"the same loss by {path.words}, {cost} (docs/benchmarks.md): {'; '.join(path.reasons)}"
    sources = plan.sources | {"training.forward": ValueSource(source="measured", why=why)}
    return plan.model_copy(update={"sources": sources})


def _slowdown(context: Context, plan: Plan) -> float:
    """By how much longer a step takes by the plan's path, by the count of what it computes and moves.

    1 on a device that no table knows: nothing is predicted there.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.speed import slowdown
    from luthier.ml.planning.workload import workload_of
    from luthier.platform.home.hardware_benchmark import hardware_of

    try:
        device = this_machine(hardware_of(context))
    except RequestError:
        return 1.0
    return slowdown(workload_of(plan, read_structure(plan.base_model.path), device), device)


def _key(plan: Plan) -> str:
    """Whatever decides how a rehearsal ends."""
    from luthier.ml.planning.hardware import cpu_name

    answers = plan.objective.draws or plan.data.held_out is not None
    teacher = plan.objective.teacher
    names = {"optimizer", "gradient_checkpointing", "precision", "neftune_alpha", "shared_prefix", "clip_gradient_norm"}
    training = plan.training.model_dump(mode="json", include=names)
    return sha256_document(
        {
            "format": _FORMAT,
            # An upgrade may break or repair what was proved, so a proof holds for these versions alone and for this
            # state of our own code, of which one version has many; and for this processor, since machines that share
            # a home may have several, and kernels that agree on one may not agree on another.
            "libraries": [version(name) for name in _LIBRARIES],
            "code": code_stamp(),
            "processor": cpu_name(),
            "base": plan.base_model.sha256,
            "config": sha256_file(Path(plan.base_model.path) / "config.json"),
            "method": plan.method.model_dump(mode="json"),
            "objective": plan.objective.model_dump(
                mode="json", exclude={"rewards": True, "teacher": {"name", "path", "adapter_path"}}
            ),
            "teacher": teacher and sha256_file(Path(teacher.path) / "config.json"),
            "answers": answers,
            "validation": plan.data.validation is not None,
            "replay": plan.data.replay is not None,
            "training": training,
        }
    )


def _file(context: Context, key: str) -> Path:
    return context.home / "cache" / "rehearsals" / f"{key}.json"


def _read(context: Context, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_file(context, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "path" in found else None


def _keep(context: Context, key: str, answer: dict[str, Any]) -> None:
    file = _file(context, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(answer))


def _answer(plan: Plan) -> dict[str, Any]:
    from luthier.ml.inference.models.loading import check_weights

    check_weights(plan.base_model.path, writes=plan.objective.task_head is None)
    if plan.objective.teacher is not None:
        check_weights(plan.objective.teacher.path)
    path = rehearse(plan)
    return {"path": None if path is None or path.is_fast else path.model_dump(mode="json")}


def rehearse(plan: Plan) -> ForwardPath | None:
    """Take the step; returns the path that was proved, or None where no small copy of the architecture runs.

    Raises:
        RequestError: the method cannot be trained on this architecture, or what it saves cannot be loaded again.
    """
    import torch

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.smaller_models import small_copy

    # The caller's random state is restored: a plan that was rehearsed must train as one whose proof was cached.
    generator = torch.get_rng_state()
    try:
        with scratch_folder(Path(tempfile.gettempdir()), "luthier-rehearsal-") as folder, quiet_transformers():
            small = small_copy(plan.base_model.path)
            if small is None:
                _refuse_unproved(plan)
                return None
            small.save_pretrained(str(folder / "base"))
            del small
            teacher = None if plan.objective.teacher is None else _asked(plan.objective.teacher)
            with _failures_explained(
                f"one step of objective {plan.objective.name} by method {plan.method.name} on a small copy of "
                f"{plan.base_model.name} fails",
                expected="an architecture on which transformers and PEFT can run the method, save it and load it again",
                do="choose another method or other method.targets, another objective, or another base model",
            ):
                template = _template(plan) if plan.objective.draws else None
                return _one_step(_small_plan(plan, folder / "base"), folder, template, teacher)
    finally:
        torch.set_rng_state(generator)


def _refuse_unproved(plan: Plan) -> None:
    if plan.objective.router_aux_loss is not None:
        raise RequestError(
            f"objective.router_aux_loss with {plan.base_model.name}, of which no small copy runs to prove it on",
            expected="a mixture of experts that transformers can build small",
            do="set objective.router_aux_loss: off",
        )


def _template(plan: Plan) -> ChatTemplate:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    return ChatTemplate.load(plan.base_model.path, plan.base_model.template, options=plan.data.template_options)


def _asked(teacher: TeacherPlan) -> AskedTeacher | None:
    """A small copy of the teacher, ready to be asked; None where none runs."""
    from luthier.ml.inference.models.smaller_models import small_copy

    with _failures_explained(
        f"a small copy of the teacher {teacher.name} cannot be asked",
        expected="a teacher that transformers can run, and whose logits are its last hidden state times one matrix",
        do="choose another teacher, or have it write the answers and learn those: luthier data answer",
    ):
        small = small_copy(teacher.path)
        return None if small is None else AskedTeacher(small, teacher)


@contextmanager
def _failures_explained(what: str, *, expected: str, do: str) -> Iterator[None]:
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:  # of a library, whatever it is: it would come in the middle of the run
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RequestError(f"{what}: {reason}", expected=expected, do=do) from error


def _small_plan(plan: Plan, base: Path) -> Plan:
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.adapter import place_adapters, resolve_targets, targeted

    method, structure = plan.method, read_structure(str(base))
    changes: dict[str, Any] = {"rank": min(method.rank, _RANK)}
    if method.target_rank is not None:
        changes["target_rank"] = min(method.target_rank, 1)
    if method.num_virtual_tokens is not None:
        changes["num_virtual_tokens"] = min(method.num_virtual_tokens, _VIRTUAL_TOKENS)
    if method.expert_rank is not None:
        changes["expert_rank"] = 1
    if method.quantisation is not None:
        changes["quantisation"] = "int8"  # packed alike, on any machine
    if method.targets:
        kept = tuple(target for target in method.targets if targeted(structure, (target,)))
        # Targets of layers that the small copy lacks match nothing, and PEFT refuses such names.
        changes["targets"] = kept or resolve_targets(structure, "all-linear")
    if method.expert_targets:
        found = tuple(target for target in method.expert_targets if targeted(structure, (), (target,)))
        changes["expert_targets"] = found or place_adapters(structure, "experts").expert_targets
    # On the CPU with one thread: what is proved is that the parts fit together, on any machine, in about a second.
    training = {"device": "cpu", "num_threads": 1, "micro_batch_tokens": 64, "num_steps": 1, "num_warmup_steps": 0}
    return plan.model_copy(
        update={
            "base_model": plan.base_model.model_copy(update={"path": str(base)}),
            "method": method.model_copy(update=changes),
            "training": plan.training.model_copy(update=training),
            "objective": _small_objective(plan.objective, structure.hidden_size),
        }
    )


def _small_objective(objective: ObjectivePlan, width: int) -> ObjectivePlan:
    """As few and short answers as show how they are learned from, and a teacher and a task head of a small size."""
    from luthier.ml.training.objectives.heads import small_head

    changes: dict[str, Any] = {"task_head": small_head(objective.task_head, width)}
    if objective.draws:
        changes |= {"num_samples": NUM_SAMPLES, "max_new_tokens": MAX_NEW_TOKENS}
    if objective.teacher is not None:
        small = {"hidden_size": _TEACHER_WIDTH, "vocabulary_size": _TEACHER_VOCABULARY, "device": "cpu"}
        changes["teacher"] = objective.teacher.model_copy(update=small)
    return objective.model_copy(update=changes)


def _one_step(plan: Plan, folder: Path, template: ChatTemplate | None, teacher: AskedTeacher | None) -> ForwardPath:
    """A step of the plan's objective, save, load, and answers where the run will ask for some."""
    import torch

    from luthier.ml.training.checkpoint import save_model
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objectives.rules import rules_of
    from luthier.ml.training.optimizer import MasterOptimizer

    model = TrainableModel.load(plan, base_dropout=not rules_of(plan.objective.name).dropout_is_noise)
    optimizer = MasterOptimizer(model.module, plan.training, model.method.rate_factor, model.method.decays)
    take_step(plan, model, optimizer, folder / "objective", template=template, teacher=teacher)
    model.module.eval()
    if plan.objective.draws or (plan.data.held_out is not None and plan.objective.task_head is None):
        _write_answer(model)
    run = folder / "run"
    run.mkdir()
    path, _ = save_model(model, Path(plan.base_model.path), run)
    # [1, 9] arbitrary ids, above those that are mostly special tokens.
    _load_again(plan, path, torch.arange(3, 12)[None])
    return model.path


def _write_answer(model: TrainableModel) -> None:
    from luthier.ml.inference.batch_generate import batch_generate
    from luthier.ml.inference.decode import Decoder, Request

    with model.as_decoder() as base:
        decoder = Decoder(base, end_ids=(), pad_id=model.pad_id)
        batch_generate(decoder, [Request([3, 4, 5], 2, 0.0, 0)], lambda _: None)


def _load_again(plan: Plan, path: Path, ids: Any) -> None:
    """What was saved loads by the ways that judging and serving take."""
    import torch

    from luthier.ml.inference.models.architecture import causal_model
    from luthier.ml.inference.models.forward import text_inputs
    from luthier.ml.inference.models.loading import attach_adapter, load_model

    is_adapter = path.name == "adapter"
    folder, writes = plan.base_model.path if is_adapter else path, plan.objective.task_head is None
    base = load_model(folder, dtype=plan.training.precision, attention="sdpa", writes=writes)
    whole = attach_adapter(base, path) if is_adapter else base
    causal = causal_model(base)
    with torch.no_grad():
        also = text_inputs(causal, ids)
        (whole if causal is base else causal)(input_ids=ids, **also)


_PROMPT_TOKENS: Final = 4
_ANSWER_TOKENS: Final = (8, 5, 6, 3)
NUM_SAMPLES: Final = 2
MAX_NEW_TOKENS: Final = 3


class _OneStep:
    """A schedule of one step: all units in one micro-batch, which shares these prefixes."""

    def __init__(self, num_units: int, prefixes: tuple[int, ...]) -> None:
        self._batch, self._prefixes = tuple(range(num_units)), prefixes

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        return (self._batch,)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        return (self._batch,)

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002
        return self._prefixes

    def epoch_of(self, step: int) -> float:
        return float(step)


class AskedTeacher:
    """What a small copy of a teacher says of rows: hidden states, head and what is done to their product.

    Raises:
        RequestError: no one matrix makes its logits of its states, so that nothing could be kept of it.
    """

    def __init__(self, small: PreTrainedModel, teacher: TeacherPlan) -> None:
        from luthier.ml.inference.likelihood import Scorer

        _refuse_adapted_head(small, teacher)
        self._scorer = Scorer(small, pad_id=0)
        self.head: Tensor = self._scorer.head
        self.scaled: ScaledHead = self._scorer.scaled

    def of(self, rows: Sequence[TokenisedExample]) -> Tensor:
        """[learned tokens of all rows, width], row after row."""
        import torch

        return torch.cat(self._scorer.states(rows)).clone()  # what is made in inference mode has no way on


def take_step(
    plan: Plan,
    model: TrainableModel,
    optimizer: MasterOptimizer,
    folder: Path,
    *,
    template: ChatTemplate | None,
    teacher: AskedTeacher | None,
) -> None:
    """Take the step, and validate where the run will.

    Args:
        plan: of the small copy.
        model: the small copy with the method on it.
        optimizer: of this model.
        folder: where the objective may write.
        template: of an objective that draws answers.
        teacher: of an objective that learns from one; None where no small copy of it runs.

    Raises:
        RequestError: loss or gradients are no numbers; and what the objective raises.
    """
    from luthier.ml.training.checkpoint import LoopState
    from luthier.ml.training.fit import EarlyStopping
    from luthier.ml.training.objectives.heads import with_made_up_targets
    from luthier.ml.training.objectives.preference import shared_prefix_tokens
    from luthier.ml.training.objectives.rules import rules_of
    from luthier.ml.training.step import one_step, validate

    rows_per_unit = rules_of(plan.objective.name).rows_per_unit
    made = made_up_units(rows_per_unit, model.vocabulary_size, with_replay=plan.data.replay is not None)
    units = with_made_up_targets(made, plan.objective.task_head)
    objective = _prepared(plan, model, units, folder, template, teacher)
    prefixes = shared_prefix_tokens(model, units) if rows_per_unit > 1 else ()
    schedule = _OneStep(len(units), prefixes)
    # No checkpoint is written, so no hash is needed.
    state = LoopState(plan_hash="", early_stopping=EarlyStopping(patience=1))
    state, event = one_step(plan, model, objective, optimizer, units, schedule, state)
    # The gradient norm, too: a loss may be finite while its gradient overflows.
    if not (math.isfinite(event.loss) and math.isfinite(event.gradient_norm)):
        raise RequestError(
            f"loss {event.loss} and gradient norm {event.gradient_norm} of one step of objective "
            f"{plan.objective.name} on a small copy of the architecture",
            expected="numbers",
            do="choose another method, another objective or another base model",
        )
    if plan.data.validation is not None:
        validate(model, objective, [(units, prefixes)], state, SilentProgress())


def made_up_units(rows_per_unit: int, vocabulary: int, *, with_replay: bool = False) -> list[Unit]:
    """Two units: rows of one prompt and different answers, wanted and not by turns; the second replayed, if asked."""
    units: list[Unit] = []
    for unit in range(2):
        prompt = range(3 + unit, 3 + unit + _PROMPT_TOKENS)
        rows = []
        for place in range(rows_per_unit):
            number = unit * rows_per_unit + place
            num = _ANSWER_TOKENS[number % len(_ANSWER_TOKENS)]
            # Modulo the vocabulary: small copies may have few tokens.
            ids = array(
                "i", (token % vocabulary for token in (*prompt, *range(11 + 3 * number, 11 + 3 * number + num)))
            )
            rows.append(
                TokenisedExample(
                    f"made-up:{number}",
                    ids,
                    bytes(_PROMPT_TOKENS) + b"\1" * num,
                    is_wanted=number % 2 == 0,
                    is_replayed=with_replay and unit == 1,
                )
            )
        units.append(tuple(rows))
    return units


def _prepared(
    plan: Plan,
    model: TrainableModel,
    units: Sequence[Unit],
    folder: Path,
    template: ChatTemplate | None,
    teacher: AskedTeacher | None,
) -> Objective:
    from luthier.ml.training.objective_protocol import Tools
    from luthier.ml.training.objectives.rules import load_objective

    tools = Tools(template=template, grade=_made_up_grades, seed=plan.training.seed)
    objective = load_objective(plan.objective, tools)
    if plan.objective.teacher is not None:
        from luthier.ml.training.objectives.distillation import Distillation

        if isinstance(objective, Distillation):
            objective.rehearse(model, teacher)
            return objective
    folder.mkdir(exist_ok=True)
    objective.prepare(model, units, folder, SilentProgress())
    return objective


def _made_up_grades(attempts: Sequence[Rollout]) -> list[Grade]:
    """Answers of one prompt differ in what they are worth, or nothing would be learned."""
    return [Grade(reward=float(number % 2), parts={"made up": float(number % 2)}) for number in range(len(attempts))]


def _refuse_adapted_head(small: PreTrainedModel, teacher: TeacherPlan) -> None:
    """An adapter on the output head: logits are then not states times the matrix that would be kept."""
    if teacher.adapter_path is None:
        return
    config = json.loads((Path(teacher.adapter_path) / "adapter_config.json").read_text(encoding="utf-8"))
    head = small.get_output_embeddings()
    name = next(name for name, module in small.named_modules() if module is head)
    targets, saved = config.get("target_modules") or (), config.get("modules_to_save") or ()
    # PEFT's rule: a string is a pattern for the whole name, a list holds last parts of names.
    is_hit = (
        re.fullmatch(targets, name) is not None
        if isinstance(targets, str)
        else any(name == one or name.endswith(f".{one}") for one in targets)
    )
    if is_hit or any(name == one or name.endswith(f".{one}") for one in saved):
        raise RequestError(
            f"the teacher {teacher.name} carries an adapter on its output head {name}, or trained it in whole",
            expected="a teacher whose logits are its last hidden state times one matrix",
            do="choose a teacher that did not train lm_head (targets, modules_to_save), or one that was merged",
        )
