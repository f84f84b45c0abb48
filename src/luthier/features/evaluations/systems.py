"""The systems of an evaluation: models that answer, task heads, and models that search documents, with their baselines.

Embeddings are evaluated by retrieval, rerankers by their ranking. Baselines of the tuned model are then the vectors of
the base (as its files describe them, else the mean of its last hidden states), BM25, and the most popular documents;
named base models and other runs are evaluated in the same way. Task heads have their own engines and metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.evaluation import KlToBase, SystemResult
from luthier.core.evaluation_plan import MetricName
from luthier.core.ids import is_trained_name
from luthier.core.ports import Engine, Progress, Prompt, StopCheck
from luthier.core.task_head import SEARCH_KINDS, TaskHead, TaskHeadKind, task_head_in
from luthier.core.text.written_numbers import marks_of
from luthier.features.generation.engines import EnginePool
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.resolve import Candidate, answers_key, engine_key, judged_over_base, open_judged
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.kl_to_base import AnswerStates, StatesEngine
    from luthier.ml.evaluation.metrics.protocol import Array
    from luthier.ml.evaluation.metrics.ranking import Ranked
    from luthier.ml.evaluation.retrieval import SearchTask
    from luthier.ml.evaluation.row_groups import RowGroups
    from luthier.ml.evaluation.systems import SystemUnderTest
    from luthier.ml.inference.stored_answers import AnswerFile
    from luthier.ml.inference.task_model import TaskAnswers, TaskModel
    from luthier.ml.inference.transformers_engine import TransformersEngine

_SCORED_AT_ONCE: Final = 256
"""Number of queries per block of similarities to all documents."""


@dataclass(frozen=True, slots=True)
class JudgedSystems:
    """The systems evaluated on the same rows.

    Attributes:
        systems: base models and other runs, baselines, and the evaluated model last.
        notes: notes on the rows and the baselines.
        left_out: baselines that do not fit, each with the reason.
    """

    systems: tuple[SystemUnderTest, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def search_kind(candidates: Sequence[Candidate]) -> TaskHeadKind | None:
    """The kind of retrieval evaluation: that of the last candidate that searches documents; None without one."""
    for candidate in reversed(candidates):
        head = task_head_in(candidate.adapter_path or candidate.model_path)
        if head is not None and head.kind in SEARCH_KINDS:
            return head.kind
    return None


def answers_as_sets(candidates: Sequence[Candidate]) -> Callable[[str], str] | None:
    """How answers with several labels are compared: as sets, by the head of the last candidate that gives several.

    None without such a candidate: answers are then compared as they are written.
    """
    from luthier.ml.data.tokenise.heads import canonical_answer

    for candidate in reversed(candidates):
        head = task_head_in(candidate.adapter_path or candidate.model_path)
        if head is not None and head.is_multi_label:
            return partial(canonical_answer, head=head)
    return None


def chosen_metrics(
    asked: Sequence[MetricName] | None, candidates: Sequence[Candidate], usual: Sequence[MetricName]
) -> tuple[MetricName, ...]:
    """The metrics of an evaluation, requested or default.

    Args:
        asked: the names; None for none.
        candidates: what is evaluated.
        usual: the metrics of text models.

    Raises:
        RequestError: ranking metrics for text models, or other metrics for retrieval models.
    """
    from luthier.ml.evaluation.metrics.registry import needs_of
    from luthier.ml.planning.defaults import LABEL_METRICS, NUMBER_METRICS, SEARCH_METRICS

    searches = search_kind(candidates) is not None
    if asked is None and searches:
        return SEARCH_METRICS[0]
    if asked is None:
        judged = task_head_in(candidates[-1].adapter_path or candidates[-1].model_path)
        if judged is None or not judged.has_one_answer:
            return tuple(usual)
        return NUMBER_METRICS[0] if judged.kind == "regress" else LABEL_METRICS[0]
    if wrong := [name for name in asked if (needs_of([name]) == {"ranking"}) != searches]:
        raise RequestError(
            f"{', '.join(wrong)} requested, and {'a' if searches else 'no'} model here searches documents",
            expected=f"some of {', '.join(SEARCH_METRICS[0])}" if searches else "metrics of answers or likelihoods",
            do="name no metrics to have the usual ones",
        )
    return tuple(asked)


def search_systems(
    kind: TaskHeadKind,
    candidates: Sequence[Candidate],
    pool: EnginePool,
    held_out: Sequence[Example],
    train: Sequence[Example],
) -> JudgedSystems:
    """The candidates, the last one being evaluated, with baselines before it.

    Args:
        kind: kind of retrieval evaluation (`search_kind`).
        candidates: models, at least one of them for retrieval; those with examples in their prompt are skipped.
        pool: opens their engines, including those of task heads.
        held_out: the rows that are evaluated.
        train: the training rows of the evaluated model, if known.

    Raises:
        RequestError: the rows have another form, or a candidate is a classifier or regressor.
    """
    from luthier.ml.baselines.search import search_baselines
    from luthier.ml.evaluation.retrieval import search_task

    task = search_task(kind, held_out, train)
    systems = [_system(one, pool, task) for one in candidates if not one.is_prompted]
    baselines, left_out = search_baselines(task, train, systems[-1])
    systems[-1:-1] = baselines
    unread = (_note_of_base(one) for one in candidates if not one.is_prompted)
    notes = (*task.notes, *dict.fromkeys(note for note in unread if note is not None))
    return JudgedSystems(tuple(systems), notes, tuple(left_out))


def _note_of_base(candidate: Candidate) -> str | None:
    """What is said where the files of a base model describe vectors that are not computed here."""
    from luthier.ml.inference.models.own_embedding import own_embedding

    if task_head_in(candidate.adapter_path or candidate.model_path) is None:
        try:
            own_embedding(candidate.model_path)
        except ModelSourceError as error:
            return f"{candidate.name}: {error.came}; compared by the mean of its states"
    return None


def _system(candidate: Candidate, pool: EnginePool, task: SearchTask) -> SystemUnderTest:
    from luthier.ml.evaluation.systems import SystemUnderTest

    head = task_head_in(candidate.adapter_path or candidate.model_path)
    if head is not None and head.kind not in SEARCH_KINDS:
        raise RequestError(
            f"{candidate.name} has a head of kind {head.kind}, which orders no documents",
            expected="a base model, or a run with objective embed or rank",
            do="evaluate it on its own rows: luthier eval RUN --data FILE",
        )

    def rank(progress: Progress) -> Sequence[Ranked]:
        from luthier.ml.evaluation.retrieval import ranked

        model = _task_model(candidate, pool)
        scores = (
            _relevance(model, task, progress) if model.head.kind == "rank" else _similarities(model, task, progress)
        )
        return ranked(task, scores, name=candidate.name)

    references = tuple(task.documents[min(right)] for right in task.right)
    return SystemUnderTest(
        name=candidate.name,
        kind="model" if head is None else "head",
        model=candidate.model_name,
        adapter=candidate.adapter_path,
        num_few_shot=0,
        engine=pool.engine(candidate),
        prompts=tuple(Prompt(text=query, max_new_tokens=1) for query in task.queries),
        references=references,
        row_ids=task.row_ids,
        prompt_texts=task.queries,
        tokenised=(),
        num_bytes=(),
        rank=rank,
    )


def _task_model(candidate: Candidate, pool: EnginePool) -> TaskModel:
    """The candidate's head; for a base model the vectors that its files describe, else the mean of its states."""
    from luthier.ml.inference.models.architecture import text_config
    from luthier.ml.inference.models.own_embedding import OwnEmbedding, own_embedding, own_ending
    from luthier.ml.inference.task_model import TaskAnswers, TaskModel

    loaded = pool.load_own(candidate)
    if isinstance(loaded, TaskAnswers):
        return loaded.model
    engine = cast("TransformersEngine", loaded)
    width = int(text_config(engine.causal.config).hidden_size)
    try:
        own = own_embedding(candidate.model_path) or OwnEmbedding(pooling="mean")
    except ModelSourceError:  # what `_note_of_base` says
        own = OwnEmbedding(pooling="mean")
    head = TaskHead(
        kind="embed",
        width=width,
        pooling=own.pooling,
        query_prompt=own.query_prompt,
        document_prompt=own.document_prompt,
        end_text=own_ending(engine.template.tokenizer),
        max_tokens=own.max_tokens,
    )
    return TaskModel(engine, head, None)


