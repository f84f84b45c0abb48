"""The rows of a distillation, and the evaluation of teacher, student before and student after on the same rows.

Gold answers, held-out rows and teacher answers are written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import Example
from luthier.core.errors import DataError, LeakageError, OverlongError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.evaluation_plan import EvaluationRecipe, MetricName
from luthier.core.ports import Generation, Progress, Prompt
from luthier.core.workflows.pipeline import ALONE, TAUGHT, TEACHER
from luthier.features.evaluations.evaluated_rows import BY_PROVENANCE, group_names, groups_of, notes_on
from luthier.features.generation.engines import EnginePool, find_teacher, is_address
from luthier.features.models.resolve import find_candidate, open_engine, system_under_test
from luthier.features.recipes.checks import check_metrics, usual_metrics
from luthier.ml.evaluation.sampling import choose_samples
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import TimedOutcome

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.core.ports import Score
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.engine_wrappers import CachedEngine

_TRAIN, _HELD_OUT, _ANSWERS, _GOLD = "train.jsonl", "held_out.jsonl", "answers.jsonl", "gold.jsonl"
_GROUP = "group"
"""The field of a held-out row with what keeps it together with others, such as its document."""


class StudentRows(TimedOutcome):
    """Files of chat rows in the same order.

    Attributes:
        taught: Rows for the distilled student.
        gold: Rows for the other student.
        held_out: Rows for the evaluation.
        num_rows: Rows in each of the first two.
        num_refused: Rows with an unusable teacher answer, in neither.
    """

    taught: Path = Path()
    gold: Path = Path()
    held_out: Path = Path()
    num_rows: int = 0
    num_refused: int = 0

    def lines(self) -> Sequence[str]:
        """The number of training rows."""
        return [f"{self.num_rows:,} rows learned, {self.num_refused:,} left out"] if self.num_rows else []


def write_gold(
    folder: Path, data: Path, held_out: Path | float, *, mapping: Mapping[str, str] | None, seed: int
) -> tuple[int, int, int]:
    """Write the gold training rows and the held-out rows; existing files are kept.

    Only the last answer of a row is learned, as with teacher answers.

    Args:
        folder: Of the workflow.
        data: The file of gold rows.
        held_out: A file, or the fraction of rows to hold out, drawn by a stable hash so that equal texts, and rows of
            one document, stay together.
        mapping: Field of the shape -> column.
        seed: Of the fraction.

    Returns:
        The numbers of training rows, held-out rows, and held-out rows with the prompt of a training row.

    Raises:
        RequestError: The fraction is not between 0 and 1.
        DataError: A row has no prompt or no answer.
        LeakageError: A held-out row is a training row.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.rows.outputs import write_rows
    from luthier.ml.data.split.own_groups import own_group_of_file
    from luthier.ml.data.split.split import leaked_ids, split_by_fraction

    if isinstance(held_out, float) and not 0 < held_out < 1:
        raise RequestError(
            f"held-out fraction {held_out:g}", expected="more than 0 and less than 1, or a file", do="try 0.2"
        )
    fields = dict(mapping) if mapping else None
    group_by = own_group_of_file(data, fields, held_out=held_out, seed=seed) if isinstance(held_out, float) else None
    examples: Sequence[Example] = load_file(data, mapping=fields, group_by=group_by).examples
    if isinstance(held_out, float):
        parts = split_by_fraction(
            examples, validation=0.0, held_out=held_out, seed=seed, joins_equal=group_by is not None
        )
        examples, judging = parts["train"], parts["held_out"]
    else:
        judging = load_file(held_out, mapping=fields).examples
    found = leaked_ids(examples, judging)
    if found.exact:
        raise LeakageError(
            f"{len(found.exact):,} of {len(judging):,} held-out rows are among the training rows",
            expected="rows that no student was trained on",
            do="take them out, or have the rows split: --held-out 0.2",
            problems=found.exact,
        )
    groups = group_names(judging, data if isinstance(held_out, float) else held_out, BY_PROVENANCE)
    train_rows, held_out_rows = _gold_rows(examples), _gold_rows(judging)
    with_groups = [
        row | ({_GROUP: groups[example.id]} if example.id in groups else {})
        for example, row in zip(judging, held_out_rows, strict=True)
    ]
    # Read and checked at every resume, but written once: training rows must not change.
    for name, rows in ((_TRAIN, train_rows), (_HELD_OUT, with_groups)):
        if not (folder / name).exists():
            write_rows(rows, folder / name)
    return len(examples), len(judging), len(found.same_prompt)


