"""What an objective needs in addition to rows: graded rewards, and a teacher's answers or logits.

Training does not import evaluation: it gets a function for the rewards. A teacher is found and checked for the plan,
and runs once before the student is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.conversation import Conversation, OptedTurns
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataError, OverlongError, RequestError, StoppedError
from luthier.core.events import WarningRaised
from luthier.core.graders import Reward
from luthier.core.ids import is_id
from luthier.core.plan import Plan, TeacherPlan
from luthier.core.recipe import Recipe
from luthier.core.run import StopReason, TrainResult, cause_of
from luthier.features.generation.engines import identity_of, is_address
from luthier.features.models.names import find_model, is_tuned_name
from luthier.features.models.resolve import Candidate, as_candidate, find_candidate, open_engine
from luthier.features.planning.budgets import stop_check
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.features.planning.service import Prepared
    from luthier.features.planning.training_data import PreparedSplit
    from luthier.features.training.launchers.here import Hooks
    from luthier.ml.evaluation.rewards import Rewards, RewardTools
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.distributed import World
    from luthier.ml.training.objective_protocol import Tools

_OURS = ("reference",)


def tools_for(prepared: Prepared, world: World, graders: RewardTools) -> Tools:
    """What the run lends its objective.

    Args:
        prepared: The run.
        world: The processes that train it, of which the first writes its files.
        graders: Asks the models and runs the code that grade.

    Raises:
        RequestError: A model that grades, none of whose replies can be read, or code that fails.
    """
    from luthier.ml.training.objective_protocol import Tools

    splits = [split for split in (prepared.train, prepared.validation) if split is not None]
    grade = rewards_of(prepared.plan.objective.rewards, splits, graders)
    if grade is not None:
        grade.try_graders()
    return Tools(
        template=prepared.template,
        grade=grade,
        seed=prepared.plan.training.seed,
        writes_files=world.is_first,
        is_streamed=prepared.train.stream is not None,
        over_ranks=world.sums,
        prompts=_prompts_with_tools(splits) if prepared.plan.objective.draws else {},
    )


def _prompts_with_tools(splits: Sequence[PreparedSplit]) -> dict[str, Conversation]:
    """The prompts in which a model is offered tools, by the ids of their rows."""
    prompts = ((example.id, example.prompt) for split in splits for example in split.examples)
    return {row_id: prompt for row_id, prompt in prompts if prompt is not None and prompt.tools}


def check_drawing(plan: Plan, splits: Sequence[PreparedSplit], room_tokens: int) -> Rewards | None:
    """Refuse what would fail once answers are drawn, before anything is trained; nothing where none are.

    Returns:
        The rewards over these rows; None where there are none.

    Args:
        plan: Of the run.
        splits: Training and validation rows.
        room_tokens: Of the model's context.

    Raises:
        RequestError: A formula or a field that no grader can fill, or rows that lack what is graded.
        DataError: Two different rows of one id.
        OverlongError: Prompts that leave no room for an answer.
    """
    rewards = rewards_of(plan.objective.rewards, splits)
    if plan.objective.max_new_tokens is None:
        return rewards
    most = room_tokens - plan.objective.max_new_tokens
    # Ids alone: the rows may be in files, larger than memory.
    over = [row.id for split in splits for row in split.tokenised if row.num_prompt_tokens > most]
    if over:
        verb = "prompt is" if len(over) == 1 else "prompts are"
        raise OverlongError(
            f"{len(over):,} {verb} longer than {most:,} tokens, such as that of {over[0]}",
            expected=f"room for objective.max_new_tokens {plan.objective.max_new_tokens:,} after every prompt",
            do="lower objective.max_new_tokens, or take these rows out",
        )
    return rewards


def rewards_of(
    rewards: Sequence[Reward] | None, splits: Sequence[PreparedSplit], tools: RewardTools | None = None
) -> Rewards | None:
    """The rewards of a plan over the rows of these splits; None where it has none.

    Args:
        rewards: Of the plan.
        splits: Training and validation rows.
        tools: Asks the models and runs the code that grade; None where nothing is graded yet.

    Raises:
        RequestError: A formula or a place that no grader can fill, or rows that lack a required field.
    """
    if rewards is None:
        return None
    from luthier.ml.evaluation.graders import fields_of, texts_to_fill
    from luthier.ml.evaluation.rewards import Rewards, need_answers

    graders = [reward.grader for reward in rewards if reward.grader is not None]
    asked = {name for grader in graders for name in fields_of(grader)}
    templates = tuple(text for grader in graders for text in texts_to_fill(grader))
    needs_answer = need_answers(rewards)
    # Code may read any of them.
    reads_all = any(reward.code for reward in rewards)
    items: dict[str, dict[str, Any]] = {}
    for split in splits:
        wanted = asked - set(_OURS)
        fields = _fields(Path(split.profile.file)) if wanted or reads_all else {}
        for example in split.examples:
            item = dict(fields.get(example.id, {})) | {"reference": example.reference}
            # The same file may be split into both sides: equal rows under one id are fine, different ones are not.
            if items.setdefault(example.id, item) != item:
                raise _same_name(example)
            _refuse_lost(example, item, wanted, needs_answer)
            _refuse_unfilled(example, item, templates)
    return Rewards(rewards, items, tools)


def _fields(file: Path) -> Mapping[str, dict[str, Any]]:
    """The raw fields of each row of a file, by the row's id."""
    from luthier.core.dataset import Row
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    return {row.id: row.fields for row in read_rows(open_source(file)) if isinstance(row, Row)}


