"""Verdicts of workflows: which base model and whether to tune it (model comparison), and whether distilling paid.

A model comparison is decided like this:

1. Prompted systems are what is to beat, since they cost no training. A tuned one has to be better than each of them on
   the same rows (an intersection-union test: Berger, 1982), for which of them is the best in truth is not known; where
   several are tuned, p-values are adjusted by Holm's method (1979).
2. Where some tuned system is shown to be better, one is recommended: of those not distinguishable from the best,
   the cheapest at inference (the fastest; of plain text the smallest). Else the same choice is made among the prompted
   ones: no tuning is needed.
3. Where the figure is a share of rows, higher is better and no system gets any row right, nothing is recommended.
4. The recommended system is held against every baseline without a language model. It was chosen from several by the
   same rows, so p-values are multiplied by their number before it is called better than the best alternative.

A distilled student is compared with itself without the teacher, and its distance from the teacher is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Evaluation, Metric, SystemResult
from luthier.core.text.counted import counted
from luthier.core.workflows.pipeline import (
    ALONE,
    TAUGHT,
    TEACHER,
    Contender,
    DistilWord,
    ModelComparisonSpec,
    Recommendation,
    Standing,
    Student,
    StudentRun,
    StudentVerdict,
    Tuning,
)
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_title, start
from luthier.ml.evaluation.statistics import LEVEL, holm
from luthier.ml.evaluation.verdict import (
    against_all,
    alternatives_of,
    best_of,
    hardest,
    rival_among,
    simple_details,
    simple_sentence,
)
from luthier.ml.evaluation.verdict_text import held_out_rows, listed, primary_details, prompt_of, system_title

FEW_ROWS = 50
_BY_BYTES = "bits_per_byte"


def recommend(
    spec: ModelComparisonSpec,
    standings: Sequence[Standing],
    tunings: Sequence[Tuning],
    comparisons: Sequence[Comparison],
    baselines: Sequence[SystemResult] = (),
) -> Recommendation:
    """The answer.

    Args:
        spec: what was compared, and by which metric.
        standings: the evaluated systems, at least one of them not tuned.
        tunings: what tuning each contender gave, with the reason where it was not evaluated.
        comparisons: of every two systems in `spec.primary` at least, in either direction.
        baselines: systems without a language model, evaluated on the same rows.
    """
    table = _Table(spec, comparisons)
    found, judged = _among_models(spec, standings, tunings, comparisons)
    return _against_alternatives(table, found, judged, standings, baselines)


def _among_models(
    spec: ModelComparisonSpec,
    standings: Sequence[Standing],
    tunings: Sequence[Tuning],
    comparisons: Sequence[Comparison],
) -> tuple[Recommendation, Standing]:
    """What is best among the models, and the system that alternatives are to be held against."""
    table = _Table(spec, comparisons)
    prompted = [one for one in standings if one.kind != "tuned"]
    tuned = [one for one in standings if one.kind == "tuned"]
    best_prompted = table.best(prompted)
    cautions = _cautions(spec, standings, tunings)
    if all(_is_zero(table.metric(one)) for one in standings):
        nothing = Recommendation(
            word="nothing",
            system="",
            contender=None,
            headline=f"Nothing can be recommended: {table.title} is 0 for all of {len(standings)} systems.",
            reasons=("Read the answers below: they may only have another form than the rows.",),
            cautions=cautions,
        )
        return nothing, table.best(standings)
    gains = table.better_than_all(prompted, tuned)
    if gains:
        best = table.best(gains)
        chosen, equals = table.cheapest_equal(best, gains)
        # Not necessarily the best one: of those that are as good, the cheapest to ask.
        gained = f"{table.said(chosen)}, against {table.said(best_prompted)} of {best_prompted.result.name}"
        headline = f"Tune {spec.contenders[chosen.contender].label}: {table.title} {gained}, the best without tuning."
        reasons = [table.sentence(chosen, best_prompted), *_why_this(table, chosen, best, equals)]
        word = "tuned"
    else:
        chosen, equals = table.cheapest_equal(best_prompted, prompted)
        headline = (
            f"None: prompting {spec.contenders[chosen.contender].label} is enough, as far as these rows show. "
            f"{chosen.result.name} has {table.title} {table.said(chosen)}."
        )
        reasons = [*_why_this(table, chosen, best_prompted, equals)]
        best_tuned = table.best(tuned) if tuned else None
        reasons += (
            [table.sentence(best_tuned, table.rival(best_tuned, prompted))]
            if best_tuned is not None
            else ["No contender was tuned."]
        )
        word = "prompting"
    reasons += _by_bytes(spec, standings, chosen, comparisons)
    found = Recommendation(
        word="tuned" if word == "tuned" else "prompting",
        system=chosen.result.name,
        contender=chosen.contender,
        headline=headline,
        reasons=tuple(reasons),
        cautions=cautions,
    )
    return found, chosen


def _against_alternatives(
    table: _Table,
    found: Recommendation,
    judged: Standing,
    standings: Sequence[Standing],
    baselines: Sequence[SystemResult],
) -> Recommendation:
    """The recommendation with what one could use instead of `judged`, and whether that is as good."""
    if not baselines:
        return found
    simple = [one for one in baselines if table.figure in one.metrics]
    if not simple:
        note = f"Baselines without a language model have no {table.title}: none of them is compared with the models."
        return found.model_copy(update={"cautions": (*found.cautions, note)})
    # Where prompting is recommended, the prompted systems are what was chosen from.
    is_tuned = found.word == "tuned"
    prompted = [one.result for one in standings if is_tuned and one.kind not in ("tuned", "zero-shot")]
    of_prompted, of_simple = (
        [table.compared(judged.result.name, other.name) for other in others] for others in (prompted, simple)
    )
    results, higher = [*(one.result for one in standings), *simple], table.metric(judged).higher_is_better
    alternatives = alternatives_of(judged.result, [*of_prompted, *of_simple], results)
    word = against_all(of_simple, higher, num_candidates=len(standings))
    rival = rival_among(of_simple, higher, num_candidates=len(standings)).baseline
    use_instead = None if word == "better" else rival
    sentence = simple_sentence(judged.result, of_prompted, of_simple, results, num_candidates=len(standings))
    if found.word == "nothing":
        best = next(one for one in simple if one.name == hardest(of_simple, higher).baseline)
        is_useful = not _is_zero(best.metrics[table.figure])
        use_instead = best.name if is_useful else None
        figure, took = table.written(best.metrics[table.figure]), figures.with_spaces(figures.duration(best.seconds))
        sentence = f"{start(system_title(best, results))} has {figure} and takes {took}: use that." if is_useful else ""
    details = simple_details(judged.result, of_simple, results, num_candidates=len(standings))
    cautions = found.cautions
    if word != "better" and against_all(of_simple, higher) == "better":
        cautions = (
            *cautions,
            f"{judged.result.name} was chosen from {counted(len(standings), 'system')} by the same rows, so it is "
            f"only called better than a baseline where p is below 5% divided by {len(standings)}.",
        )
    return found.model_copy(
        update={
            "headline": " ".join(filter(None, (found.headline, sentence))),
            "reasons": (*found.reasons, *details),
            "cautions": cautions,
            "alternatives": alternatives,
            "best_alternative": best_of(alternatives, higher),
            "better_than_best_alternative": against_all(
                [*of_prompted, *of_simple], higher, num_candidates=len(standings)
            ),
            "use_instead": use_instead,
        }
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """All differences in one metric, by pair."""

    spec: ModelComparisonSpec
    comparisons: Sequence[Comparison]
    name: str = ""

    @property
    def figure(self) -> str:
        return self.name or self.spec.primary

    @property
    def title(self) -> str:
        return metric_title(self.figure)

    def metric(self, one: Standing) -> Metric:
        return one.result.metrics[self.figure]

    def price(self, one: Standing) -> tuple[float, int, int]:
        """What asking costs: time, or where nothing was written the size of the model."""
        # A missing time sorts behind every measured one; of plain text all are missing, so that the size decides.
        seconds = math.inf if one.seconds_per_answer is None else one.seconds_per_answer
        return (seconds, self.spec.contenders[one.contender].num_parameters, one.result.num_few_shot)

    def best(self, standings: Sequence[Standing]) -> Standing:
        """The first by its value; of equal ones the less expensive."""
        sign = -1 if self.metric(standings[0]).higher_is_better else 1
        return min(standings, key=lambda one: (sign * self.metric(one).value, self.price(one)))

    def between(self, one: Standing, other: Standing) -> Comparison:
        """`one` less `other`, turned around where it was compared the other way."""
        return self.compared(one.result.name, other.result.name)

    def compared(self, one: str, other: str) -> Comparison:
        """The same by the names of any two systems."""
        names = (one, other)
        for found in self.comparisons:
            if found.metric != self.figure:
                continue
            if (found.candidate, found.baseline) == names:
                return found
            if (found.baseline, found.candidate) == names:
                words = {"better": "worse", "worse": "better"}
                turned = {
                    "baseline": found.candidate,
                    "candidate": found.baseline,
                    "difference": -found.difference,
                    "low": -found.high,
                    "high": -found.low,
                    "verdict": words.get(found.verdict, found.verdict),
                }
                return found.model_copy(update=turned)
        raise AssertionError(f"{names[0]} and {names[1]} were not compared by {self.figure}")

    def better_than_all(self, baselines: Sequence[Standing], others: Sequence[Standing]) -> list[Standing]:
        """Those that are shown to be better than each of the baselines.

        Not only than the one with the best figure: that may lead by luck, and be beaten because it answers much like
        the other one, which is no better than a baseline with different answers.
        """
        found = [[self.between(one, baseline) for baseline in baselines] for one in others]
        # One that is not beaten decides, whatever the others say.
        largest = [max(c.p_value if c.verdict == "better" else 1.0 for c in own) for own in found]
        return [one for one, p in zip(others, holm(largest), strict=True) if p < 1 - LEVEL]

    def rival(self, one: Standing, baselines: Sequence[Standing]) -> Standing:
        """The baseline that keeps a system from being better than all of them, else the hardest one to beat."""
        found = [self.between(one, baseline) for baseline in baselines]
        name = rival_among(found, self.metric(one).higher_is_better).baseline
        return next(baseline for baseline in baselines if baseline.result.name == name)

    def cheapest_equal(self, best: Standing, among: Sequence[Standing]) -> tuple[Standing, list[Standing]]:
        """Of those not distinguishable from the best one, the cheapest to ask; and all of them."""
        others = [one for one in among if one is not best]
        worse = self._shown("worse", best, others)
        equals = [one for one in among if one not in worse]
        return min(equals, key=self.price), equals

    def _shown(self, word: str, baseline: Standing, others: Sequence[Standing]) -> list[Standing]:
        found = [self.between(one, baseline) for one in others]
        # One family for each question: Holm over all systems that are compared with this baseline.
        adjusted = holm([one.p_value for one in found])
        rows = zip(others, found, adjusted, strict=True)
        return [one for one, comparison, p in rows if comparison.verdict == word and p < 1 - LEVEL]

    def said(self, one: Standing) -> str:
        """The figure with its interval."""
        return self.written(self.metric(one))

    @staticmethod
    def written(metric: Metric) -> str:
        """A figure with its interval."""
        decimals = figures.decimals_for(metric.low, metric.high)
        value = figures.number(metric.value, decimals)
        return value if metric.low == metric.high else f"{value} {figures.interval(metric.low, metric.high, decimals)}"

    def sentence(self, one: Standing, other: Standing) -> str:
        """The difference of two systems in a sentence."""
        found = self.between(one, other)
        decimals = figures.decimals_for(found.low, found.high)
        ends = ", ".join(figures.signed(end, decimals) for end in (found.low, found.high))
        text = (
            f"{found.candidate} less {found.baseline}: {figures.signed(found.difference, decimals)} "
            f"{self.title} [{ends}], {found.verdict}"
        )
        settle = f"; about {held_out_rows(found.rows_needed)} would settle it" if found.rows_needed else ""
        return f"{text}{settle}."


def _is_zero(metric: Metric) -> bool:
    return metric.higher_is_better and metric.value == 0


def _why_this(table: _Table, chosen: Standing, best: Standing, equals: Sequence[Standing]) -> list[str]:
    if len(equals) == 1:
        return []
    names = listed([one.result.name for one in equals])
    if chosen is best:
        return [
            f"{names} do not differ clearly by {table.title}; {chosen.result.name} is the best and the least expensive."
        ]
    return [
        f"{names} do not differ clearly by {table.title}, so the least expensive is chosen; the best figure is "
        f"{table.said(best)} of {best.result.name}."
    ]


def _by_bytes(
    spec: ModelComparisonSpec, standings: Sequence[Standing], chosen: Standing, comparisons: Sequence[Comparison]
) -> list[str]:
    """What bits per byte say, which compare models of different tokenizers."""
    if spec.primary == _BY_BYTES or _BY_BYTES not in chosen.result.metrics:
        return []
    table = _Table(spec, comparisons, _BY_BYTES)
    # A choice among labels has no likelihood of the rows' own answers.
    best = table.best([one for one in standings if _BY_BYTES in one.result.metrics])
    if best is chosen:
        return [f"It also gives the right answers the highest likelihood: {table.said(chosen)} bits per byte."]
    return [
        f"By bits per byte {best.result.name} gives the right answers the highest likelihood, {table.said(best)} "
        f"against {table.said(chosen)} of {chosen.result.name}."
    ]


def _cautions(spec: ModelComparisonSpec, standings: Sequence[Standing], tunings: Sequence[Tuning]) -> tuple[str, ...]:
    found = list(spec.cautions)
    if spec.num_judged < FEW_ROWS:
        found.append(f"Only {held_out_rows(spec.num_judged)} were evaluated: small differences cannot be seen.")
    if len(standings) > 1:
        found.append(
            f"The best of {len(standings)} was chosen on the same rows that its figure is measured on: expect a "
            "little less on new ones."
        )
    share = spec.num_examples / spec.num_rows_in_file
    if share < 1:
        found.append(
            f"Tuning was short: {counted(spec.num_examples, 'example')}, {figures.percent(share)} of the rows. A "
            "whole training may gain more, and not the same for each model."
        )
    found += [
        f"{spec.contenders[one.contender].label} has no tuned result: {one.reason}." for one in tunings if one.reason
    ]
    return tuple(found)


def not_equal(contenders: Sequence[Contender], standings: Sequence[Standing], few_shot: int) -> tuple[str, ...]:
    """What could not be made the same for all contenders, a sentence each."""
    found = []

    def differ(what: str, values: Sequence[str], why: str) -> None:
        if len(set(values)) > 1:
            each = [f"{value} for {one.label}" for value, one in zip(values, contenders, strict=True)]
            found.append(f"{what}: {listed(each)}. {why}")

    counts = [f"{one.num_tokens:,}" for one in contenders]
    differ(
        "Tokens of the same training rows",
        counts,
        "Tokenizers differ, so losses and perplexities a token are not compared; bits per byte are.",
    )
    rates = [f"{one.learning_rate:g}" for one in contenders]
    # Tuned with the same rate, one model would be at its best and another not.
    differ("Learning rates", rates, "Each is that of the model's own plan.")
    differ("Examples a step", [f"{one.batch_size:,}" for one in contenders], "Each is that of the model's own plan.")
    layouts = ["its own template" if one.has_chat_template else "the plain layout" for one in contenders]
    differ("Prompts are written in", layouts, "A base model has no template of its own.")
    for one in standings:
        if one.kind in ("few-shot", "few-shot-nearest") and one.result.num_few_shot < few_shot:
            fit = prompt_of(one.result)
            found.append(f"{one.result.name}: only {fit} fit into its context; the others saw {few_shot}.")
    return tuple(found)


_WORDS: dict[str, DistilWord] = {
    "better": "worth it",
    "worse": "not worth it",
    NOT_DISTINGUISHABLE: "not settled",
}


def student_verdict(student: Student) -> StudentVerdict:
    """The verdict of a distillation whose three were evaluated: "worth it" only where the taught student is better than
    itself without the teacher, beyond doubt, by the figure that was fixed beforehand."""
    evaluation = student.evaluation
    assert evaluation is not None
    assert evaluation.verdict is not None
    metric = evaluation.verdict.metric
    # Only against the student without the teacher: the teacher itself is expected to be better.
    found = _against(evaluation, metric, ALONE)
    judged = next(system for system in evaluation.systems if system.name == TAUGHT)
    reasons = primary_details(judged, [found], evaluation.systems)
    teachers = [c for c in evaluation.comparisons if (c.candidate, c.baseline, c.metric) == (TAUGHT, TEACHER, metric)]
    return StudentVerdict(
        word=_WORDS[found.verdict],
        headline=_headline(found, metric, evaluation),
        reasons=(
            *reasons,
            *primary_details(judged, teachers, evaluation.systems),
            *_smaller(student),
            *evaluation.verdict.details[evaluation.verdict.num_primary_details :],
        ),
        caveats=(*_not_equal(student), *_refused(student), *evaluation.verdict.caveats),
    )


def _against(evaluation: Evaluation, metric: str, baseline: str) -> Comparison:
    return next(c for c in evaluation.comparisons if (c.candidate, c.baseline, c.metric) == (TAUGHT, baseline, metric))


def _headline(found: Comparison, metric: str, evaluation: Evaluation) -> str:
    title, rows = metric_title(metric), held_out_rows(evaluation.num_rows)
    if found.verdict == "better":
        return f"Distilling was worth it: by {title} the student is better with the teacher than without."
    if found.verdict == "worse":
        return f"Distilling was not worth it: by {title} the student is worse with the teacher than without."
    return (
        f"Distilling was not shown to be worth it: by {title} the student with the teacher is not clearly "
        f"different from the one without, on {rows}."
    )


def _smaller(student: Student) -> Sequence[str]:
    if student.teacher_parameters is None:
        return ()
    share = student.student_parameters / student.teacher_parameters
    return (
        f"The student has {student.student_parameters / 1e6:,.1f} million parameters, {share:.0%} of the teacher's "
        f"{student.teacher_parameters / 1e6:,.1f} million.",
    )


def _not_equal(student: Student) -> Sequence[str]:
    taught, alone = student.taught, student.alone
    if taught is None or alone is None or _budget(taught) == _budget(alone):
        return ()
    return (
        f"The two trainings were not equally long: {counted(taught.num_steps, 'step')} on "
        f"{counted(taught.num_examples, 'example')} with the teacher, {alone.num_steps:,} on "
        f"{alone.num_examples:,} without.",
    )


def _budget(run: StudentRun) -> tuple[int, int]:
    return run.num_steps, run.num_examples


def _refused(student: Student) -> Sequence[str]:
    if not student.num_refused:
        return ()
    of = student.num_rows + student.num_refused
    return (
        f"{student.num_refused:,} of {of:,} rows were left out of both trainings, because the teacher's answers to "
        "them were empty, cut off or over its context.",
    )