def write_taught(
    context: Context,
    folder: Path,
    *,
    teacher: str | None,
    max_new_tokens: int,
    num_rows: int,
    uses_batch_api: bool = False,
) -> StudentRows:
    """Generate the teacher's answers to the training prompts, and drop rows without an answer from both files.

    Args:
        context: The home.
        folder: Folder of the distillation.
        teacher: None if it gives logits instead of answers: both students then learn the gold rows.
        max_new_tokens: Limit of an answer.
        num_rows: Gold training rows.
        uses_batch_api: Whether the teacher, behind a server, answers by OpenAI's Batch API.

    Raises:
        DataError: No answer could be used.
        WorkError: The teacher did not answer.
    """
    from luthier.features.datasets.answers import answer
    from luthier.ml.data.rows.outputs import write_rows

    train, held_out = folder / _TRAIN, folder / _HELD_OUT
    if teacher is None:
        return StudentRows(taught=train, gold=train, held_out=held_out, num_rows=num_rows, num_refused=0)
    answers, gold = folder / _ANSWERS, folder / _GOLD
    if not gold.exists():
        answer(
            context,
            train,
            teacher=teacher,
            output=answers,
            max_new_tokens=max_new_tokens,
            force=True,
            uses_batch_api=uses_batch_api,
        )
        # `source_row` is FILE:LINE with lines from 1, so the enumeration is from 1 below.
        answered = {int(row["provenance"]["source_row"].rpartition(":")[2]) for row in _read(answers)}
        rows = (row for number, row in enumerate(_read(train), start=1) if number in answered)
        write_rows(rows, gold)  # last: if it exists, so do the answers
    num_kept = len(_read(gold))
    refused = num_rows - num_kept
    return StudentRows(taught=answers, gold=gold, held_out=held_out, num_rows=num_kept, num_refused=refused)


def _gold_rows(examples: Sequence[Example]) -> list[dict[str, Any]]:
    from luthier.ml.data.files.bad_field import BadFieldError, problem_of
    from luthier.ml.data.rows.answer_prompts import gold_row

    rows, problems = [], []
    for example in examples:
        try:
            rows.append(gold_row(example))
        except BadFieldError as error:
            problems.append(problem_of(example.id, value="", reason=f"{error.field} {error.reason}"))
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(examples):,} rows have no prompt with a text answer",
            expected="rows with both: the student without a teacher learns these answers, and all three are evaluated "
            "by those of the held-out rows",
            do="give prompt and completion, or messages that end with the assistant's; or map the fields: "
            "--map completion=COLUMN",
            problems=problems,
        )
    return rows