def _same_name(example: Example) -> DataError:
    return DataError(
        f"{example.id} is a row of the training file and another one of the validation file",
        expected="two files of different names: rewards find a row by the name of its file and its line",
        do="rename one of the two files",
    )


def _refuse_lost(example: Example, item: Mapping[str, Any], wanted: set[str], needs_answer: bool) -> None:
    if needs_answer and example.reference is None:
        raise RequestError(
            f"objective.rewards compare with the row's own answer, but that of {example.id} is only tool calls",
            expected="rows with a text answer, or rewards that need none",
            do="take such rows out",
        )
    if lost := sorted(wanted - set(item)):
        raise RequestError(
            f"objective.rewards ask for item.{lost[0]}, which {example.id} does not have",
            expected=f"one of {', '.join(sorted(item))}",
            do="correct objective.rewards, or give every row that field",
        )


def _refuse_unfilled(example: Example, item: Mapping[str, Any], templates: Sequence[str]) -> None:
    """Refuse a row whose fields lack what a place such as `{{item.answer.value}}` refers to in them."""
    from luthier.ml.evaluation.graders import written_out

    for template in templates:
        try:
            written_out(template, "", item)
        except RequestError as error:
            raise RequestError(f"{example.id}: {error.came}", expected=error.expected, do=error.do) from error


_MAX_NAMED = 3


def find_teacher(
    context: Context, recipe: Recipe, template: ChatTemplate, splits: Sequence[PreparedSplit]
) -> TeacherPlan | None:
    """The teacher that a recipe's objective names, with all that decides what it says; None where it names none.

    Args:
        context: The home.
        recipe: Of the run.
        template: The student's, whose tokens the teacher must share.
        splits: The rows that it will look at.

    Raises:
        RequestError: A teacher with another vocabulary, a shorter context than the rows need, or without logits
            (behind a server).
        NotFoundError: No such model or run.
        ConflictError: A run that has made no weights.
    """
    from luthier.ml.training.objectives.rules import rules_of

    name = recipe.objective.teacher if recipe.objective else None
    if name is None or recipe.objective is None or not rules_of(recipe.objective.name).needs_teacher:
        return None
    _refuse_server(name)
    model = find_model(context, name, takes_exports=False)
    # By run, where one has made it: the plan must mean the same weights once a deployment routes elsewhere.
    name, run_id = model.name, model.run_id
    candidate = find_candidate(context, name)
    # The most expensive mistake: with other ids, the run would learn noise without any error.
    _refuse_other_tokens(candidate, template)
    longest = max(split.profile.max_tokens for split in splits)
    if longest > candidate.context_length_tokens:
        raise RequestError(
            f"a row of {longest:,} tokens, and a teacher {candidate.model_name} with a context of "
            f"{candidate.context_length_tokens:,}",
            expected="rows that the teacher can read whole",
            do=f"set training.max_length_tokens: {candidate.context_length_tokens} with training.on_overlong: "
            "truncate, or choose another teacher",
        )
    # A run is prompted as in its training; a plain base is prompted like the student.
    candidate = _as_student(candidate, recipe) if run_id is None else candidate
    asked = recipe.training.precision if recipe.training else None
    return model_plan(context, name, candidate, candidate.precision if asked is None or asked == "auto" else asked)


