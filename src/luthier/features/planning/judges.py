"""What grades answers in training by a model (`score_model`, `label_model`) or by code (`python`): found for the plan,
opened for the run.

Replies and scores are stored with the project's generations. So a run that is resumed reads those of before, and draws
what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import ConflictError, RequestError
from luthier.core.graders import GradingLoad, Reward
from luthier.core.plan import Plan, TeacherPlan
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score, SilentProgress
from luthier.core.recipe import Recipe
from luthier.features.generation.engines import is_address
from luthier.features.models.names import find_model
from luthier.features.models.resolve import as_candidate, find_candidate, open_engine
from luthier.features.planning.objective_inputs import model_plan
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.rewards import Rewards, RewardTools
    from luthier.ml.inference.engine_wrappers import CachedJudge, ResultCache
    from luthier.ml.planning.hardware import Hardware
    from luthier.platform.jobs.records import Job

_WHERE: Final = "model of a grader in objective.rewards"


def find_judges(context: Context, recipe: Recipe) -> dict[str, TeacherPlan]:
    """The models on this machine that the graders of a recipe ask, by the names of the recipe; nothing is loaded.

    Args:
        context: The home.
        recipe: Of the run.

    Raises:
        RequestError: A model that gives no text.
        NotFoundError: No such model or run.
        ConflictError: A run that has made no weights.
    """
    rewards = (recipe.objective.rewards if recipe.objective else None) or ()
    names = dict.fromkeys(name for reward in rewards for name in reward.judges if not is_address(name))
    return {name: _judge(context, name) for name in names}


def _judge(context: Context, name: str) -> TeacherPlan:
    # By run, where one has made it: the plan must mean the same weights once a deployment routes elsewhere.
    found = find_model(context, name, takes_exports=False)
    candidate = find_candidate(context, found.name)
    if candidate.has_task_head:
        raise RequestError(
            f"{_WHERE}: {name}, which has a task head",
            expected="a model that writes text",
            do="name a base model, a run that writes, or http(s)://host:port/v1#MODEL",
        )
    return model_plan(context, found.name, candidate, candidate.precision)


def check_code(context: Context, recipe: Recipe) -> None:
    """Refuse graders in Python where the home does not run code of recipes, or cannot lock a process down.

    Args:
        context: The home.
        recipe: Of the run.

    Raises:
        RequestError: They are not allowed here, cannot be run, or their source is no Python with a function `grade`.
    """
    rewards = (recipe.objective.rewards if recipe.objective else None) or ()
    graders = [code for reward in rewards for code in reward.code]
    if not graders:
        return
    from luthier.ml.evaluation.sandbox.recorded import check_source
    from luthier.ml.evaluation.sandbox.runners import isolation

    if not context.settings.python_graders:
        raise RequestError(
            f"grader {graders[0].name!r} of type python in objective.rewards: this home runs no code of recipes",
            expected="a grader that runs no code, or a home whose operator allows it (LUTHIER_PYTHON_GRADERS=true)",
            do="grade with string_check, text_similarity, score_model, label_model, or a multi grader of these; or "
            "set that variable for the processes that plan and train",
        )
    if not isolation().seccomp:
        raise RequestError(
            f"grader {graders[0].name!r} of type python in objective.rewards: this machine cannot lock a process down",
            expected="Linux on x86_64 or aarch64 with seccomp filters",
            do="train on such a machine, or grade without code",
        )
    for grader in graders:
        check_source(grader)


def with_judges(plan: Plan, judges: dict[str, TeacherPlan]) -> Plan:
    """The plan with the models that grade, each by the name of its weights.

    Args:
        plan: Without them.
        judges: By the names of the recipe.
    """
    if not judges:
        return plan
    rewards = renamed(plan, {name: judge.name for name, judge in judges.items()})
    found = {judge.name: judge for judge in judges.values()}
    objective = plan.objective.model_copy(update={"rewards": rewards, "judges": tuple(found.values())})
    return plan.model_copy(update={"objective": objective})


def renamed(plan: Plan, names: Mapping[str, str]) -> tuple[Reward, ...]:
    """The rewards of a plan with other names of some of the models that are asked."""
    rewards = plan.objective.rewards or ()
    return tuple(reward.with_judges({name: names.get(name, name) for name in reward.judges}) for reward in rewards)


_REPORT_SECONDS: Final = 15.0
NUM_MEASURED: Final = 32
"""Rows whose questions are counted for the time of grading."""


def with_grading(plan: Plan, rewards: Rewards | None) -> Plan:
    """The plan with what the models that grade read and write for an answer; as it is where none grades.

    Args:
        plan: With its judges.
        rewards: Over the rows of the run.
    """
    from luthier.ml.evaluation.graders import num_answer_placeholders
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.inference.thoughts import Thoughts

    judges = {judge.name: judge for judge in plan.objective.judges or ()}
    loads = []
    for grader, questions in rewards.questions(NUM_MEASURED) if rewards is not None and judges else ():
        if grader.model not in judges:  # behind a server (`remote_judges`)
            continue
        judge = judges[grader.model]
        template = as_candidate(judge).chat_template()
        texts = [
            template.render(asked.conversation, add_generation_prompt=True)
            for asked in questions
            if asked.conversation is not None
        ]
        prompt_tokens = sum(map(len, template.encode_all(texts))) / max(1, len(texts))
        answers_read = sum(num_answer_placeholders(turn.content) for turn in grader.input)
        # The limits are of the grader: all of its questions have the same.
        new, thinking = questions[0].max_new_tokens, questions[0].max_thinking_tokens
        room = judge.context_length_tokens - math.ceil(prompt_tokens) - new
        structure = read_structure(judge.path)
        loads.append(
            GradingLoad(
                grader=grader.name,
                judge=judge.name,
                prompt_tokens=prompt_tokens,
                answers_read=answers_read,
                new_tokens=new + Thoughts(template).budget(thinking, max(0, room)),
                num_active_parameters=structure.num_active_parameters,
                num_layers=structure.num_layers,
                key_value_width=2 * structure.num_layers * structure.num_kv_heads * structure.head_size,
            )
        )
    if not loads:
        return plan
    return plan.model_copy(update={"objective": plan.objective.model_copy(update={"grading": tuple(loads)})})


def beside(hardware: Hardware, judges: dict[str, TeacherPlan]) -> Hardware:
    """The memory of this machine that is left beside the models that grade, which stay loaded while a run trains.

    Args:
        hardware: The machine.
        judges: That are loaded on it.
    """
    taken = {judge.name: _bytes_of(judge) for judge in judges.values()}
    num_bytes = sum(taken.values())
    if not num_bytes:
        return hardware
    if hardware.device == "cpu":
        left = max(0, hardware.memory_available_bytes - num_bytes)
        return hardware.model_copy(update={"memory_available_bytes": left})
    if not hardware.accelerator_memory_bytes:
        return hardware
    # At least 1: no memory at all means that it is not known.
    return hardware.model_copy(
        update={
            "accelerator_memory_bytes": max(1, hardware.accelerator_memory_bytes - num_bytes),
            "each_memory_bytes": tuple(max(1, own - num_bytes) for own in hardware.each_memory_bytes),
        }
    )


def _bytes_of(judge: TeacherPlan) -> int:
    from luthier.ml.planning.rollout_cost import JUDGE_SPACE
    from luthier.ml.planning.workload import BYTES

    return int(JUDGE_SPACE * judge.num_parameters * BYTES[judge.quantisation or judge.precision])


def refuse_other_judges(before: Sequence[TeacherPlan], now: Sequence[TeacherPlan]) -> None:
    """Raise ConflictError where a model that grades a resumed run is not the one that the run began with."""
    # By digests: the same name may refer to other weights today.
    today = {judge.name: (judge.sha256, judge.adapter_sha256) for judge in now}
    for judge in before:
        if today.get(judge.name) != (judge.sha256, judge.adapter_sha256):
            raise ConflictError(
                f"{judge.name}, which grades the answers, has changed since the run began",
                expected=f"weights with digest {judge.sha256[:12]}"
                + (f" and an adapter with {judge.adapter_sha256[:12]}" if judge.adapter_sha256 else ""),
                do="restore that model, or start a new run",
            )


def report_grading(context: Context, job: Job) -> None:
    """Have an attempt of a job say by events how far models that grade are, where a step waits long for them.

    Args:
        context: The home that the attempt works with.
        job: The job, as its attempt was given it.
    """
    from luthier.ml.evaluation.rewards import GRADING
    from luthier.platform.jobs.attempt import JobProgress

    # A task in each step: only those that take long, so that steps of a second add no events.
    context.progress = JobProgress(context, job, only=(GRADING,), every_seconds=_REPORT_SECONDS, names_tasks=False)


def replies_of(context: Context) -> ResultCache:
    """Where the replies of models that grade are stored: with the generations of the project."""
    return context.generations.of_project(context.cache_project_id)


@contextmanager
def opened(
    plan: Plan,
    replies: ResultCache | None,
    run: str,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Iterator[RewardTools]:
    """What grades a run: models, each loaded or connected with its first new question, and code.

    Args:
        plan: Of the run.
        replies: Stores what they reply; None stores nothing.
        run: Names the run.
        progress: Shows how many answers are graded.
        note: Is given what a person should know.
        folder: Of the run, where the paid replies of servers are noted; None notes nothing.
    """
    from luthier.features.planning.remote_judges import open_remote
    from luthier.ml.evaluation.rewards import RewardTools
    from luthier.ml.evaluation.sandbox.recorded import RecordedGraders
    from luthier.ml.training.ledger import JudgeCalls

    engines: dict[str, Engine] = {}
    calls, store = JudgeCalls(folder), NoReplies() if replies is None else replies
    remote = {judge.name: judge for judge in plan.objective.remote_judges or ()}
    judges = {judge.name: judge for judge in plan.objective.judges or ()}

    def judge_of(name: str) -> Engine:
        if name not in engines:
            engines[name] = (
                open_remote(remote[name], store, calls, run) if name in remote else _engine_of(judges[name], store)
            )
        return engines[name]

    code = RecordedGraders(replies, run)
    try:
        yield RewardTools(judge_of, code, progress or SilentProgress(), note or (lambda _: None))
    finally:
        code.close()
        for engine in engines.values():
            engine.close()
        calls.close()


def _engine_of(judge: TeacherPlan, replies: ResultCache) -> CachedJudge:
    from luthier.ml.inference.engine_wrappers import CachedEngine, CachedJudge

    candidate = as_candidate(judge)
    # All that decides what it says but the question: a reply that is found must be the one that it would give.
    identity = judge.model_dump(mode="json", exclude={"name", "path", "adapter_path"})
    identity |= {"engine": "transformers", "template_sha256": candidate.chat_template().sha256}
    cached = CachedEngine(lambda _: _Apart(judge), replies, name=judge.name, identity=identity)
    return CachedJudge(cached, judge.name)


class _Apart:
    """A judge beside a model that trains: neither its loading nor its answers move the random numbers of that one."""

    def __init__(self, judge: TeacherPlan) -> None:
        from luthier.ml.inference.accelerator import forked_random

        self.name, self._device = judge.name, judge.device
        with forked_random(self._device):
            # One process: forked workers would copy what trains here.
            self._engine = open_engine(as_candidate(judge), num_workers=1)

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        from luthier.ml.inference.accelerator import forked_random

        with forked_random(self._device):
            return self._engine.generate(prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return self._engine.score(examples, progress)

    def close(self) -> None:
        self._engine.close()


class NoReplies:
    """Stores nothing."""

    def find(self, keys: Sequence[str]) -> dict[str, Generation]:  # noqa: ARG002
        return {}

    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None:
        pass