def _read(file: Path) -> list[dict[str, Any]]:
    # Not splitlines: it also splits at U+2028 and U+0085, which JSON leaves unescaped inside a text.
    with file.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def judge_students(
    context: Context,
    *,
    teacher: str,
    alone: str,
    taught: str,
    held_out: Path,
    num_same_prompt: int,
    asked: EvaluationRecipe | None,
    evaluation_id: str,
) -> Evaluation:
    """Evaluate all three on the held-out rows, with paired intervals; the verdict is about taught against alone.

    A teacher behind a server gives no likelihoods, so all systems are then evaluated only by their text.

    Args:
        context: The home, where the evaluation is stored.
        teacher: A run, a model, or a model behind a server.
        alone: The run without the teacher.
        taught: The run with it.
        held_out: The held-out chat rows.
        num_same_prompt: Held-out rows with the prompt of a training row.
        asked: The recipe's metrics, max_new_tokens and max_samples; without max_new_tokens answers may be as long as
            the longest of the held-out rows, and a quarter more.
        evaluation_id: Id of the evaluation.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.evaluation.compare import judge, primary_metric, verdict
    from luthier.ml.evaluation.row_groups import with_groups
    from luthier.ml.inference.models.templates.thinking import limits_of

    start, loaded = time.perf_counter(), load_file(held_out)
    most = (asked.max_samples if asked else None) or loaded.num_rows
    examples = choose_samples(loaded.examples, most)
    # In tokens of the student, and the same limit for all: a server does not say how long its answers are in tokens.
    template = find_candidate(context, alone).chat_template()
    new_tokens, _ = limits_of(examples, template, asked.max_new_tokens if asked else None, None)
    metrics = find_metrics(asked, examples, teacher=teacher)
    groups = groups_of(examples, held_out, _GROUP)
    clusters = None if groups is None else groups.clusters([one.id for one in examples])
    with ExitStack() as stack:
        systems = _systems(context, ((TEACHER, teacher), (ALONE, alone), (TAUGHT, taught)), examples, new_tokens, stack)
        results, comparisons = judge(systems, metrics=metrics, seed=0, progress=context.progress, clusters=clusters)
    words = verdict(
        results,
        # The verdict is about the two students; a better teacher is expected.
        [c for c in comparisons if c.baseline != TEACHER],
        primary=primary_metric(metrics, [e.reference for e in examples]),
        candidate=TAUGHT,
        num_same_prompt=num_same_prompt,
        num_rows_in_file=loaded.num_rows,
    )
    evaluation = Evaluation(
        evaluation_id=evaluation_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=taught,
        held_out_file=str(held_out),
        held_out_sha256=loaded.sha256,
        num_rows=len(examples),
        num_rows_in_file=loaded.num_rows,
        systems=results,
        comparisons=comparisons,
        verdict=with_groups(words, groups),
        rows_notes=notes_on((), 0, words, groups),
        seconds=time.perf_counter() - start,
    )
    context.evaluations.save(evaluation)
    return evaluation


def _systems(
    context: Context,
    models: Sequence[tuple[str, str]],
    examples: Sequence[Example],
    new_tokens: int,
    stack: ExitStack,
) -> list[SystemUnderTest]:
    """The models by name; `stack` closes their resources. If one is behind a server, none is scored."""
    pool = stack.enter_context(closing(EnginePool(open_engine)))
    systems: list[SystemUnderTest] = []
    for name, model in models:
        if is_address(model):
            writer = stack.enter_context(closing(find_teacher(context, model)))
            systems.append(_behind_server(name, writer, examples, new_tokens))
            continue
        candidate = replace(find_candidate(context, model), name=name)
        systems.append(system_under_test(candidate, pool.engine(candidate), examples, new_tokens))
    if any(is_address(model) for _, model in models):
        # Without tokens nothing is scored: likelihoods of only some systems are not comparable.
        return [replace(system, tokenised=(), num_bytes=()) for system in systems]
    return systems


def find_metrics(
    asked: EvaluationRecipe | None, examples: Sequence[Example], *, teacher: str
) -> tuple[MetricName, ...]:
    """The metrics of the recipe, or the usual ones; for a teacher behind a server only text metrics.

    Raises RequestError if the recipe then names others, or metrics that do not suit the rows.
    """
    from luthier.ml.evaluation.metrics.registry import load_metrics

    named = asked.metrics if asked else None
    metrics = named or usual_metrics(examples)
    check_metrics(metrics, examples)
    if not is_address(teacher):
        return metrics
    texts: tuple[MetricName, ...] = tuple(m for m in metrics if all(d.needs == "text" for d in load_metrics([m])))
    # The default metrics are reduced to text metrics; explicitly named ones are rejected, since the user requires them.
    if not texts or (named is not None and texts != metrics):
        raise RequestError(
            f"evaluation.metrics {', '.join(metrics)}, and the teacher is behind a server, which gives no likelihoods",
            expected="metrics of what is written, such as exact_match, rouge, bleu or token_f1",
            do="ask for these alone, or name none",
        )
    return texts


class _Writer:
    """A teacher behind a server as an engine for evaluation: its outputs are stored in the home, like its answers."""

    def __init__(self, asked: CachedEngine) -> None:
        self._asked, self.name = asked, asked.name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One answer per prompt; a prompt over the context raises, as all are evaluated on the same rows."""
        found = self._asked.generate_each(prompts, progress)
        if (error := next((one for one in found if isinstance(one, OverlongError)), None)) is not None:
            raise error
        return [one for one in found if isinstance(one, Generation)]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """A server gives no likelihoods.

        Raises:
            RequestError: Always.
        """
        raise RequestError(f"{self.name} gives no likelihoods", expected="metrics of text", do="ask for these alone")

    def close(self) -> None:
        """Close the connection."""
        self._asked.close()


def _behind_server(name: str, writer: CachedEngine, examples: Sequence[Example], new_tokens: int) -> SystemUnderTest:
    from luthier.ml.evaluation.compare import SystemUnderTest

    return SystemUnderTest(
        name=name,
        model=writer.name,
        adapter=None,
        num_few_shot=0,
        engine=_Writer(writer),
        prompts=tuple(Prompt(conversation=e.prompt, max_new_tokens=new_tokens) for e in examples),
        references=tuple(e.reference or "" for e in examples),
        row_ids=tuple(e.id for e in examples),
        prompt_texts=tuple(
            "\n\n".join(m.content or "" for m in (e.prompt.messages if e.prompt else ())) for e in examples
        ),
        tokenised=(),
        num_bytes=(),
    )