def model_plan(
    context: Context, name: str, candidate: Candidate, precision: Literal["float32", "bfloat16"]
) -> TeacherPlan:
    """A model that is asked while another trains, with all that decides what it says.

    Args:
        context: The home.
        name: Of its weights: a base model, or a run.
        candidate: The same, found.
        precision: It computes in.
    """
    from luthier.ml.inference.models.structure import read_structure

    structure = read_structure(candidate.model_path)
    sha256, adapter_sha256 = _digests(context, name, candidate)
    return TeacherPlan(
        name=name,
        path=candidate.model_path,
        sha256=sha256,
        adapter_path=candidate.adapter_path,
        adapter_sha256=adapter_sha256,
        precision=precision,
        quantisation=candidate.quantisation,
        device=candidate.device,
        num_parameters=structure.num_parameters,
        hidden_size=structure.hidden_size,
        vocabulary_size=structure.vocabulary_size,
        context_length_tokens=candidate.context_length_tokens,
        template=candidate.template,
        template_options=dict(candidate.template_options),
        opted_turns=candidate.opted_turns,
        learn_reasoning=candidate.learn_reasoning,
    )


def _refuse_server(name: str) -> None:
    if is_address(name):
        raise RequestError(
            f"objective.teacher {name}",
            expected="a model on this machine: a server does not give the probability of every token",
            do="have the server write the answers instead, and learn those: luthier data answer --teacher ADDRESS",
        )


def _as_student(candidate: Candidate, recipe: Recipe) -> Candidate:
    """A base model as the student is written to: with the options that its own template reads."""
    read = candidate.chat_template().names.options
    options = {name: value for name, value in (recipe.data.template_options or {}).items() if name in read}
    return replace(
        candidate,
        template_options=options,
        opted_turns=OptedTurns.of(recipe.data),
        learn_reasoning=recipe.data.learn_reasoning,
    )


def _trained_otherwise(plan: Plan) -> str | None:
    """What to say where the rows are not written as those were that the teacher was trained on; None where they are."""
    teacher = plan.objective.teacher
    assert teacher is not None
    if not (is_id(teacher.name, "run") or is_tuned_name(teacher.name)):
        return None
    own = (teacher.template_options, teacher.opted_turns)
    rows = (plan.data.template_options, OptedTurns.of(plan.data))
    # Base models are written to as the student is, so only runs can differ.
    if own == rows:
        return None
    shown = [
        json.dumps({**options, **opted.model_dump(mode="json", exclude_defaults=True)})
        for options, opted in (own, rows)
    ]
    return (
        f"the teacher {teacher.name} was trained with {shown[0]}, and looks at rows that are written with {shown[1]}: "
        "what it says of them may be worse; give data.template_options, system, tools and reasoning as its recipe does"
    )


def refuse_another_teacher(before: TeacherPlan, now: TeacherPlan | None) -> None:
    """Raise ConflictError where the teacher of a resumed run is not the one that it began with."""
    # By digests: the same name may refer to other weights today.
    then, today = (before.sha256, before.adapter_sha256), now and (now.sha256, now.adapter_sha256)
    if then != today:
        raise ConflictError(
            f"the teacher {before.name} has changed since the run began",
            expected=f"weights with digest {before.sha256[:12]}"
            + (f" and an adapter with {before.adapter_sha256[:12]}" if before.adapter_sha256 else ""),
            do="restore the teacher, or start a new run",
        )


