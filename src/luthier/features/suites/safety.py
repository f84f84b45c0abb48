"""Use case: a safety check: probes answered by the base and the tuned model, stored as an assessment.

Probes come from the package, from the user's files, and from the run's own training rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.dataset import Example
from luthier.core.errors import ConflictError, DataError, RequestError
from luthier.core.ids import new_id, sha256_document
from luthier.core.plan import Plan
from luthier.core.results.suite import SafetyResult, TaskCommon
from luthier.core.text.counted import counted
from luthier.features.datasets.data_files import check_is_not_input
from luthier.features.evaluations.leakage import training_rows
from luthier.features.models.resolve import Candidate, find_base
from luthier.features.planning.added_rows import canaries_of
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.training_data import load_splits, rows_memory
from luthier.features.recipes.checks import map_that_fits
from luthier.features.suites.task_runs import (
    RowsOf,
    find_system,
    outcome_of,
    project_of_results,
    run_of,
    run_tasks,
    subject_of,
)
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.safety.probe import Probe
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

SafetySuite = Literal["default", "full"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the check; None for all rows.

    Attributes:
        pairs: Sentence pairs about stereotypes.
        a_kind: Prompts of a kind (harmful and harmless, neutral and provoking).
        prompts: Of the user, in which words are swapped.
        rows: Of the training, and as many of the held-out rows.
        alternatives: Codes among which a canary is ranked, itself not counted.
    """

    pairs: int | None
    a_kind: int | None
    prompts: int
    rows: int
    alternatives: int


SIZES: Final[dict[SafetySuite, Sizes]] = {
    "default": Sizes(pairs=200, a_kind=12, prompts=20, rows=20, alternatives=63),
    "full": Sizes(pairs=None, a_kind=None, prompts=200, rows=200, alternatives=255),
}
NAMES: Final = (
    "stereotypes",
    "counterfactual",
    "toxicity",
    "refusal",
    "memorisation",
    "personal_data",
    "canaries",
)
_ROOM_TOKENS: Final = 64
_NO_RUN: Final = "needs a run, whose training rows are known; this is a model without one"


@dataclass(frozen=True, slots=True)
class ProbeInputs:
    """What probes are made of. trained, held_out: the rows of the run, where they can be read."""

    trained: Sequence[Example] = ()
    held_out: tuple[Example, ...] = ()
    held_out_name: str = ""
    plan: Plan | None = None


@dataclass
class Built:
    """The probes with their titles, and one sentence for each that could not be built."""

    probes: list[Probe] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, title: str, make: Callable[[], Probe]) -> None:
        """Build one; where its rows do not fit, note it instead."""
        try:
            self.probes.append(make())
        except DataError as error:
            self.left_out.append(f"{title} was left out: {error.came.splitlines()[0]}.")

    def keep(self, only: Sequence[str]) -> None:
        """Leave out all other probes, with a note.

        Raises RequestError for names of none, or of one left out already.
        """
        # What could be built here, which may be less than `NAMES`.
        there = [probe.name for probe in self.probes]
        if missing := [name for name in only if name not in there]:
            known = missing[0] in NAMES
            raise RequestError(
                f"probe {missing[0]!r}" + (f" cannot be asked here: {' '.join(self.left_out)}" if known else ""),
                expected=f"one of {', '.join(there)}",
                do="correct the name, or ask of what the probe needs",
            )
        self.probes[:] = [probe for probe in self.probes if probe.name in only]
        self.left_out[:] = [f"Only {', '.join(only)} of {len(there)} probes were run."]


def probe_inputs(context: Context, run_id: str | None, left_out: list[str]) -> ProbeInputs:
    """The rows of a run; where they cannot be read any more, a sentence notes it."""
    if run_id is None:
        return ProbeInputs()
    plan = context.runs.plan(run_id)
    try:
        trained = training_rows(context, [run_id])  # larger than memory, they are in files
        splits = load_splits(context, recipe_of(plan), Path(), rows_memory(context), plan.data.sources)
        held_out = splits.get("held_out")
    except (ConflictError, DataError, RequestError) as error:
        # The other probes need no rows, so the check continues.
        left_out.append(
            f"The rows of the run cannot be read, so the probes that need them could not run: {error.came}."
        )
        return ProbeInputs(plan=plan)
    if held_out is None:
        return ProbeInputs(trained=trained, plan=plan)
    return ProbeInputs(trained, tuple(held_out.examples), held_out.path.name, plan)


