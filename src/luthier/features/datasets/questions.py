"""Use cases: have a model write questions and answers from the passages of a dataset, by a job, within a budget.

The model is one of this machine, or the one that the operator has configured (`LUTHIER_TEACHER`): no address comes from
a form. What a model has answered is kept, so a job that stops in the middle continues without a request twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Final

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.text.counted import counted
from luthier.features.datasets.prices import Prices
from luthier.features.datasets.rows import look_of, sample_rows
from luthier.features.datasets.store import DatasetVersion
from luthier.features.generation.configured_teacher import configured_teacher
from luthier.features.generation.engines import is_address
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, find_base_model, local_base_models
from luthier.platform.jobs import orders
from luthier.platform.jobs.named_models import NamedModel
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.twins import open_twin

SYNTHESIS: Final = "synthesis"
"""The kind of these jobs, and the key of their order in the job document."""
SERVER: Final = "server"
"""What a form sends for the configured model; `model:NAME` for one of this machine."""
SERVER_BATCHES: Final = "server-batches"
"""The same for the configured model by its Batch API."""
BATCH_PASSAGES: Final = 8
"""Small batches: progress after each, and little to repeat after a stop."""
MAX_PAIRS: Final = 5
_SAMPLED: Final = 50
_CHARACTERS_OF_A_TOKEN: Final = (5.0, 3.0)
"""Most and fewest characters of one token, over the usual tokenizers and European languages."""
_USUAL_REPLY_TOKENS: Final = (25, 120)
"""Tokens of a question with its answer as JSON, from short ones to long ones."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that can write questions.

    Attributes:
        value: What a form sends for it.
        name: As people know it.
        address: The server that has it; empty for this machine.
        is_here: Whether passages stay on this machine.
        prices: What its tokens cost; None for nothing, or where no price is configured.
        uses_batch_api: Whether it is asked by OpenAI's Batch API: all passages at once, within a day.
    """

    value: str
    name: str
    address: str = ""
    is_here: bool = True
    prices: Prices | None = None
    uses_batch_api: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate.

    Attributes:
        low: Its low end.
        high: Its high end.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What writing questions will take, before anything is requested.

    Attributes:
        num_passages: Passages that are used.
        num_requests: Requests to the model: one for each pair of a passage.
        prompt_tokens: Tokens of all prompts.
        new_tokens: Tokens of all replies.
        cost_usd: US dollars for both; None without prices.
    """

    num_passages: int
    num_requests: int
    prompt_tokens: Range
    new_tokens: Range
    cost_usd: Range | None


class QuestionOrder(FrozenModel):
    """What a job of the kind `synthesis` is to write.

    Attributes:
        dataset_id: The dataset of the passages.
        version: Their version.
        file_id: The file of the project with the passages.
        name: The name of the dataset.
        column: The column that holds the passages.
        teacher: Who writes: the name of a base model, or an address.
        teacher_name: The same as people know it.
        pairs_per_passage: Pairs that are requested of each passage.
        max_passages: The first so many passages; None for all.
        price_input_usd: US dollars for a million tokens of prompts; None for no price.
        price_output_usd: The same for tokens of replies.
        budget_usd: The most that it should cost; None for no limit.
        uses_batch_api: Whether the teacher is asked by OpenAI's Batch API.
        author: Who ordered it.
    """

    dataset_id: str
    version: int
    file_id: str
    name: str
    column: str = "text"
    teacher: str
    teacher_name: str
    pairs_per_passage: Annotated[int, Field(ge=1, le=MAX_PAIRS)] = 1
    max_passages: Annotated[int, Field(ge=1)] | None = None
    price_input_usd: float | None = None
    price_output_usd: float | None = None
    budget_usd: float | None = None
    uses_batch_api: bool = False
    author: str = "local"

    @property
    def prices(self) -> Prices:
        """What the teacher's tokens cost."""
        return Prices(self.price_input_usd, self.price_output_usd)


def teachers(context: Context, project_id: str | None = None) -> list[Teacher]:
    """The models that can write questions for a project, the preferred one first.

    A configured model on this machine comes first, since it was set up for that; one elsewhere comes last, so that no
    passage leaves the machine unless somebody chooses so.
    """
    from luthier.ml.inference.models import sources

    found = {model.name: model for model in sources.local_models(context.home)}
    known = base_models(context)

    def rank(name: str) -> tuple[bool, int]:
        model = found[known[name]]
        return not model.has_chat_template, -model.num_parameters

    # Larger models that were tuned to answer write better questions.
    names = sorted(local_base_models(context, project_id), key=rank)
    here = [Teacher(f"model:{name}", name) for name in names]
    server = _servers(context)
    return [*server, *here] if server and server[0].is_here else [*here, *server]


