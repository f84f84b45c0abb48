"""Checks that need neither torch nor weights: names in a recipe, the column map, and what rows can be evaluated by.

A typo is reported within a second or two; checks that need rows and weights follow where these are read. Nothing that
is certain to fail at the evaluation is trained for hours first. The column map is the given one, else the run's own
(`data.columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from luthier.core.data_sources import SourcePlan, check_remote, is_pattern, is_remote
from luthier.core.dataset import Example, Row, TokenisedExample, reading_notes
from luthier.core.errors import OverlongError, RecipeError, RequestError
from luthier.core.evaluation_plan import SHARES_OF_CORRECT, Bar, GoodEnoughRecipe, MetricName
from luthier.core.ids import is_id
from luthier.core.recipe import Recipe
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.evaluation.metrics.classification import MacroF1
    from luthier.ml.inference.models.structure import Structure


def check_names(recipe: Recipe, base_dir: Path, before: Sequence[SourcePlan] = ()) -> None:
    """Check the base model's name and every data file that a recipe names.

    Args:
        recipe: of which relative paths count from `base_dir`.
        base_dir: its folder.
        before: sources of the plan of a run that is resumed: of patterns no other files are read.

    Raises:
        NotFoundError: no model of that name, or no such file; the nearest are named.
        RequestError: a malformed name of a model or of a remote source.
        DataError: a file whose name or content is of no known format.
        RecipeError: answers are to be joined for an objective that has no use for it.
    """
    from luthier.ml.data.files.patterns import files_by_name, matching_files
    from luthier.ml.data.files.source import open_source
    from luthier.ml.inference.models import catalog

    check_reset_template(recipe)
    check_task_head(recipe)
    catalog.parse(recipe.base_model)
    listed = {one.path: [file.name for file in one.files] for one in before}
    for path in recipe.data.files().values():
        if is_remote(path):
            check_remote(path)
        elif is_pattern(path):
            found = matching_files(base_dir / path)
            # What came later may still be written; that a file is gone is said where the rows are read.
            for file, shown in files_by_name(found, listed[path]) if listed.get(path) else found:
                open_source(file, shown_name=shown)
        else:
            open_source(base_dir / path)


def check_modules(recipe: Recipe, structure: Structure) -> None:
    """Check the names of matrices against the model's, before rows are tokenised.

    Raises:
        RecipeError: a name that matches no matrix of the model; the nearest are named.
    """
    from luthier.ml.planning.adapter import resolve_modules_to_save, resolve_targets

    method = recipe.method
    if method is None or method.name == "full":
        return
    targets = () if method.targets is None else resolve_targets(structure, method.targets)
    resolve_modules_to_save(structure, method.modules_to_save, targets)


def check_reset_template(recipe: Recipe) -> None:
    """Raise RecipeError where answers are to be joined and the objective learns none of the rows' own, or no turns."""
    from luthier.ml.training.objectives.rules import rules_of

    if recipe.data.reset_template is None or recipe.objective is None:
        return
    rules = rules_of(recipe.objective.name)
    if not rules.packs and "num_samples" not in rules.settings:
        return
    why = "learns plain text, which has no turns" if rules.packs else "draws its answers to the prompts of inference"
    raise RecipeError(
        f"data.reset_template: {recipe.data.reset_template} with objective {recipe.objective.name}, which {why}",
        expected="an objective that learns the answers of conversations, such as sft",
        do="remove data.reset_template: it would change nothing",
    )


def check_task_head(recipe: Recipe) -> None:
    """Raise RecipeError for settings that a model with a task head in place of text has no use for."""
    from luthier.ml.evaluation.metrics.registry import load_metrics
    from luthier.ml.training.objectives.rules import rules_of

    if recipe.objective is None or rules_of(recipe.objective.name).task_head is None:
        return
    data, metrics = recipe.data, (recipe.evaluation.metrics if recipe.evaluation else None) or ()
    written = [metric.name for metric in load_metrics(metrics) if metric.needs in ("text", "ranking")]
    for came, is_there in (
        ("data.replay", data.replay is not None),
        ("data.canaries", data.canaries is not None),
        ("data.reset_template", data.reset_template is not None),
        ("data.learn_reasoning", data.learn_reasoning is not None),
        (f"evaluation.metrics {', '.join(metrics)}", bool(metrics) and not written),
    ):
        if is_there:
            raise RecipeError(
                f"{came} with objective {recipe.objective.name}: its model has a head and writes no text",
                expected="settings of rows with one label, number or text each, and metrics of whole answers",
                do=f"remove {came.split()[0]}, or choose objective: {{name: sft}}",
            )


_ROWS_READ: Final = 50


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """field of the shape -> column of the file, None for the file's own names; note: where it comes from, if not asked.

    The note is empty where nothing was decided.
    """

    mapping: dict[str, str] | None
    note: str = ""


