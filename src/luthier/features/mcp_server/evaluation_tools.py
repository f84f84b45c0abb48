"""Tools about evaluations: have one made, show its result, and whether the model is worth its cost."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.errors import RequestError
from luthier.features.datasets import service as datasets
from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.service import MAX_AGAINST
from luthier.features.mcp_server.records import Arguments, Call, Name, Tool, ToolResult, plain
from luthier.features.roi.service import compute_roi
from luthier.features.roi.three_questions import ShortAnswer, questions_of, worth_part
from luthier.features.runs import views as project_runs

_THREE_DECIMALS: Final = re.compile(r"-?\d+\.\d{3}")


class EvaluateArguments(Arguments):
    """What to evaluate, and by what."""

    candidate: Annotated[Name, Field(description="A run that has succeeded, or the name of its model (ft:...).")]
    kind: Annotated[
        Literal["rows", "suite", "safety"],
        Field(description="rows: on held-out rows; suite: by a suite file; safety: by safety probes."),
    ] = "rows"
    against: Annotated[
        list[Name],
        Field(max_length=MAX_AGAINST, description="Other runs, tuned models or base models; none: the base model."),
    ] = Field(default_factory=list)
    file_id: Annotated[
        str | None, Field(max_length=64, description="The held-out rows, or the suite: a file of the project.")
    ] = None
    dataset_id: Annotated[
        str | None, Field(max_length=64, description="In place of file_id: the newest version of a dataset.")
    ] = None
    probes: Annotated[Literal["default", "full"], Field(description="Of kind safety: which probes.")] = "default"
    max_rows: Annotated[int | None, Field(ge=1, lt=2**31, description="Evaluate only this many rows.")] = None
    allow_leakage: Annotated[bool, Field(description="Evaluate although the model was trained on some rows.")] = False


class EvaluationArguments(Arguments):
    """One evaluation."""

    evaluation_id: Annotated[
        Name, Field(description="The id of an evaluation: evaluation_id of a verdict, or result_id.")
    ]
    with_samples: Annotated[bool, Field(description="Also return what each system wrote for each row; long.")] = False


class WorthArguments(Arguments):
    """What the work costs today."""

    answers_per_week: Annotated[float, Field(ge=0, description="Cases a week.")]
    minutes_each: Annotated[float, Field(ge=0, description="Minutes of a person for each case today.")]
    cost_of_an_error: Annotated[float, Field(ge=0, description="What one wrong answer costs, in the currency.")]
    run_id: Annotated[str | None, Field(max_length=64, description="A run whose evaluation gives the gains.")] = None
    evaluation_id: Annotated[
        str | None,
        Field(max_length=64, description="In place of run_id: an evaluation. With neither, gains are assumed."),
    ] = None
    accuracy_today: Annotated[float | None, Field(ge=0, le=1, description="The share of right answers today.")] = None
    rate_per_hour: Annotated[float | None, Field(ge=0, description="What an hour of a person costs.")] = None
    currency: Annotated[str, Field(pattern="^[A-Za-z]{3}$", description="Three letters, such as USD or EUR.")] = "USD"
    currency_per_usd: Annotated[
        float | None,
        Field(gt=0, description="What a US dollar costs in the currency. Required for other currencies than USD."),
    ] = None


def evaluate(call: Call, asked: EvaluateArguments) -> ToolResult:
    """Queue an evaluation.

    Raises:
        RequestError: Both a file and a dataset are named.
    """
    if asked.file_id is not None and asked.dataset_id is not None:
        raise RequestError("both file_id and dataset_id", expected="one of the two", do="leave one out")
    file_id = asked.file_id
    if asked.dataset_id is not None:
        file_id = datasets.get_version(call.context, call.caller, asked.dataset_id).file_id
    made = evaluation_orders.start(
        call.context,
        call.caller,
        asked.kind,
        asked.candidate,
        against=asked.against,
        file_id=file_id,
        probes=asked.probes,
        most_rows=asked.max_rows,
        allow_leakage=asked.allow_leakage,
    )
    document = {
        "job_id": made.job.job_id,
        "result_id": made.order.result_id,
        "kind": asked.kind,
        "candidate": made.order.candidate,
        "against": list(made.order.against),
        "status": made.job.status,
    }
    read = " Then read it with get_evaluation." if asked.kind == "rows" else ""
    return ToolResult(f"Queued as job {made.job.job_id}. Follow it with watch.{read}", document)


def get_evaluation(call: Call, asked: EvaluationArguments) -> ToolResult:
    """An evaluation with its verdict."""
    found = project_runs.show_evaluation(
        call.context, call.caller.project_id, asked.evaluation_id, with_samples=asked.with_samples
    )
    verdict = found.get("verdict") or {}
    return ToolResult(verdict.get("headline") or f"Evaluation {asked.evaluation_id}, without a verdict.", found)


def worth(call: Call, asked: WorthArguments) -> ToolResult:
    """Whether fine-tuning pays off.

    Raises:
        RequestError: Both a run and an evaluation are named.
    """
    if asked.run_id is not None and asked.evaluation_id is not None:
        raise RequestError("both run_id and evaluation_id", expected="one of the two, or neither", do="leave one out")
    given = {name: _text(value) for name, value in asked.model_dump(exclude={"run_id", "evaluation_id"}).items()}
    evaluation_id = asked.evaluation_id
    if asked.run_id is not None:
        evaluation_id = project_runs.run_verdict(call.context, call.caller.project_id, asked.run_id)["evaluation_id"]
    if evaluation_id is None:
        found = _assumed(call, given)
    else:
        evaluation = project_runs.read_evaluation(call.context, call.caller.project_id, evaluation_id)
        part = worth_part(call.context, evaluation, given)
        if part.error is not None:
            raise part.error
        assert part.answer is not None, "all questions are answered"
        found = part.answer
    document: dict[str, Any] = {
        "answer": found.badge,
        "headline": plain(found.headline),
        "figures": [{"name": one.name, "value": plain(one.value), "note": plain(one.note)} for one in found.figures],
        "num_draws": found.num_draws,
        "assumed": found.assumed or None,
        "evaluation_id": evaluation_id,
    }
    figures = " ".join(f"{one['name']}: {one['value']} ({one['note']})." for one in document["figures"])
    return ToolResult(plain(f"{found.headline} {figures} {found.assumed}".strip()), document)


def _assumed(call: Call, given: dict[str, str]) -> ShortAnswer:
    from luthier.ml.planning.roi import answer

    result = compute_roi(call.context, questions_of(given)).result
    return ShortAnswer(
        answer.BADGES[result.answer],
        answer.TONES[result.answer],
        result.headline,
        tuple(answer.key_figures(result)),
        result.num_draws,
        "No evaluation was given: the gains are assumed.",
    )


def _text(value: float | str | None) -> str:
    """A value as a form has it. A figure with three decimals gets a fourth: in a form these could be thousands."""
    if value is None or isinstance(value, str):
        return value or ""
    text = f"{value:.15g}"
    return f"{text}0" if _THREE_DECIMALS.fullmatch(text) else text


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "evaluate",
        "Evaluate a model",
        "Queue an evaluation of a tuned model beside its base model or others: on held-out rows, by a suite, or for "
        "safety. Returns a job_id for watch and a result_id.",
        ("train",),
        EvaluateArguments,
        evaluate,
    ),
    Tool(
        "get_evaluation",
        "Show an evaluation",
        "Systems, metrics with 95% intervals, comparisons, verdict and recommended action of an evaluation on rows.",
        ("read",),
        EvaluationArguments,
        get_evaluation,
        is_read_only=True,
    ),
    Tool(
        "worth",
        "Is it worth it?",
        "Whether fine-tuning pays off, from three questions about the work today: value, payback time and probability, "
        "each with its range.",
        ("read",),
        WorthArguments,
        worth,
        is_read_only=True,
    ),
)