def _similarities(model: TaskModel, task: SearchTask, progress: Progress) -> list[Array]:
    """Cosine similarities of each query with its documents."""
    from torch.nn.functional import normalize

    # Vectors of a model that was published without normalisation have another length than 1.
    queries = normalize(model.vectors(task.queries, progress, is_query=True), dim=-1)
    documents = normalize(model.vectors(task.documents, progress), dim=-1)
    found: list[Array] = []
    for start in range(0, len(queries), _SCORED_AT_ONCE):
        # In float64: similarities may differ only in their last digits.
        block = (queries[start : start + _SCORED_AT_ONCE].double() @ documents.double().t()).numpy()
        found += [own[list(task.of(start + number))] for number, own in enumerate(block)]
    return found


def _relevance(model: TaskModel, task: SearchTask, progress: Progress) -> list[Array]:
    """The scores of a reranker for each query with its documents; all pairs together, so that they share batches."""
    pairs = [(query, task.documents[place]) for number, query in enumerate(task.queries) for place in task.of(number)]
    scores = model.relevance(pairs, progress).double().numpy()
    found: list[Array] = []
    start = 0
    for number in range(len(task.queries)):
        size = len(task.of(number))
        found.append(scores[start : start + size])
        start += size
    return found


class JudgedHeads:
    """Opens the engines of candidates, and keeps the outputs of task heads after their models are closed.

    Args:
        stop: asked between batches; a reason ends the evaluation with StoppedError.
        num_workers: as for `open_engine`.
        stored_answers: where generated answers are stored as they come; None stores none.
        shares: the home whose server writes texts with a model that it has in memory; None never asks it. Likelihoods
            and hidden states are those of its own engine.

    Attributes:
        max_workers: the most processes that compute batches of an engine so far; None before the first one is open.
    """

    def __init__(
        self,
        stop: StopCheck | None,
        num_workers: int | None = None,
        stored_answers: AnswerFile | None = None,
        shares: Context | None = None,
    ) -> None:
        self._stop, self._num_workers, self._stored_answers, self._shares = stop, num_workers, stored_answers, shares
        self._heads: dict[str, TaskAnswers] = {}
        self.max_workers: int | None = None

    def open(self, candidate: Candidate) -> Engine:
        """The engine of a candidate."""
        return self._shared(candidate, None)

    def over_base(self, candidate: Candidate, base: Engine) -> Engine:
        """The engine of a candidate, made of that of its base, which is closed."""
        loaded = base.take_own() if isinstance(base, SharedEngine) else base
        if loaded is None:  # the server has written all texts of the base
            return self.open(candidate)
        made = judged_over_base(candidate, cast("TransformersEngine", loaded), stop=self._stop)
        return self._shared(candidate, self._known(candidate, made))

    def _shared(self, candidate: Candidate, own: TransformersEngine | TaskAnswers | None) -> Engine:
        """The engine of a candidate, whose texts the server may write, with the own one where it is loaded."""
        if self._shares is None or candidate.has_task_head:
            return self._own(candidate) if own is None else own
        kept = None if self._stored_answers is None else self._stored_answers.of_engine(answers_key(candidate))
        return SharedEngine(self._shares, candidate, lambda: self._own(candidate), stored_answers=kept, own=own)

    def _own(self, candidate: Candidate) -> TransformersEngine | TaskAnswers:
        return self._known(candidate, open_judged(candidate, stop=self._stop, num_workers=self._num_workers))

    def _known(
        self, candidate: Candidate, engine: TransformersEngine | TaskAnswers
    ) -> TransformersEngine | TaskAnswers:
        from luthier.ml.inference.transformers_engine import TransformersEngine

        if isinstance(engine, TransformersEngine):
            loaded = engine
            if self._stored_answers is not None:
                loaded.stored_answers = self._stored_answers.of_engine(answers_key(candidate))
        else:
            self._heads[candidate.name] = engine
            loaded = engine.model.engine
        self.max_workers = max(loaded.num_workers, self.max_workers or 0)
        return engine

    def with_figures(
        self, results: Sequence[SystemResult], examples: Sequence[Example], groups: RowGroups | None
    ) -> tuple[SystemResult, ...]:
        """The results; those of task heads include ranking metrics of probabilities, or errors of numbers."""
        return tuple(self._with_figure(result, examples, groups) for result in results)

    def _with_figure(self, result: SystemResult, examples: Sequence[Example], groups: RowGroups | None) -> SystemResult:
        from luthier.ml.data.tokenise.heads import class_matrix
        from luthier.ml.evaluation.task_head import absolute_error, area_under_curve

        head = self._heads.get(result.name)
        if head is None or head.model.head.kind not in ("classify", "regress"):
            return result
        references = [example.reference or "" for example in examples]
        clusters = None if groups is None else groups.clusters([example.id for example in examples])
        if head.probabilities is not None:
            own = class_matrix(references, head.model.head)
            name, figure = "auroc", area_under_curve(head.probabilities.double().numpy(), own, clusters)
        else:
            outputs = [sample.output for sample in result.samples]
            marks = marks_of(head.model.head.number_format)
            name, figure = "absolute_error", absolute_error(outputs, references, marks, clusters)
        return result if figure is None else result.model_copy(update={"metrics": result.metrics | {name: figure}})