def column_map(context: Context, systems: Sequence[str], file: Path, asked: Mapping[str, str] | None) -> ColumnMap:
    """The map to read a file by.

    Args:
        context: of the home.
        systems: ids of runs, of which the first with a map decides; other names have none.
        file: that is read.
        asked: the given map; None or empty for none.

    Raises:
        NotFoundError: an unknown run or file.
        DataError: a file that cannot be read.
    """
    if asked:
        return ColumnMap(dict(asked))
    for name in systems:
        mapping = context.runs.plan(name).recipe.data.map if is_id(name, "run") else None
        if mapping:
            found = map_that_fits(mapping, file, f"the column map of {name}")
            with context.progress.task(f"columns of {file.name}", 1, "file") as task:
                task.note(found.note)
                task.advance()
            return found
    return ColumnMap(None)


def load_mapped(
    context: Context, systems: Sequence[str], file: Path, asked: Mapping[str, str] | None
) -> tuple[LoadedFile, tuple[str, ...]]:
    """A file read by the map of `column_map`, and what a person should know of how it was read.

    Args:
        context: of the home.
        systems: as for `column_map`.
        file: that is read.
        asked: the given map; None or empty for none.

    Raises:
        NotFoundError: No such run or file.
        DataError: A file that cannot be read, or wrong rows in it.
    """
    from luthier.ml.data.rows.formats import load_file

    found = column_map(context, systems, file, asked)
    loaded = load_file(file, mapping=found.mapping)
    own = (found.note,) if found.note else ()
    return loaded, (*own, *reading_notes([(str(file), loaded.shape_reason)]))


def map_of_runs(context: Context, run_ids: Sequence[str]) -> dict[str, str] | None:
    """The column map of the first of these runs that has one.

    Raises:
        NotFoundError: an unknown run.
    """
    maps = (context.runs.plan(run_id).recipe.data.map for run_id in run_ids)
    return next((dict(one) for one in maps if one), None)


def map_that_fits(mapping: Mapping[str, str], file: Path, whose: str) -> ColumnMap:
    """A map where the first rows of a file have its columns; else none, and the note states it."""
    from luthier.ml.data.rows.columns import columns_like

    columns = first_columns(file)
    fits = {name: column for name, column in mapping.items() if columns_like(column, columns)}
    shown = ", ".join(f"{name} = {column}" for name, column in mapping.items())
    # `group` only matters for splitting, so a file without it can still be read.
    if fits.keys() | {"group"} == mapping.keys() | {"group"}:
        return ColumnMap(fits, f"{file.name} is read by {whose} ({shown}); --map reads it otherwise")
    return ColumnMap(None, f"{file.name} is read by its own column names: it lacks some of {whose} ({shown})")


