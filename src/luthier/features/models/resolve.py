"""Who is evaluated: base models, runs and few-shot baselines, and each as `evaluate.compare` takes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from luthier.core.access import Caller
from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import ConflictError, ModelSourceError
from luthier.core.plan import Plan, Quantisation, TeacherPlan
from luthier.core.ports import Engine, StopCheck
from luthier.core.recipe import TemplateOption
from luthier.core.records.base_model import LocalModel
from luthier.core.system.files import expanded
from luthier.core.system.libraries import import_libraries
from luthier.features.models.names import ResolvedModel, base_of_adapter, find_model, is_adapter_folder
from luthier.features.models.prompts import PromptSet, prompting_of, prompts_of
from luthier.features.models.result_files import weights_folder
from luthier.features.models.trained_over import AdapterPlan, adapter_plan, refuse_other_base
from luthier.features.recipes.checks import are_pairs, check_lengths
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.task_model import TaskAnswers
    from luthier.ml.inference.transformers_engine import TransformersEngine

Precision = Literal["float32", "bfloat16"]
TemplateKind = Literal["auto", "chat", "plain"]
_LOCAL: Final = Caller()


class TemplatedEngine(Engine, Protocol):
    """An engine that knows how its model writes conversations."""

    @property
    def template(self) -> ChatTemplate: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """One system to judge.

    Attributes:
        name: What tables and the verdict call it.
        model_name: The base model's name.
        model_path: The folder of the base model, or of a full outcome.
        adapter_path: The folder of the adapter, if any.
        template: How conversations are written.
        precision: The type of the weights in computation.
        device: Where it is computed.
        context_length_tokens: Tokens that fit, less those of a trained prompt.
        shots: Examples put before each prompt.
        nearest_from: Rows of which the `num_nearest` that are nearest to a prompt are put before it, behind no `shots`.
        num_nearest: How many of them.
        instruction: The text before all of it; empty for none.
        num_draws: Draws of `shots` that its figures are means over, with those of other candidates.
        search_tokens: Tokens that the search for its prompt took; None where it was not searched for.
        reflection_model: What wrote the instruction; empty where no model did.
        quantisation: How the base is packed.
        template_options: Options of the chat template, as in training.
        learn_reasoning: Whether thoughts are scored.
        opted_turns: What of rows and prompts is rewritten, as in training.
    """

    name: str
    model_name: str
    model_path: str
    adapter_path: str | None
    template: TemplateKind
    precision: Precision
    device: str
    context_length_tokens: int
    shots: tuple[Example, ...] = ()
    nearest_from: tuple[Example, ...] = ()
    num_nearest: int = 0
    instruction: str = ""
    num_draws: int = 1
    search_tokens: int | None = None
    reflection_model: str = ""
    quantisation: Quantisation | None = None
    template_options: Mapping[str, TemplateOption] = field(default_factory=dict)
    learn_reasoning: bool | None = None
    opted_turns: OptedTurns = AS_THEY_ARE

    @property
    def is_prompted(self) -> bool:
        """Whether its prompts hold more than the text of a row."""
        return bool(self.shots or self.num_nearest or self.instruction)

    @property
    def has_task_head(self) -> bool:
        """Whether it gives classes, numbers or vectors in place of text."""
        from luthier.ml.inference.models.task_head import is_task_model

        return is_task_model(self.adapter_path or self.model_path)

    def chat_template(self) -> ChatTemplate:
        """How it writes conversations."""
        from luthier.ml.inference.models.templates.chat_template import ChatTemplate

        return ChatTemplate.load(self.model_path, self.template, options=self.template_options)


def find_base(context: Context, run_id: str, *, must_be_same: bool = True) -> Candidate:
    """The base model that a run was tuned from, by its own name.

    Args:
        context: The home.
        run_id: The run.
        must_be_same: Whether it needs the weights that it had then.

    Raises:
        ConflictError: It has other weights now.
        ModelSourceError: It could not be fetched.
    """
    from luthier.ml.inference.models import sources

    plan = context.runs.plan(run_id)
    # By name: the path in the plan may be that of another machine.
    model = sources.pull(plan.base_model.name, context.home, context.progress)
    if must_be_same:
        refuse_other_base(plan.base_model.sha256, model)
    return base_of(plan, name=plan.base_model.name, model_path=model.path)


def base_of(plan: Plan, *, name: str, model_path: str) -> Candidate:
    """The base model of a plan, run as the plan trains it: as precise, and packed where the plan packs it."""
    return Candidate(
        name=name,
        model_name=plan.base_model.name,
        model_path=model_path,
        adapter_path=None,
        template=plan.base_model.template,
        precision=plan.training.precision,
        device=plan.training.device,
        context_length_tokens=plan.base_model.context_length_tokens,
        quantisation=plan.method.quantisation,
        template_options=plan.data.template_options,
        learn_reasoning=plan.data.learn_reasoning,
        opted_turns=OptedTurns.of(plan.data),
    )


def tuned(name: str, base: Candidate, outcome_path: str, num_virtual_tokens: int = 0) -> Candidate:
    """What training made of a base: an adapter on it, or, where its folder is called `model`, a whole model.

    Args:
        name: of the system.
        base: what was trained.
        outcome_path: folder of the weights.
        num_virtual_tokens: of a trained prompt, which takes positions of the context.
    """
    if _is_whole(Path(outcome_path)):
        return replace(base, name=name, model_path=outcome_path)
    # A trained prompt occupies positions in front of every row, so less of the context is left for it.
    room = base.context_length_tokens - num_virtual_tokens
    return replace(base, name=name, adapter_path=outcome_path, context_length_tokens=room)


def _is_whole(outcome: Path) -> bool:
    # Full fine-tuning saves to `.../model`, LoRA and prompt tuning to `.../adapter`: the folder name is the marker.
    return outcome.name == "model"


def find_candidate(context: Context, name: str, caller: Caller = _LOCAL) -> Candidate:
    """A candidate by any name of a model, under that name.

    Args:
        context: The home.
        name: As `find_model` takes it.
        caller: Whose deployments and tuned models these are.

    Raises:
        NotFoundError: No such model, or the base model of an adapter is not on this machine.
        ConflictError: A run that has no trained weights, or whose base model has other weights now.
        RequestError: A deployment of an export.
        ModelSourceError: A base model could not be fetched.
    """
    model = find_model(context, name, caller, takes_exports=False)
    run_id = model.run_id
    if run_id is None:
        return _candidate_of_base(context, model)
    made = model.tuned.adapter_path if model.tuned is not None else _outcome_of(context, run_id)
    num_virtual = context.runs.plan(run_id).method.num_virtual_tokens or 0
    folder = weights_folder(context, run_id, made)
    # A whole model needs nothing of its base.
    base = find_base(context, run_id, must_be_same=not _is_whole(folder))
    return tuned(name, base, str(folder), num_virtual)


def _outcome_of(context: Context, run_id: str) -> str:
    record = context.runs.get(run_id)
    if record.result is None or record.result.adapter_path is None:
        raise ConflictError(
            f"run {run_id} is {record.status} and has no trained weights yet",
            expected="a run that has succeeded",
            do=f"resume it: luthier train --resume {run_id}",
        )
    return record.result.adapter_path


def _candidate_of_base(context: Context, model: ResolvedModel) -> Candidate:
    """A base model, or an adapter of which only the folder is known, as this machine runs it best."""
    from luthier.ml.inference.models import sources
    from luthier.platform.home.hardware_benchmark import hardware_of

    base, adapter, plan = model.name, None, None
    if is_adapter_folder(folder := expanded(model.name)):
        plan = adapter_plan(folder)
        written, found = base_of_adapter(context, folder, None if plan is None else plan.base_model.sha256)
        base, adapter = written if found is None else found.name, str(folder.resolve())
    local, machine = sources.pull(base, context.home, context.progress), hardware_of(context)
    candidate = Candidate(
        name=model.asked,
        model_name=local.name,
        model_path=local.path,
        adapter_path=adapter,
        template="auto",
        precision=machine.precision,
        device=machine.device,
        context_length_tokens=local.context_length_tokens,
    )
    return candidate if plan is None else _as_planned(candidate, plan, local)


def _as_planned(candidate: Candidate, plan: AdapterPlan, base: LocalModel) -> Candidate:
    """The adapter of a bundle with its base as the run has read it, on this machine's device.

    Raises:
        ConflictError: the base has other weights than in training.
    """
    refuse_other_base(plan.base_model.sha256, base)
    return replace(
        candidate,
        template=plan.base_model.template,
        precision=plan.training.precision,
        context_length_tokens=candidate.context_length_tokens - (plan.method.num_virtual_tokens or 0),
        quantisation=plan.method.quantisation,
        template_options=plan.data.template_options,
        learn_reasoning=plan.data.learn_reasoning,
        opted_turns=plan.opted_turns,
    )


def as_candidate(teacher: TeacherPlan) -> Candidate:
    """The teacher of a run, as an engine or a system."""
    return Candidate(
        name=f"teacher {teacher.name}",
        model_name=teacher.name,
        model_path=teacher.path,
        adapter_path=teacher.adapter_path,
        template=teacher.template,
        precision=teacher.precision,
        device=teacher.device,
        context_length_tokens=teacher.context_length_tokens,
        quantisation=teacher.quantisation,
        template_options=teacher.template_options,
        learn_reasoning=teacher.learn_reasoning,
        opted_turns=teacher.opted_turns,
    )


def engine_key(candidate: Candidate) -> tuple[Hashable, ...]:
    """What `open_engine` makes an engine of: candidates of one key can share an engine, others cannot.

    Names, shots and the length of the context are not part of it: they are of the prompts, not of the engine.
    """
    return (
        candidate.model_path,
        candidate.adapter_path,
        candidate.template,
        candidate.precision,
        candidate.device,
        candidate.quantisation,
        # By repr: True and 1 are equal, and a template may write them in two ways.
        tuple(sorted((name, repr(value)) for name, value in candidate.template_options.items())),
        candidate.opted_turns,
    )


def answers_key(candidate: Candidate) -> tuple[Hashable, ...]:
    """What its stored answers belong to: `engine_key`, and the sizes and times of the files behind its paths.

    A job that is run again days later may find other weights at the same place.
    """
    return (*engine_key(candidate), *map(_files_at, filter(None, (candidate.model_path, candidate.adapter_path))))


def _files_at(path: str) -> tuple[tuple[str, int, int], ...]:
    place = Path(path)
    files = sorted(one for one in place.iterdir() if one.is_file()) if place.is_dir() else []
    return tuple((one.name, (its := one.stat()).st_size, its.st_mtime_ns) for one in files)


def open_engine(
    candidate: Candidate,
    *,
    stop: StopCheck | None = None,
    for_task_head: bool = False,
    num_workers: int | None = None,
) -> TransformersEngine:
    """The engine that runs a candidate.

    Args:
        candidate: A base model or a run.
        stop: Asked between batches; the engine raises StoppedError for a reason.
        for_task_head: As for the engine.
        num_workers: Processes that compute its batches side by side; None for as many as threads, where memory allows.
    """
    import_libraries()
    from luthier.ml.inference.transformers_engine import TransformersEngine

    engine = TransformersEngine.open(
        candidate.model_path,
        adapter_path=candidate.adapter_path,
        template=candidate.template,
        template_options=candidate.template_options,
        opted_turns=candidate.opted_turns,
        dtype=candidate.precision,
        device=candidate.device,
        quantisation=candidate.quantisation,
        stop=stop,
        for_task_head=for_task_head,
    )
    engine.num_workers = _usual_workers(candidate) if num_workers is None else num_workers
    return engine


def _usual_workers(candidate: Candidate) -> int:
    """How many workers compute the batches of a candidate that is loaded, where no plan says it."""
    import torch

    from luthier.core.system.machine_memory import memory_bytes
    from luthier.core.system.process_setup import cores_of_quota
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.inference_cost import batch_workers

    num_threads = torch.get_num_threads()
    num_threads = min(num_threads, cores_of_quota() or num_threads)
    if candidate.device != "cpu" or num_threads < 2:
        return 1
    try:
        structure = read_structure(candidate.model_path)
    except ModelSourceError:  # it is loaded all the same, and what a batch of it takes is not known
        return 1
    return batch_workers(structure, candidate.precision, num_threads, free_bytes=memory_bytes()[1])


def open_judged(
    candidate: Candidate, *, stop: StopCheck | None = None, num_workers: int | None = None
) -> TransformersEngine | TaskAnswers:
    """The engine that answers for a candidate that is evaluated: one with a task head answers with labels or numbers.

    Args:
        candidate: A base model or a run.
        stop: As for `open_engine`.
        num_workers: As for `open_engine`.
    """
    has_head = candidate.has_task_head
    engine = open_engine(candidate, stop=stop, for_task_head=has_head, num_workers=num_workers)
    return _with_head(candidate, engine) if has_head else engine


def judged_over_base(
    candidate: Candidate, base: TransformersEngine, *, stop: StopCheck | None = None
) -> TransformersEngine | TaskAnswers:
    """The engine of a run as `open_judged` opens it, made of the loaded weights of its base.

    Args:
        candidate: A run with an adapter.
        base: The engine of its base, run as the candidate is; closed afterwards.
        stop: As for `open_engine`.
    """
    from luthier.ml.inference.models.loading import attach_adapter
    from luthier.ml.inference.transformers_engine import TransformersEngine

    assert candidate.adapter_path is not None
    adapted = attach_adapter(base.causal, candidate.adapter_path)
    engine = TransformersEngine(adapted, base.template, opted_turns=candidate.opted_turns, stop=stop)
    engine.num_workers = base.num_workers
    base.close()
    return _with_head(candidate, engine) if candidate.has_task_head else engine


def _with_head(candidate: Candidate, engine: TransformersEngine) -> TaskAnswers:
    from luthier.ml.inference.task_model import TaskAnswers, TaskModel

    return TaskAnswers(TaskModel.open(engine, candidate.adapter_path or candidate.model_path))


def _room(rows: Sequence[TokenisedExample], num_new: int, context: int, *, goes_on: bool) -> list[int]:
    """How many tokens may be written for each row. goes_on: behind the whole row, not behind its prompt."""
    from luthier.ml.evaluation.systems import num_prompt_tokens

    # By row: each has another prompt length, and generation stops at the end of the context.
    return [min(num_new, context - (row.num_tokens if goes_on else num_prompt_tokens(row))) for row in rows]


def system_under_test(
    candidate: Candidate,
    engine: TemplatedEngine,
    examples: Sequence[Example],
    max_new_tokens: int | None,
    *,
    max_thinking_tokens: int | None = None,
    options: Sequence[Sequence[str]] = (),
    rests: Sequence[str] = (),
) -> SystemUnderTest:
    """A candidate with its prompts, references and tokens.

    Shots are context: they are never scored. Where the longest row does not fit, fewer shots are used for all rows, and
    the name says how many.

    Args:
        candidate: what is evaluated.
        engine: of its model.
        examples: the held-out rows.
        max_new_tokens: of an answer; None takes it from the lengths of the rows' own answers.
        max_thinking_tokens: of the thought before it; None takes it from the rows' own thoughts.
        options: the answers to choose from, by row; empty where there is nothing to choose.
        rests: the continuations of plain texts that the system has to write.

    Raises:
        OverlongError: a row does not fit without shots.
    """
    from luthier.ml.data.tokenise.loss_mask import Learning, tokenise_option, tokenise_sides
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.engine_prompts import rewritten_examples
    from luthier.ml.inference.models.templates.thinking import limits_of

    learning, opted, name = Learning(reasoning=candidate.learn_reasoning), candidate.opted_turns, candidate.name
    examples = rewritten_examples(opted, examples, engine.template)
    num_shots, with_examples = prompts_of(candidate, examples, engine.template)
    while True:
        seen = with_examples(num_shots)
        units = [tokenise_sides(e, engine.template, learning) for e in seen]
        choices = tuple(
            tuple(tokenise_option(e, text, engine.template) for text in texts)
            for e, texts in zip(seen, options, strict=bool(options))
        )
        # One sequence over the context costs all rows a shot: their number is part of what is compared.
        everything = [t for unit in (*units, *choices) for t in unit]
        if not num_shots or max(t.num_tokens for t in everything) <= candidate.context_length_tokens:
            break
        num_shots -= 1
        name = f"{candidate.name} ({num_shots} fit)"
    check_lengths(everything, candidate.context_length_tokens, model=candidate.model_name)
    pairs = are_pairs(examples)
    # Templates that drop earlier thoughts need a unit an answer: the last unit is the answered one.
    cut = not pairs and any(len(unit) > 1 for unit in units)
    tokenised = tuple(unit[0 if pairs else -1] for unit in units)
    new, thinking = limits_of(() if rests else examples, engine.template, max_new_tokens, max_thinking_tokens)
    room = _room(tokenised, new, candidate.context_length_tokens, goes_on=bool(rests))
    prompt_set = PromptSet.of(seen, examples, rests, room, thinking)
    return SystemUnderTest(
        name=name,
        kind="head" if candidate.has_task_head else "model",
        model=candidate.model_name,
        adapter=candidate.adapter_path,
        num_few_shot=num_shots,
        engine=engine,
        prompts=prompt_set.prompts,
        references=prompt_set.references,
        row_ids=tuple(e.id for e in examples),
        prompt_texts=prompt_set.texts,
        tokenised=tokenised,
        num_bytes=tuple(e.learned_bytes_with(candidate.learn_reasoning) for e in examples),
        rejected=tuple(unit[1] for unit in units) if pairs else (),
        earlier=tuple(unit[:-1] for unit in units) if cut else (),
        options=choices,
        option_texts=tuple(tuple(texts) for texts in options),
        prompting=prompting_of(candidate, num_shots, examples, tokenised, engine.template, learning),
    )