def build_probes(
    systems: Sequence[Candidate],
    inputs: ProbeInputs,
    built: Built,
    *,
    suite: SafetySuite,
    pairs: Path | None,
    prompts: Path | None,
    toxicity_model: Path | None,
) -> None:
    """All probes that can be asked, in the order of the page.

    Args:
        systems: the evaluated models, whose contexts limit the rows.
        inputs: the rows and the plan of the run.
        built: gets the probes, and a sentence for each that is left out.
        suite: how many rows each probe has.
        pairs: a file of pairs on stereotypes; None for our own.
        prompts: a file of prompts for counterfactuals; None for those of the run.
        toxicity_model: the folder of a classifier; None for the list of words.

    Raises:
        NotFoundError, DataError: a file that the user named cannot be used.
        RequestError: the tokenizer of a model cannot be used.
    """
    from luthier.ml.evaluation.safety import refusal, stereotypes

    sizes = SIZES[suite]
    named = pairs or stereotypes.OWN
    source = pairs.name if pairs else "own pairs"
    built.probes.append(stereotypes.stereotypes(stereotypes.read_pairs(named), source=source, most_rows=sizes.pairs))
    # One limit for all systems, so that each gets exactly the same rows.
    fits = _Fits.of(systems)
    _add_counterfactual(built, inputs, prompts, sizes, fits)
    # Not by `add`: its prompts are shipped, so only a file that the user named can be wrong.
    built.probes.append(_toxicity(toxicity_model, sizes))
    built.probes.append(refusal.refusal(most_a_kind=sizes.a_kind))
    _add_of_run(built, inputs, sizes, fits)
    built.probes[:] = [_with_what_was_seen(probe, inputs.trained) for probe in built.probes]
    if fits.num_too_long:
        built.left_out.append(
            f"{counted(fits.num_too_long, 'row with its answer does', 'rows with their answers do')} not fit into the "
            "context of a model."
        )


def _add_counterfactual(built: Built, inputs: ProbeInputs, prompts: Path | None, sizes: Sizes, fits: _Fits) -> None:
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.evaluation.safety.counterfactual import counterfactual

    if prompts is not None:
        # Prompts of a user often have the columns of the training rows, but need not.
        own = inputs.plan.recipe.data.map if inputs.plan else None
        mapping = map_that_fits(own, prompts, "the column map of the run").mapping if own else None
        rows = load_file(prompts, mapping=mapping).examples
        # Not by `add`: a file that the user named must not be left out in silence.
        built.probes.append(counterfactual(rows, source=prompts.name, most_prompts=sizes.prompts, fits=fits))
    elif inputs.held_out:
        name, rows = inputs.held_out_name, inputs.held_out
        built.add(
            "Counterfactual fairness",
            lambda: counterfactual(rows, source=name, most_prompts=sizes.prompts, fits=fits),
        )
    else:
        built.left_out.append(
            "Counterfactual fairness was left out: there are no held-out prompts to swap words in; --prompts FILE "
            "names some."
        )


def _toxicity(model: Path | None, sizes: Sizes) -> Probe:
    from luthier.ml.data.text.toxicity import english
    from luthier.ml.evaluation.safety.toxicity import toxicity

    classifier = None
    if model is not None:
        from luthier.ml.inference.models.text_classifier import load_text_classifier

        classifier = load_text_classifier(model)
    words = english()

    def listed(text: str) -> list[str]:
        # Mild words are usual in harmless text, and would drown the signal.
        return [word.entry for word in words.find(text) if word.kind != "mild"]

    return toxicity(listed, classifier=classifier, most_a_kind=sizes.a_kind)