def ask_teacher(prepared: Prepared, hooks: Hooks) -> TrainResult | None:
    """Run the teacher over the rows that are missing; None where training may begin.

    The student is loaded after the teacher is freed. A signal or the budget stops it between two batches,
    and the result then gives the reason; finished rows are kept.
    """
    from luthier.ml.training.objectives import distillation

    teacher = prepared.plan.objective.teacher
    if teacher is None:
        return None
    hooks.meter.begin("teacher")
    units = [*prepared.trained_units, *(prepared.validation.units if prepared.validation else [])]
    # Validation rows, too: their loss is measured against the teacher as well.
    rows = [row for unit in units for row in unit]
    folder = hooks.folder / distillation.FOLDER
    notice = (
        "the teacher stops after the current batch; finished rows are kept, and the run is paused; resume with "
        f"`luthier train --resume {hooks.folder.name}`. {AGAIN}"
    )
    # Only one handles signals: where the caller does, its check is used.
    listening = stop_signals(lambda: notice) if hooks.stop_requested is None else None
    with listening or nullcontext(hooks.stop_requested or (lambda: None)) as stop_requested:
        stop = stop_check(hooks.meter, stop_requested)
        try:
            messages = distillation.ask_teacher(
                folder, teacher, rows, lambda: open_engine(as_candidate(teacher), stop=stop), hooks.progress
            )
        except StoppedError as error:
            words = f"{error.reason}, while the teacher was asked"
            return not_begun(prepared, StopReason(words, cause_of(error.reason)))
    if (otherwise := _trained_otherwise(prepared.plan)) is not None:
        hooks.emit(WarningRaised(step=0, code="teacher_trained_otherwise", message=otherwise))
    for message in messages:
        hooks.emit(WarningRaised(step=0, code="teacher_asked_again", message=message))
    return None


def _digests(context: Context, name: str, candidate: Candidate) -> tuple[str, str | None]:
    """Of the weights, and of the adapter on them."""
    known = identity_of(context, name, candidate)
    trained = known.get("trained_sha256")
    if candidate.adapter_path is None and trained is not None:  # a whole model came out of it
        return str(trained), None
    return str(known["sha256"]), trained


def _refuse_other_tokens(teacher: Candidate, template: ChatTemplate) -> None:
    """A teacher reads the student's token ids: each must be the same text to both."""
    from luthier.ml.inference.models.loading import load_tokenizer

    # Distillation compares the two distributions id by id, so the vocabularies must be equal, not merely of one size.
    own, other = template.tokenizer.get_vocab(), load_tokenizer(Path(teacher.model_path)).get_vocab()
    if own == other:
        return
    apart = sorted(word for word in own.keys() | other.keys() if own.get(word) != other.get(word))
    shown = ", ".join(
        f"{word!r} is {own.get(word, 'none')} and {other.get(word, 'none')}" for word in apart[:_MAX_NAMED]
    )
    raise RequestError(
        f"the teacher {teacher.model_name} has another vocabulary: {len(apart):,} of "
        f"{len(own.keys() | other.keys()):,} tokens differ ({shown}: student and teacher)",
        expected="a teacher with the student's tokenizer, mostly a larger model of the same family",
        do="choose such a teacher, or have it write the answers and learn those: luthier data answer",
    )


def not_begun(prepared: Prepared, reason: str) -> TrainResult:
    """The result of a run that was stopped before its first step."""
    num_trainable = prepared.plan.method.num_trainable_parameters
    return TrainResult(
        status="paused",
        stopped_because=str(reason),
        stop_cause=cause_of(reason),
        num_steps=0,
        num_tokens=0,
        num_trained_tokens=0,
        num_examples=0,
        num_trainable_parameters=num_trainable,
        trainable_fraction=num_trainable / prepared.plan.base_model.num_parameters,
        train_loss=0.0,
        best_validation_loss=None,
        best_step=0,
        seconds=0.0,
        tokens_per_second=0.0,
        examples_per_second=0.0,
        seconds_per_step=0.0,
        peak_memory_bytes=0,
        adapter_path=None,
        adapter_sha256=None,
    )
