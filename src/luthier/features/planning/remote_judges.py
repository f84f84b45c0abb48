"""Judges behind OpenAI-compatible servers that grade answers in training: found and priced for the plan, asked in the
run.

    question -> stored reply, if there is one -> else the server, six attempts -> stored, noted as paid -> graded

Every process of a run asks about its own answers. Where two of them ask the same question at once, both use the reply
that is stored first, so that all of them, and a resumed run, compute with the same scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import LuthierError, WorkError
from luthier.core.estimate import Estimate
from luthier.core.plan import Plan
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.core.recipe import Recipe
from luthier.core.results.cost import spread_out
from luthier.core.run import JudgeBudget, RemoteJudge, RemoteLoad
from luthier.features.generation.configured_teacher import configured_teacher
from luthier.features.generation.engines import api_key, is_address, parse_address
from luthier.features.planning.judges import NUM_MEASURED, renamed
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.rewards import Rewards
    from luthier.ml.inference.engine_wrappers import Keep, ResultCache
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.training.ledger import JudgeCalls

_SHORTEST_REPLY = 2
_SHORTEST_SHARE = 0.1
_TOKENIZERS_DIFFER = 1.3
"""Another tokenizer makes that many times as many or as few tokens of the same text, at most in most cases."""
_ASKED_TWICE = 2.0
"""A reply without a score is asked for once more."""


class JudgeServerError(LuthierError):
    """A judge's server gives no answer, so that the run ends.

    No WorkError: those of single questions leave an answer without a score, which this must not.
    """


def find_remote_judges(context: Context, recipe: Recipe) -> dict[str, RemoteJudge]:
    """The models behind servers that the graders of a recipe ask, by the names of the recipe; nothing is sent.

    Prices are those of LUTHIER_TEACHER_USD_PER_MILLION_*, unless LUTHIER_TEACHER names another model.

    Args:
        context: The home.
        recipe: Of the run.

    Raises:
        RequestError: An address without a model, or with a key in it.
    """
    rewards = (recipe.objective.rewards if recipe.objective else None) or ()
    names = dict.fromkeys(name for reward in rewards for name in reward.judges if is_address(name))
    return {name: _remote_judge(context, name) for name in names}


def _remote_judge(context: Context, name: str) -> RemoteJudge:
    settings, teacher = context.settings, configured_teacher(context)
    address = "#".join(parse_address(name))
    if teacher is not None and teacher.address != address:
        return RemoteJudge(name=address)
    return RemoteJudge(
        name=address,
        prompt_usd=settings.teacher_usd_per_million_prompt_tokens,
        new_usd=settings.teacher_usd_per_million_new_tokens,
    )


def with_remote_judges(plan: Plan, judges: Mapping[str, RemoteJudge]) -> Plan:
    """The plan with the judges behind servers, each by its address in one form.

    Args:
        plan: Without them.
        judges: By the names of the recipe.
    """
    if not judges:
        return plan
    rewards = renamed(plan, {name: judge.name for name, judge in judges.items()})
    found = {judge.name: judge for judge in judges.values()}
    objective = plan.objective.model_copy(update={"rewards": rewards, "remote_judges": tuple(found.values())})
    return plan.model_copy(update={"objective": objective})


def with_remote_grading(plan: Plan, rewards: Rewards | None, template: ChatTemplate) -> Plan:
    """The plan with the calls and tokens of its judges behind servers; as it is where there are none.

    Args:
        plan: With these judges.
        rewards: Over the rows of the run.
        template: Of the model that is trained: its tokenizer counts, since that of a server is not known.
    """
    judges = plan.objective.remote_judges
    if not judges or rewards is None:
        return plan
    training, rows = plan.training, plan.data.validation
    every = training.validate_every_steps
    num_validations = math.ceil(training.num_steps / every) if every and rows is not None else 0
    num_prompts = training.global_batch_size
    num_answers = num_prompts * (plan.objective.num_samples or 1)
    loads: dict[str, list[tuple[RemoteLoad, RemoteLoad]]] = {judge.name: [] for judge in judges}
    for grader, questions in rewards.questions(NUM_MEASURED):
        if grader.model not in loads:
            continue
        means = _tokens_of(grader, questions, plan.objective.max_new_tokens or 0, template)
        validated = 0 if rows is None else rows.num_examples
        # Equal answers to a prompt are asked about once: in the extreme, one question for each prompt.
        step = _load(means, num_prompts, num_answers)
        loads[grader.model].append((step, _load(means, min(1, validated), validated)))
    planned = []
    for judge in judges:
        step = _sum([one for one, _ in loads[judge.name]])
        validation = _sum([one for _, one in loads[judge.name]])
        run = _sum([_times(step, training.num_steps), _times(validation, num_validations)])
        planned.append(judge.model_copy(update={"step": step, "validation": validation, "run": run}))
    objective = plan.objective.model_copy(update={"remote_judges": tuple(planned)})
    return plan.model_copy(update={"objective": objective})


def _tokens_of(
    grader: object, questions: Sequence[Prompt], max_answer_tokens: int, template: ChatTemplate
) -> tuple[Estimate, Estimate]:
    """Tokens of a question with its answer, and of its reply; the value is for the longest ones that may be."""
    from luthier.ml.evaluation.graders import num_answer_placeholders

    texts = [
        template.render(asked.conversation, add_generation_prompt=True)
        for asked in questions
        if asked.conversation is not None
    ]
    tokens = sum(map(len, template.encode_all(texts))) / max(1, len(texts))
    answer = max_answer_tokens * sum(num_answer_placeholders(turn.content) for turn in getattr(grader, "input", ()))
    new = questions[0].max_new_tokens if questions else 0
    longest = tokens + answer
    return (
        Estimate(
            value=longest,
            low=(tokens + _SHORTEST_SHARE * answer) / _TOKENIZERS_DIFFER,
            high=longest * _TOKENIZERS_DIFFER,
        ),
        Estimate(value=float(new), low=float(min(_SHORTEST_REPLY, new)), high=float(new)),
    )


def _load(tokens: tuple[Estimate, Estimate], fewest: int, num_answers: int) -> RemoteLoad:
    calls = Estimate(value=float(num_answers), low=float(fewest), high=_ASKED_TWICE * num_answers)
    prompt, new = (
        Estimate(value=calls.value * one.value, low=calls.low * one.low, high=calls.high * one.high) for one in tokens
    )
    return RemoteLoad(num_calls=calls, prompt_tokens=prompt, new_tokens=new)


def _times(load: RemoteLoad, factor: float) -> RemoteLoad:
    return RemoteLoad(**{name: getattr(load, name).times(factor) for name in RemoteLoad.model_fields})


def _sum(loads: Sequence[RemoteLoad]) -> RemoteLoad:
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    total = RemoteLoad(num_calls=zero, prompt_tokens=zero, new_tokens=zero)
    for one in loads:
        total = RemoteLoad(**{name: getattr(total, name).plus(getattr(one, name)) for name in RemoteLoad.model_fields})
    return total


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """What a run is expected to ask of a judge behind a server, for the terminal, the page of the run and `--json`.

    Attributes:
        name: Its address, `http(s)://host:port/v1#MODEL`.
        num_calls: Questions that are sent.
        prompt_tokens: Of all of them.
        new_tokens: Of all replies.
        usd: US dollars of both; None where no price is configured.
    """

    name: str
    num_calls: Estimate
    prompt_tokens: Estimate
    new_tokens: Estimate
    usd: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """One of `judges` in `luthier plan --json`: each figure with `_low` and `_high`."""
        document: dict[str, Any] = {"name": self.name}
        for name in ("num_calls", "prompt_tokens", "new_tokens", "usd"):
            document |= spread_out(name, getattr(self, name))
        return document


def judge_costs(plan: Plan) -> list[JudgeCost]:
    """What a run is expected to ask of each of its judges behind servers; empty where it has none.

    Args:
        plan: With the loads of its judges.
    """
    return [
        JudgeCost(one.name, one.run.num_calls, one.run.prompt_tokens, one.run.new_tokens, one.usd_of(one.run))
        for one in plan.objective.remote_judges or ()
        if one.run is not None
    ]


def cost_line(cost: JudgeCost) -> str:
    """A line of the terminal: calls, tokens and money of a judge behind a server.

    Args:
        cost: Of the judge.
    """
    from luthier.platform.cli import figures

    calls, asked, new = (
        figures.between(one, lambda value: figures.count(round(value)))
        for one in (cost.num_calls, cost.prompt_tokens, cost.new_tokens)
    )
    usd = cost.usd
    money = "no price is set" if usd is None else f"{figures.between(usd, figures.usd)}, which comes on top of the rent"
    return (
        f"{cost.name}: {calls} calls, {asked} tokens of questions, {new} of replies; {money}; its time is not in the "
        "prediction"
    )


def judge_budget(plan: Plan) -> JudgeBudget | None:
    """What the judges behind servers of a plan cost a step and a validation; None where there are none.

    Args:
        plan: With the loads of its judges.
    """
    judges = plan.objective.remote_judges
    if not judges:
        return None
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    step, validation = zero, zero
    for judge in judges:
        step_usd, validation_usd = judge.usd_of(judge.step), judge.usd_of(judge.validation)
        if step_usd is None or validation_usd is None:
            return JudgeBudget(step_usd=None, validation_usd=zero)
        step, validation = step.plus(step_usd), validation.plus(validation_usd)
    return JudgeBudget(step_usd=step, validation_usd=validation)


def open_remote(judge: RemoteJudge, replies: ResultCache, calls: JudgeCalls, run: str) -> Engine:
    """A judge behind a server, behind stored replies; nothing is sent before its first new question.

    The key comes from the environment: LUTHIER_TEACHER_API_KEY, or OPENAI_API_KEY over https or to this machine.

    Args:
        judge: Of the plan.
        replies: Stores what it replies.
        calls: Notes the replies that were paid for.
        run: Names the run, for the command of an error.
    """
    from luthier.ml.inference.engine_wrappers import CachedEngine, CachedJudge
    from luthier.ml.inference.openai.http import OpenAIHttpEngine

    url, model = parse_address(judge.name)

    def opened(keep: Keep) -> Engine:
        def keep_paid(prompt: Prompt, reply: Generation) -> None:
            keep(prompt, reply)
            tokens = (reply.num_prompt_tokens, reply.num_new_tokens)
            calls.add(judge.name, *tokens, judge.usd_of_call(*tokens))

        return OpenAIHttpEngine(url, model, api_key=api_key(url, os.environ), keep=keep_paid)

    # The identity of teachers and of judges of evaluations: their replies to the same questions are used.
    identity = {"engine": "openai_http", "url": url, "model": model}
    cached = CachedEngine(opened, replies, name=judge.name, identity=identity, first_counts=True)
    return _EndsRun(CachedJudge(cached, judge.name), run)


class _EndsRun:
    """A judge whose failure ends the run: no answer may be graded by it."""

    def __init__(self, judge: Engine, run: str) -> None:
        self._judge, self._run, self.name = judge, run, judge.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        try:
            return self._judge.generate(prompts, progress)
        except WorkError as error:
            raise JudgeServerError(
                f"{self.name}, which grades the answers: {error.came}",
                expected="an answer of its server within six attempts",
                do=f"check that the server runs, then go on: luthier train --resume {self._run}; replies that are "
                "stored are not paid for again",
            ) from error

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return self._judge.score(examples, progress)

    def close(self) -> None:
        self._judge.close()