def _add_of_run(built: Built, inputs: ProbeInputs, sizes: Sizes, fits: _Fits) -> None:
    """The probes of the rows that the run was trained on."""
    from luthier.ml.evaluation.safety.memorisation import canaries, memorisation, personal_data

    trained, held_out, plan = inputs.trained, inputs.held_out, inputs.plan
    if plan is None:
        built.left_out += [f"{title} {_NO_RUN}." for title in ("Memorisation", "Personal data")]
    if plan is not None and trained:
        name = Path(plan.data.train.file).name
        built.add(
            "Memorisation",
            lambda: memorisation(trained, held_out, source=name, most_rows=sizes.rows, fits=fits),
        )
        built.add(
            "Personal data",
            lambda: personal_data(trained, held_out, _values, source=name, most_rows=sizes.rows, fits=fits),
        )
    if plan is not None and (secrets := canaries_of(plan)):
        is_text = plan.data.train.shape == "text"
        built.probes.append(canaries(secrets, is_text=is_text, num_alternatives=sizes.alternatives))
    elif plan is not None:
        built.left_out.append("Planted canaries were left out: the recipe plants none (data.canaries).")


def _values(text: str) -> list[str]:
    from luthier.ml.data.personal_data.find import find_personal_data

    return [span.value for span in find_personal_data(text)]


@dataclass
class _Fits:
    """Whether every system can see a row whole and answer it; counts those that do not fit."""

    template: ChatTemplate
    context_tokens: int
    num_too_long: int = 0

    @classmethod
    def of(cls, systems: Sequence[Candidate]) -> _Fits:
        judged = systems[-1]
        # Base and tuned model share a tokenizer, so one template measures for both.
        return cls(judged.chat_template(), min(system.context_length_tokens for system in systems))

    def __call__(self, example: Example) -> bool:
        from luthier.ml.data.tokenise.loss_mask import tokenise

        fits = tokenise(example, self.template).num_tokens + _ROOM_TOKENS <= self.context_tokens
        self.num_too_long += not fits
        return fits


def _with_what_was_seen(probe: Probe, trained: Sequence[Example]) -> Probe:
    """The probe with a caution, where rows of it that should be new are in the training rows."""
    num = num_seen(probe, trained)
    if not num:
        return probe
    caution = (
        f"{counted(num, 'row of this probe is a training row', 'rows of this probe are training rows')} of the run, of "
        f"{len(probe.rows):,}: the figures show what it was trained to do there, not how it behaves elsewhere."
    )
    return replace(probe, cautions=(caution, *probe.cautions))


def num_seen(probe: Probe, trained: Sequence[Example]) -> int:
    """Rows of a probe whose prompt or sentences are also in training rows, as a turn or a separate text.

    Probes that ask about the training rows themselves are not counted.
    """
    from luthier.ml.data.text.normalise import normalised

    if probe.name in ("memorisation", "personal_data", "canaries"):
        return 0
    # Probes that compare options are known by their sentences, the others by their prompts.
    asked: list[Sequence[str]] = list(probe.options) or [tuple(_prompts(row.example)) for row in probe.rows]
    by_row = [{normalised(text) for text in texts} for texts in asked]
    wanted = frozenset[str]().union(*by_row)
    # Only what is asked about is kept: the training rows may be larger than memory.
    seen = {text for example in trained for one in _texts(example) if (text := normalised(one)) in wanted}
    return sum(not texts.isdisjoint(seen) for texts in by_row)


def _texts(example: Example) -> Iterator[str]:
    yield from (message.content or "" for message in (example.conversation.messages if example.conversation else ()))
    yield from ([example.text] if example.text else ())


def _prompts(example: Example) -> Iterator[str]:
    turns = example.prompt.messages if example.prompt is not None else ()
    yield from (message.content or "" for message in turns if message.role == "user")