def first_columns(file: Path) -> list[str]:
    """The names of the fields of a file's first rows.

    Raises:
        NotFoundError: there is no such file.
        DataError: the file as a whole cannot be read.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    rows = islice(read_rows(open_source(file)), _ROWS_READ)
    return list(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.fields))


_MARKS = {True: "wanted", False: "not wanted"}


def have_text_answers(examples: Sequence[Example]) -> bool:
    """Whether outputs can be compared with the rows: each has a prompt and an answer as text."""
    return all(example.prompt is not None and example.reference is not None for example in examples)


def are_pairs(examples: Sequence[Example]) -> bool:
    """Whether all rows are preference pairs, so that it can be asked which side a model finds likelier."""
    return all(example.rejected is not None for example in examples)


def are_seen_by_rouge(examples: Sequence[Example]) -> bool:
    """Whether ROUGE sees most letters of the rows' answers: it knows a-z and digits alone."""
    from luthier.ml.evaluation.metrics.scripts import NUM_LOOKED_AT, is_seen_by_rouge

    # One row after the other: rows may be in files, of which a block is read at a time.
    some = islice(examples, 0, None, max(1, len(examples) // NUM_LOOKED_AT))
    return is_seen_by_rouge([example.reference or "" for example in some])


def usual_metrics(examples: Sequence[Example]) -> tuple[MetricName, ...]:
    """The default metrics: text and likelihood, or likelihood alone (see have_text_answers).

    Of preference pairs, which side is likelier; of answers that ROUGE does not see, chrF in its place.
    """
    from luthier.ml.planning import defaults

    if are_pairs(examples):
        return defaults.PREFERENCE_METRICS[0]
    if not have_text_answers(examples):
        return defaults.LIKELIHOOD_METRICS[0]
    return (defaults.METRICS if are_seen_by_rouge(examples) else defaults.OTHER_SCRIPT_METRICS)[0]


def check_metrics(metrics: Sequence[MetricName], examples: Sequence[Example]) -> None:
    """Unpaired rows cannot be evaluated at all: an answer that is marked as undesired is no reference.

    Raises:
        RequestError: metrics that look at what the rows do not have, naming the first such row.
    """
    from luthier.ml.evaluation.metrics.registry import load_metrics

    if (unpaired := next((e for e in examples if e.is_wanted is not None), None)) is not None:
        raise RequestError(
            f"held-out rows such as {unpaired.id}, a single answer marked as {_MARKS[bool(unpaired.is_wanted)]}",
            expected="preference pairs (chosen and rejected), or rows with good answers only",
            do="name a file of pairs as data.held_out; data.validation takes unpaired rows",
        )
    paired = sorted({m for m in metrics if any(d.needs == "pairs" for d in load_metrics([m]))})
    if paired and (single := next((e for e in examples if e.rejected is None), None)) is not None:
        raise RequestError(
            f"{', '.join(paired)} requested, but {single.id} has no rejected side",
            expected="held-out rows that are preference pairs",
            do="choose other metrics, or evaluate on pairs",
        )
    without = next((e for e in examples if e.prompt is None or e.reference is None), None)
    refused = sorted({m for m in metrics if any(d.needs == "text" for d in load_metrics([m]))})
    if without is None or not refused:
        return
    kind = "plain text" if without.conversation is None else "a row whose answer is only tool calls"
    raise RequestError(
        f"{', '.join(refused)} requested, but {without.id} is {kind}",
        expected="held-out rows with a prompt and an answer as text, or metrics of likelihood only",
        do="choose perplexity and bits_per_byte, or name no metrics",
    )


def good_enough_of(given: object) -> GoodEnoughRecipe | None:
    """The requirement, from a number or a mapping as in a recipe; None stays None.

    Raises:
        RequestError: it is neither, or there is no number in it.
    """
    if given is None:
        return None
    try:
        return GoodEnoughRecipe.model_validate(given)
    except ValidationError:
        raise RequestError(
            f"good_enough={given!r}",
            expected="a number, or a mapping with value, agreement or two costs and, where you like, metric",
            do='write for example: good_enough=0.9, good_enough={"metric": "label_accuracy", "value": 0.9}, or '
            'good_enough={"agreement": "second_label"}',
        ) from None


def resolve_bar(
    asked: GoodEnoughRecipe | None,
    metrics: Sequence[MetricName],
    examples: Sequence[Example],
    train: Sequence[Example],
    *,
    file: Path | None = None,
) -> Bar | None:
    """What a system has to reach on these rows to be good enough, with its metric named; None without a requirement.

    Args:
        asked: the requirement; without a metric it is about the one that the verdict rests on.
        metrics: what is measured.
        examples: the rows that are evaluated.
        train: the rows that were trained on, if they are known.
        file: the file of the evaluated rows, for a bar that is the agreement of two people.

    Raises:
        RequestError: the metric is not measured, its figure cannot be the value, or too few rows have two answers.
    """
    if asked is None:
        return None
    from luthier.ml.evaluation.metrics.registry import as_definitions, bounds_of
    from luthier.ml.evaluation.verdict import primary_metric

    measured = {one.name: one for one in as_definitions([*metrics, *label_metrics(metrics, examples, train)])}
    name = asked.metric or primary_metric(metrics, [example.reference for example in examples])
    if name not in measured:
        needs_labels = "; macro_f1 is measured where all answers are labels" if name == "macro_f1" else ""
        raise RequestError(
            f"good_enough requires {asked.wanted} by {name}, which is not measured here",
            expected=f"one of {', '.join(measured)}{needs_labels}",
            do="name one of these, or add the metric to evaluation.metrics (--metrics)",
        )
    if asked.value is None:
        return _bar_of_people(asked, name, examples, file)
    bounds = bounds_of(measured[name])
    if not bounds.hold(asked.value):
        is_percent = (bounds.lower, bounds.upper) == (0.0, 1.0) and 1 < asked.value <= 100
        raise RequestError(
            f"good_enough requires {asked.value:g} by {name}",
            expected=f"a figure that it can have: {bounds.lower:g} to {bounds.upper:g}",
            do=f"write {asked.value / 100:g} for {asked.value:g}%" if is_percent else "correct the value",
        )
    return Bar(metric=name, value=asked.value)


_MIN_TWICE: Final = 20
"""Rows with two answers below which their agreement says little."""


def _bar_of_people(asked: GoodEnoughRecipe, metric: str, examples: Sequence[Example], file: Path | None) -> Bar:
    """The share of rows on which two people agree, as a bar.

    Raises:
        RequestError: the metric is no accuracy, the file has no such column, or fewer than 20 rows have two answers.
    """
    from luthier.ml.evaluation.verdict import bar_of_agreement

    column = asked.agreement or ""
    if metric not in SHARES_OF_CORRECT:
        raise RequestError(
            f"good_enough requires {asked.wanted} by {metric}",
            expected=f"a share of right answers: {', '.join(SHARES_OF_CORRECT)}",
            do="name one of these as good_enough.metric, and among the metrics",
        )
    agreed = agreed_rows(metric, column, examples, file)
    if len(agreed) < _MIN_TWICE:
        raise RequestError(
            f"good_enough requires {asked.wanted}, and {len(agreed)} of {len(examples)} evaluated rows have one there",
            expected=f"at least {_MIN_TWICE} rows with the answers of two people",
            do=f"fill in column {column}, or require a figure: good_enough: 0.9",
        )
    return bar_of_agreement(metric, column, agreed)


def agreed_rows(
    metric: str,
    column: str,
    examples: Sequence[Example],
    file: Path | None,
    canonical: Callable[[str], str] | None = None,
) -> dict[str, bool]:
    """Of the rows that have a second person's answer, by id, whether it agrees with the row's own.

    Args:
        metric: which answers are the same, as for those of a model.
        column: has the second person's answers.
        examples: the rows.
        file: that they were read from.
        canonical: the one form of an answer that can be written in several ways, such as a set of labels; None compares
            answers as they are written.

    Raises:
        RequestError: the file has no such column.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.columns import as_text, columns_like
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.evaluation.metrics.protocol import Observations
    from luthier.ml.evaluation.metrics.registry import as_definitions

    columns = first_columns(file) if file is not None else []
    like = columns_like(column, columns)
    if file is None or len(like) != 1:
        raise RequestError(
            f"good_enough.agreement: {column}, which {'no column' if not like else 'more than one column'} of the "
            "evaluated rows is called",
            expected=f"one of {', '.join(columns)}",
            do="name the column with a second person's answers",
        )
    given: dict[str, str] = {}
    for row in read_rows(open_source(file)):
        if isinstance(row, Row) and (found := row.fields.get(like[0])) is not None and str(found).strip():
            # As the own answers of the rows are read: true, and not True.
            given[row.id] = str(as_text(found)).strip()
    both = [(one.id, given[one.id], one.reference) for one in examples if one.id in given and one.reference is not None]
    if not both:
        return {}
    ids, second, own = zip(*both, strict=True)
    if canonical is not None:
        second, own = tuple(map(canonical, second)), tuple(map(canonical, own))
    right = as_definitions([metric])[0].statistics(Observations(outputs=second, references=own))[:, 0]
    return dict(zip(ids, (right == 1).tolist(), strict=True))


def label_metrics(
    metrics: Sequence[MetricName], examples: Sequence[Example], train: Sequence[Example]
) -> tuple[MacroF1, ...]:
    """Macro-F1, where answers are written and those of the rows are labels; else nothing.

    Args:
        metrics: what is measured anyway.
        examples: the rows that are evaluated.
        train: the rows that were trained on, if they are known.
    """
    from luthier.ml.evaluation.metrics.classification import Labelling, MacroF1, answer_labels
    from luthier.ml.evaluation.metrics.registry import load_metrics

    if not have_text_answers(examples) or all(metric.needs != "text" for metric in load_metrics(metrics)):
        return ()
    references, training = ([one.reference for one in rows if one.reference is not None] for rows in (examples, train))
    labels = answer_labels(references, training)
    return (MacroF1(Labelling(labels)),) if labels else ()


def check_few_shot(num: int, pool: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Raises RequestError where the pool has too few rows to show, or the held-out rows have no place for them."""
    from luthier.ml.evaluation.few_shot import choose_shots

    plain = next((e for e in held_out if e.conversation is None), None)
    if num and plain is not None:
        raise RequestError(
            f"{num} few-shot examples requested, but {plain.id} is plain text",
            expected="held-out rows with a prompt to put examples before",
            do="leave few-shot examples out for plain text",
        )
    choose_shots(pool, num, seed=0, held_out=held_out)


def check_lengths(examples: Sequence[TokenisedExample], context_length_tokens: int, *, model: str) -> None:
    """Raises OverlongError for held-out rows that the model cannot see whole."""
    too_long = [e for e in examples if e.num_tokens > context_length_tokens]
    if not too_long:
        return
    from luthier.ml.data.files.bad_field import problem_of

    reason = f"is longer than the context of {context_length_tokens:,} tokens"
    raise OverlongError(
        f"{len(too_long):,} of {len(examples):,} held-out rows do not fit into the context of {model}",
        expected=f"at most {context_length_tokens:,} tokens a row",
        do="remove these rows, or evaluate models with a longer context",
        problems=[problem_of(e.id, value=f"{e.num_tokens:,} tokens", reason=reason) for e in too_long],
    )