def measure_kl(
    pool: EnginePool,
    candidates: Sequence[Candidate],
    systems: Sequence[SystemUnderTest],
    progress: Progress,
    groups: RowGroups | None = None,
) -> tuple[KlToBase | None, tuple[str, ...]]:
    """KL(tuned || base) of the last candidate, or why it is unknown; empty if its base is not evaluated.

    Takes one pass of each model over the evaluated rows. The tuned model, evaluated last, is still loaded; without its
    adapter it is the base. Only where it cannot be used so, the base is loaded once more.

    Args:
        pool: the engines of the candidates.
        candidates: the last one is the evaluated model.
        systems: the evaluated systems, each candidate by its index, the evaluated model last.
        progress: shows both passes.
        groups: of the evaluated rows; None where every row counts by itself.

    Raises:
        StoppedError: the engines' stop check has a reason.
    """
    from luthier.ml.evaluation.kl_to_base import kl_by_row, kl_result, rows_that_fit
    from luthier.ml.inference.models.merging import without_adapter

    tuned = candidates[-1]
    place = next((at for at, one in enumerate(candidates[:-1]) if _is_base_of(one, tuned)), None)
    rows = systems[-1].tokenised
    if place is None or tuned.has_task_head or not any(row.num_trained_tokens for row in rows):
        return None, ()
    if [row.input_ids for row in systems[place].tokenised] != [row.input_ids for row in rows]:
        return None, (_why_not(candidates[place], "the two write the same rows as other tokens"),)
    # In the precision of the tuned model: otherwise the result would include rounding.
    base = replace(candidates[place], precision=tuned.precision, device=tuned.device, quantisation=tuned.quantisation)
    try:
        engine = pool.load_for_states(tuned)
        head = engine.head()
        used = [rows[at] for at in rows_that_fit(rows, head.shape[1], head.element_size())]
        own, of_base = _states(engine, used, tuned.name, progress), None
        with without_adapter(engine.causal) as is_base:
            if is_base and tuned.model_path == base.model_path:
                of_base = _states(engine, used, base.name, progress)
        if of_base is None:
            of_base = _states(pool.load_for_states(base), used, base.name, progress)
    except RequestError as error:
        return None, (_why_not(base, error.came),)
    sums = kl_by_row(own, of_base, tuned.device)
    clusters = None if groups is None else groups.clusters([row.id for row in used])
    return kl_result(sums, used, tuned=tuned.name, base=base.name, of=len(rows), clusters=clusters), ()


def _states(engine: StatesEngine, rows: Sequence[TokenisedExample], name: str, progress: Progress) -> AnswerStates:
    from luthier.ml.evaluation.kl_to_base import answer_states

    with progress.task("Distance to the base", len(rows), "rows") as task:
        task.note(name)
        return answer_states(engine, rows, task)


def _is_base_of(one: Candidate, tuned: Candidate) -> bool:
    """Whether a candidate is the base of the other, without examples in its prompt."""
    # Another run that fully fine-tuned the same model, or a checkpoint of one, has no adapter either.
    is_plain = one.adapter_path is None and not one.is_prompted and not is_trained_name(one.name)
    return is_plain and one.model_name == tuned.model_name and engine_key(one) != engine_key(tuned)


def _why_not(base: Candidate, reason: str) -> str:
    return f"How far it moved from {base.name} on these prompts was not measured: {reason}"