def find_teacher(context: Context, value: str, project_id: str | None = None) -> Teacher:
    """The model that a form of a project names.

    Raises:
        RequestError: The list has no such model.
    """
    known = teachers(context, project_id)
    found = next((one for one in known if one.value == value), None)
    if found is None:
        raise RequestError(
            f"no model {value[:100]!r} that writes questions",
            expected=f"one of {', '.join(one.name for one in known)}" if known else "a base model on this machine",
            do="choose one of the list"
            if known
            else "`luthier models pull NAME` on the server installs one; LUTHIER_TEACHER configures one elsewhere",
        )
    return found


def estimate(
    context: Context,
    caller: Caller,
    version: DatasetVersion,
    teacher: Teacher | None,
    *,
    pairs_per_passage: int = 1,
    max_passages: int | None = None,
) -> Estimate:
    """The tokens and the cost of writing questions, from up to 50 passages spread over the file.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version with the passages.
        teacher: The model that writes; None where it is not chosen yet, and then there is no cost.
        pairs_per_passage: Pairs to write for each passage.
        max_passages: Only so many passages from the start of the file; None for all.

    Raises:
        NotFoundError: The file of the version is gone.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    from luthier.ml.data.provenance import PROVENANCE
    from luthier.ml.data.synthesis.synthesis_prompts import pair_prompt

    num_passages, rows = sample_rows(context, caller, version, _SAMPLED, first=max_passages)
    lengths = []
    for row in rows:
        if isinstance(text := row.fields.get(passage_column(version)), str):
            provenance = row.fields.get(PROVENANCE)
            known = provenance if isinstance(provenance, dict) else None
            messages = pair_prompt("qa", text, provenance=known).messages
            lengths.append(sum(len(message.content or "") for message in messages))
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    num_requests = num_passages * pairs_per_passage
    most, fewest = _CHARACTERS_OF_A_TOKEN
    prompts = Range(num_requests * mean / most, num_requests * mean / fewest)
    replies = Range(*(float(num_requests * tokens) for tokens in _USUAL_REPLY_TOKENS))
    return Estimate(num_passages, num_requests, prompts, replies, _cost(teacher, prompts, replies))


def check_passages(context: Context, caller: Caller, version: DatasetVersion) -> None:
    """Check that a version holds passages.

    Raises:
        RequestError: it does not.
        LuthierError: its file cannot be read now, as `look_of` found it.
    """
    found = look_of(context, caller, version)
    if found.error is not None:
        raise found.error
    if found.answer is not None and found.answer["shape"] != "text":
        raise RequestError(
            f"the rows are {found.answer['shape'] or 'of no known shape'}, not passages",
            expected="rows with a text each, as documents become when they are added",
            do="add documents, or choose the column that contains the texts",
        )


def passage_column(version: DatasetVersion) -> str:
    """The column that holds the passages."""
    return version.columns.get("text", "text")


def start(
    context: Context,
    caller: Caller,
    version: DatasetVersion,
    teacher: str,
    *,
    pairs_per_passage: int = 1,
    max_passages: int | None = None,
    budget_usd: float | None = None,
    joins: bool = False,
) -> Job:
    """Queue the writing of questions from the passages of a version.

    Args:
        context: The home.
        caller: Whose project it is.
        version: The version whose passages are read.
        teacher: The `value` of a `Teacher`.
        pairs_per_passage: Pairs that are requested of each passage, 1 to 5.
        max_passages: The first so many passages; None for all.
        budget_usd: The most that it should cost; needs a teacher with prices that is not asked by its Batch API.
        joins: Give the job that waits or runs and writes the same questions already, in place of a second one.

    Raises:
        RequestError: No such model, numbers that cannot be, a budget without prices, or rows that are no passages.
        NotFoundError: No such dataset.
        FileQuotaError: The files of the project take as much as they may.
    """
    dataset = context.datasets.get(caller.project_id, version.dataset_id)
    found = find_teacher(context, teacher, caller.project_id)
    check_passages(context, caller, version)
    if not 1 <= pairs_per_passage <= MAX_PAIRS or (max_passages is not None and max_passages < 1):
        raise RequestError(
            f"{pairs_per_passage} questions a passage, of {'all' if max_passages is None else max_passages} passages",
            expected=f"1 to {MAX_PAIRS} questions, of 1 passage or more",
            do="correct the numbers",
        )
    _check_budget(found, budget_usd)
    # What a model has written is kept whatever the quota: a project that is full is refused before.
    context.files.check_room(caller.project_id)
    prices = found.prices or Prices()
    order = QuestionOrder(
        dataset_id=version.dataset_id,
        version=version.number,
        file_id=version.file_id,
        name=dataset.name,
        column=passage_column(version),
        teacher=found.address or find_base_model(context, found.name),
        teacher_name=found.name,
        pairs_per_passage=pairs_per_passage,
        max_passages=max_passages,
        price_input_usd=prices.input_usd,
        price_output_usd=prices.output_usd,
        budget_usd=budget_usd,
        uses_batch_api=found.uses_batch_api,
        author=caller.name,
    )
    return _submit(context, caller, order, joins=joins)


def models_of(_context: Context, job: Job) -> Iterator[NamedModel]:
    """The base model that writes; none for one behind an address."""
    teacher = order_of(job).teacher
    if not is_address(teacher):
        yield NamedModel(teacher)


def keep_made(context: Context, caller: Caller, job: Job, num_done: int) -> Job:
    """Make the dataset of what a stopped job has written: by a job of the passages that are done.

    Raises:
        ConflictError: The job is running or has succeeded, or no passage is done yet.
    """
    if job.status not in ("failed", "paused", "cancelled") or num_done < 1:
        raise ConflictError(
            f"job {job.job_id} is {job.shown_status}, with {counted(num_done, 'passage')} done",
            expected="a job that has stopped after its first passages",
            do="wait for it, or continue it",
        )
    if job.status == "paused":
        orders.cancel(context, caller, job, "synthesis.cancelled")
    order = order_of(job).model_copy(update={"max_passages": num_done, "author": caller.name})
    return _submit(context, caller, order, joins=True)


def order_of(job: Job) -> QuestionOrder:
    """What a job of this kind is to write."""
    return QuestionOrder.model_validate(job.document[SYNTHESIS])


def check_is_configured(context: Context, order: QuestionOrder) -> None:
    """Check that the server of an order is still the configured one, with its Batch API.

    Raises:
        RequestError: The settings name another server now, or no longer its Batch API.
    """
    if is_address(order.teacher) and order.teacher != context.settings.teacher:
        raise RequestError(
            f"the model {order.teacher_name} is no longer configured",
            expected="the model that LUTHIER_TEACHER names now",
            do="start it again with another model",
        )
    if order.uses_batch_api and not context.settings.teacher_batch_api:
        raise RequestError(
            f"the Batch API of {order.teacher_name} is no longer configured",
            expected="LUTHIER_TEACHER_BATCH_API=true",
            do="start it again without the Batch API",
        )


def _submit(context: Context, caller: Caller, order: QuestionOrder, *, joins: bool) -> Job:
    document = {SYNTHESIS: order.model_dump(mode="json")}
    job = Job(
        job_id=new_id("job"),
        kind="synthesis",
        document=document,
        run_id="",
        project_id=caller.project_id,
        lane="remote" if is_address(order.teacher) else "infer",
    )
    facts = {
        "dataset_id": order.dataset_id,
        "version": order.version,
        "teacher": order.teacher_name,
        "uses_batch_api": order.uses_batch_api,
    }
    with context.database.transaction():
        if joins and (twin := open_twin(context, job, SYNTHESIS, apart_from="author")) is not None:
            return twin
        made = context.jobs.submit(job)
        record(context, caller, "synthesis.started", job.job_id, facts | {"budget_usd": order.budget_usd})
    return made


def _servers(context: Context) -> list[Teacher]:
    """The configured model, and the same by its Batch API where it has one. Raises RequestError for a wrong address."""
    settings, found = context.settings, configured_teacher(context)
    if found is None:
        return []
    prices = Prices(found.prompt_usd, found.new_usd) if found.has_prices else None
    one = Teacher(SERVER, found.name, settings.teacher, found.is_here, prices)
    if not settings.teacher_batch_api:
        return [one]
    share = 1 - settings.teacher_batch_discount_percent / 100
    cheaper = None if one.prices is None else one.prices.times(share)
    return [one, replace(one, value=SERVER_BATCHES, prices=cheaper, uses_batch_api=True)]


def _cost(teacher: Teacher | None, prompts: Range, replies: Range) -> Range | None:
    if teacher is None or teacher.prices is None:
        return None
    prices = teacher.prices
    assert prices.input_usd is not None
    assert prices.output_usd is not None
    low, high = (
        (getattr(prompts, end) * prices.input_usd + getattr(replies, end) * prices.output_usd) / 1e6
        for end in ("low", "high")
    )
    return Range(low, high)


def _check_budget(teacher: Teacher, budget_usd: float | None) -> None:
    if budget_usd is None:
        return
    if not 0 < budget_usd < float("inf"):
        raise RequestError(
            f"a budget of {budget_usd:g} USD", expected="more than 0 USD", do="correct it, or leave it empty"
        )
    if teacher.uses_batch_api:
        raise RequestError(
            f"a budget of {budget_usd:g} USD for a Batch API, which gets all passages at once",
            expected="no budget: it ends the work between small groups of passages",
            do="leave the budget empty, and limit the passages; the estimate shows the cost",
        )
    if teacher.prices is None:
        raise RequestError(
            f"a budget of {budget_usd:g} USD for {teacher.name}, which has no price here",
            expected="no budget, or a model with prices",
            do="leave the budget empty; the operator sets LUTHIER_TEACHER_USD_PER_MILLION_PROMPT_TOKENS and "
            "LUTHIER_TEACHER_USD_PER_MILLION_NEW_TOKENS",
        )


def check_is_dataset(job: Job) -> None:
    """Raise NotFoundError for a job that works on no dataset."""
    if job.kind not in ("import", "synthesis"):
        raise NotFoundError(
            f"job {job.job_id} is not an import and does not write questions",
            expected="the id of such a job",
            do="see the list of datasets",
        )