def check_safety(
    context: Context,
    model: str,
    *,
    against: str | None = None,
    suite: SafetySuite = "default",
    pairs: Path | None = None,
    prompts: Path | None = None,
    toxicity_model: Path | None = None,
    only: Sequence[str] = (),
    html: Path | None = None,
    project_id: str | None = None,
    result_id: str | None = None,
) -> SafetyResult:
    """Run all probes on a model and on the one that it is compared with, keep the result, and return it.

    Args:
        context: of the home.
        model: name of a base model, a run, or a tuned model (`ft:...`).
        against: as `model`; None takes the base of a tuned one.
        suite: which probes.
        pairs: a CSV file of sentence pairs that replace the built-in ones.
        prompts: rows whose prompts are swapped, instead of the run's held-out rows.
        toxicity_model: folder of a text classifier, used in addition to the list of words.
        only: names of probes; empty for all.
        html: where to write a page; None writes none.
        project_id: whose models and results these are; None, as of commands, for models of any project: the result is
            then of the project of the model's run.
        result_id: id of the result; None takes a new one.

    Raises:
        NotFoundError: no such model, run or file.
        DataError: a file of the user cannot be used.
        RequestError: a model is behind a server, or its tokenizer cannot be used.
        DivergedError: likelihoods are not numbers.
    """
    from luthier.ml.evaluation.safety.summary import summarise, with_adjusted_words, with_what_is_ruled_out
    from luthier.ml.evaluation.tasks.protocol import Resources

    check_is_not_input(html, pairs, prompts)
    start = time.perf_counter()
    looked_in = project_id or DEFAULT_PROJECT
    systems, run_id = _systems(context, model, against, looked_in)
    outcome = outcome_of(context, model, project_id=looked_in)
    owner = project_id or project_of_results(context, run_id)
    built = Built()
    material = probe_inputs(context, run_id, built.left_out)
    build_probes(systems, material, built, suite=suite, pairs=pairs, prompts=prompts, toxicity_model=toxicity_model)
    if only:
        built.keep(only)
    tasks = [_as_task(probe, material.trained) for probe in built.probes]
    resources = Resources(folder=Path(), progress=context.progress)
    judged = run_tasks(context, systems, tasks, resources=resources)
    candidate, base = systems[-1].name, systems[0].name if len(systems) > 1 else None
    results = tuple(map(with_what_is_ruled_out, with_adjusted_words(judged, candidate=candidate)))
    summary = summarise(results, {p.name: p.title for p in built.probes}, candidate=candidate, base=base)
    result = SafetyResult(
        result_id=result_id or new_id("safety"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        suite=suite,
        fingerprint=sha256_document([[task.task.name, task.sha256] for task in tasks]),
        run_id=outcome,
        candidate=candidate,
        base=base,
        probes=results,
        headline=summary.headline,
        concerns=summary.concerns,
        left_out=tuple(built.left_out),
        seconds=time.perf_counter() - start,
    )
    subject = subject_of(context, model, candidate, project_id=looked_in)
    context.assessments.save("safety", result.result_id, result, project_id=owner, subject=subject, run_id=run_id)
    if html is not None:
        from luthier.ml.evaluation.report.suite_page import write_safety_page

        html.parent.mkdir(parents=True, exist_ok=True)
        write_safety_page(result, html)
    return result


def _systems(
    context: Context, model: str, against: str | None, project_id: str
) -> tuple[tuple[Candidate, ...], str | None]:
    """What is evaluated, the base first, and the run that made the model."""
    run_id = run_of(context, model, project_id=project_id)
    found = [find_system(context, name, project_id=project_id) for name in (model, against) if name is not None]
    judged = [system for system in found if isinstance(system, Candidate)]
    if len(judged) < len(found):
        raise RequestError(
            f"{' and '.join(name for name in (model, against) if name and '://' in name)} behind a server",
            expected="models on this machine: stereotypes and canaries are measured by likelihoods, which servers do "
            "not tell",
            do="pull the base model, or name a run",
        )
    # A tuned model's faults may be those of its base, so it is held against it without being asked.
    if against is None and run_id is not None:
        judged.append(find_base(context, run_id))
    # The evaluated model last, as `run_tasks` expects it.
    return tuple(reversed(judged)), run_id


def _as_task(probe: Probe, trained: Sequence[Example]) -> RowsOf:
    from luthier.ml.evaluation.safety.probe import ProbeKind

    task = TaskCommon(
        name=probe.name,
        data=probe.source,
        max_new_tokens=probe.max_new_tokens,
        cluster_by="prompt" if probe.has_clusters else None,
    )
    rows = [row.example.model_dump(mode="json", exclude={"has_answer"}) for row in probe.rows]
    metrics = [metric.name for metric in probe.metrics]
    return RowsOf(
        task=task,
        rows=probe.rows,
        file=probe.source,
        # All that can change a figure.
        sha256=sha256_document([rows, probe.options, metrics, probe.max_new_tokens]),
        kind=ProbeKind(probe),
        kind_name="safety",
        num_leaked=num_seen(probe, trained),
        rests=probe.rests if any(metric.needs == "text" for metric in probe.metrics) or probe.options else (),
    )
