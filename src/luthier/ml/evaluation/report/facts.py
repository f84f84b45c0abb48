"""Facts of a run as its report shows them: how it ended, key figures, what was trained, and how to reproduce it.

The outcome is one large sentence at the top of the page; warnings are among the facts. To reproduce the run, the recipe
is shown unchanged, with the commands.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import yaml

from luthier.core.aliases import with_new_keys
from luthier.core.data_sources import SourcePlan, without_queries
from luthier.core.data_stream import StreamCounts, StreamPlan
from luthier.core.dataset import DatasetProfile, coverage, reading_notes, sequence_notes
from luthier.core.evaluation import Evaluation
from luthier.core.events import BillUpdated, Event, StepDone, ValidationDone, WarningRaised, comparable_loss
from luthier.core.plan import DataPlan, MethodPlan, Plan
from luthier.core.registry import METHODS, OBJECTIVES
from luthier.core.run import RunRecord
from luthier.core.text.counted import counted
from luthier.core.text.target_modules import target_summary
from luthier.ml.charts import figures
from luthier.ml.charts.figures import Fact
from luthier.ml.charts.judged_rows import Tone, tone_of
from luthier.ml.evaluation.report.rewarded import best_validation
from luthier.ml.evaluation.verdict_view import VerdictView, verdict_view

MAX_IDS: Final = 12


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One row of the table of data, as text.

    Attributes:
        split: name of the split.
        file: name of its file.
        sha256: hex digest of the file.
        num_rows: rows of the file.
        num_examples: examples that were trained on or judged.
        num_tokens: tokens of all examples.
        num_trained_tokens: tokens that are learned.
        num_dropped: examples that were left out.
        num_truncated: examples that were cut.
        remarks: what was dropped or cut, by name.
    """

    split: str
    file: str
    sha256: str
    num_rows: str
    num_examples: str
    num_tokens: str
    num_trained_tokens: str
    num_dropped: str
    num_truncated: str
    remarks: tuple[str, ...]


def key_figures(record: RunRecord, plan: Plan, events: Sequence[Event]) -> list[Fact]:
    """The most important numbers. A run without a result is summed up from its events."""
    # A resumed run repeats steps: of each step the last event counts.
    steps = list({e.step: e for e in events if isinstance(e, StepDone)}.values())
    result = record.result
    seconds = result.seconds if result else sum(e.seconds for e in steps)
    tokens = result.num_tokens if result else sum(e.num_tokens for e in steps)
    trained = result.num_trained_tokens if result else sum(e.num_trained_tokens for e in steps)
    done = result.num_steps if result else record.step
    step_seconds = sum(e.seconds for e in steps)
    rate = result.tokens_per_second if result else tokens / step_seconds if step_seconds else 0.0
    num_trainable = plan.method.num_trainable_parameters
    share = result.trainable_fraction if result else num_trainable / plan.base_model.num_parameters
    found = [
        Fact("Training time", figures.duration(seconds), f"{done:,} of {plan.training.num_steps:,} steps"),
        Fact("Speed", f"{figures.speed(rate)} tokens/s", _each_step(record)),
        Fact("Trained tokens", figures.short_count(trained), f"of {figures.short_count(tokens)} tokens read"),
        Fact("Trainable parameters", figures.short_count(num_trainable), f"{figures.percent(share)} of the model"),
    ]
    if result:
        host = result.host_peak_memory_bytes
        alone = "of the training process" + (" and its workers" if plan.training.micro_batch_workers > 1 else "")
        whose = alone if host is None else f"of the device; {figures.size(host)} of the process"
        found.append(Fact("Peak memory", figures.size(result.peak_memory_bytes), whose))
        each = f"{figures.speed(result.examples_per_second)} a second"
        found.append(Fact("Examples seen", figures.count(result.num_examples), each))
    found += _bill(record, events)
    goal = _reward(events, steps) if plan.objective.draws else _loss(record, events, steps)
    return [*found, goal, Fact("Ended", record.status, record.stopped_because or "")]


def _bill(record: RunRecord, events: Sequence[Event]) -> list[Fact]:
    """What the run has cost by its latest ledger, all of its processes together."""
    bills = [e.bill for e in events if isinstance(e, BillUpdated)]
    # The result's bill is final; a run that has not ended has only events.
    bill = record.result.bill if record.result and record.result.bill else bills[-1] if bills else None
    if bill is None:
        return []
    notes = []
    for unit, amount in (("USD", bill.usd), ("kWh", bill.energy_kwh)):
        if amount is not None:
            ends = "" if amount.low == amount.high else f" [{figures.rough(amount.low)}, {figures.rough(amount.high)}]"
            notes.append(f"{figures.rough(amount.value)}{ends} {unit}")
    return [Fact("Spent in all", figures.duration(bill.hours * 3600), ", ".join(notes))]


def _each_step(record: RunRecord) -> str:
    return f"{figures.duration(record.result.seconds_per_step)} a step" if record.result else ""


def _loss(record: RunRecord, events: Sequence[Event], steps: Sequence[StepDone]) -> Fact:
    """The best validation loss and its step; without validation the training loss."""
    validations = [e for e in events if isinstance(e, ValidationDone)]
    result = record.result
    if result and result.best_validation_loss is not None:
        return Fact("Best validation loss", f"{result.best_validation_loss:.3f}", f"at step {result.best_step:,}")
    if validations:
        best = min(validations, key=lambda e: e.loss)
        return Fact("Best validation loss", f"{best.loss:.3f}", f"at step {best.step:,}, so far")
    if result:
        plain = result.comparable_train_loss
        return Fact("Training loss", f"{plain:.3f}", "mean over all steps; no validation rows")
    if steps:
        loss = comparable_loss(steps[-1])
        return Fact("Training loss", f"{loss:.3f}", f"at step {steps[-1].step:,}; no validation yet")
    return Fact("Loss", "none", "no step was finished")


def _reward(events: Sequence[Event], steps: Sequence[StepDone]) -> Fact:
    """The best reward of a validation; without validation that of the last drawn answers."""
    if (best := best_validation(events)) is not None:
        return Fact("Best validation reward", f"{best[0]:.3f}", f"at step {best[1]:,}, the likeliest answers")
    if steps:
        return Fact("Reward", f"{steps[-1].measures['reward']:.3f}", f"mean at step {steps[-1].step:,}")
    return Fact("Reward", "none", "no step was finished")


def method_title(plan: Plan) -> str:
    """What the method is called; the name of one that is no longer installed."""
    rules = METHODS.find(plan.method.name)
    return plan.method.name if rules is None else str(rules.title)


def model_facts(record: RunRecord, plan: Plan, licence: str) -> list[Fact]:
    """The base model, the method, and the digests by which both are known."""
    model, method = plan.base_model, plan.method
    found = [
        Fact("Base model", model.name, f"{figures.short_count(model.num_parameters)} parameters"),
        Fact("Licence", licence),
        Fact("Digest of its weights", model.sha256, "SHA-256"),
        Fact("Text around the turns", "chat template" if model.template == "chat" else "plain text"),
    ]
    found += [
        Fact("Method", method_title(plan), _method_note(method)),
        _objective(plan),
    ]
    if record.result and record.result.adapter_sha256 is not None:
        name = "Digest of the model" if method.name == "full" else "Digest of the adapter"
        found.append(Fact(name, record.result.adapter_sha256, "SHA-256"))
    return [*found, Fact("Hash of the plan", record.plan_hash, "SHA-256 of all that decides what is trained")]


def _objective(plan: Plan) -> Fact:
    objective = plan.objective
    rules = OBJECTIVES.find(objective.name)
    name = objective.name if rules is None else rules.name or objective.name
    if not objective.draws:
        source = plan.sources.get("objective.name")
        usual = "" if rules is None else rules.title
        return Fact("Objective", name, usual if source is None else source.why)
    parts = [f"{reward.name} x {reward.weight:g}" for reward in objective.rewards or ()]
    note = (
        f"{objective.num_samples} answers a prompt, up to {objective.max_new_tokens} tokens, worth {', '.join(parts)}"
    )
    if objective.judges:
        note += f"; graded by {', '.join(judge.name for judge in objective.judges)}"
    return Fact("Objective", name, note)


def _method_note(method: MethodPlan) -> str:
    """Its settings as text; unused ones are left out."""
    rank = f"rank {method.rank}"
    if method.target_rank:
        rank = f"rank {method.rank} at first, {method.target_rank} on average at the end"
    parts = [f"{rank}, alpha {method.alpha:g}, dropout {method.dropout:g}"] if method.rank else []
    if method.learning_rate_ratio:
        parts.append(f"B at {method.learning_rate_ratio:g} times the learning rate")
    if method.num_virtual_tokens:
        parts.append(f"{method.num_virtual_tokens} virtual tokens before each text")
    if method.quantisation:
        parts.append(f"over a base held in {method.quantisation}")
    if method.is_adapter:
        parts.append(f"on {target_summary(method)}")
    return ", ".join(parts) or ("every weight moves" if method.name == "full" else "")


def split_facts(plan: Plan, streamed: StreamCounts | None = None) -> list[SplitFacts]:
    """One row for each split that the run had.

    Args:
        plan: of the run.
        streamed: what was read of training rows that are streamed, once the run has ended.
    """
    replay = plan.data.replay
    # Replayed rows are data of the run, too.
    general = (replay.rows, replay.held_out) if replay else ()
    splits = (plan.data.train, plan.data.validation, plan.data.held_out, *general)
    rows = [_split(profile, plan.data.sources) for profile in splits if profile is not None]
    if plan.data.stream is not None:
        rows[0] = _streamed(rows[0], plan.data.stream, streamed)
    said = coverage(plan.data)
    return [replace(one, remarks=(*one.remarks, said)) if said and one.split == "held-out" else one for one in rows]


def _streamed(row: SplitFacts, stream: StreamPlan, counts: StreamCounts | None) -> SplitFacts:
    """The row of streamed training rows: estimates for all of them, and what was read."""
    dropped, truncated = ("unknown", "unknown") if counts is None else (counts.num_dropped, counts.num_truncated)
    is_known = stream.num_rows is not None
    return replace(
        row,
        num_rows=f"about {row.num_rows}" if is_known else "unknown",
        num_examples=f"about {row.num_examples}" if is_known else "unknown",
        num_tokens=f"about {row.num_tokens}" if is_known else "unknown",
        num_trained_tokens=f"about {row.num_trained_tokens}" if is_known else "unknown",
        num_dropped=dropped if isinstance(dropped, str) else figures.count(dropped),
        num_truncated=truncated if isinstance(truncated, str) else figures.count(truncated),
        remarks=(*row.remarks, stream.summary, *([] if counts is None else [counts.summary])),
    )


def _split(profile: DatasetProfile, sources: Sequence[SourcePlan]) -> SplitFacts:
    # Without the name of the file, which is in the same line of the table.
    remarks = [note.partition(": ")[2] for note in reading_notes([(profile.file, profile.shape_reason)])]
    if profile.num_dropped:
        remarks.append(f"{profile.num_dropped:,} dropped: {_ids(profile.dropped_ids, profile.num_dropped)}")
    if profile.num_truncated:
        remarks.append(f"{profile.num_truncated:,} truncated: {_ids(profile.truncated_ids, profile.num_truncated)}")
    remarks += [note for _, note in sequence_notes(profile)]
    remarks += [source.summary for source in sources if source.split == profile.split]
    if (packed := profile.packed) is not None:
        cut = f", {packed.num_cut:,} texts cut into several" if packed.num_cut else ""
        full = f"{packed.filled_fraction:.0%} full"
        remarks.append(f"in {packed.num_blocks:,} blocks of up to {packed.block_tokens:,} tokens, {full}{cut}")
    return SplitFacts(
        split=profile.split.replace("_", "-"),
        file=Path(profile.file).name,
        sha256=profile.sha256,
        num_rows=figures.count(profile.num_rows),
        num_examples=figures.count(profile.num_examples),
        num_tokens=figures.count(profile.num_tokens),
        num_trained_tokens=figures.count(profile.num_trained_tokens),
        num_dropped=figures.count(profile.num_dropped),
        num_truncated=figures.count(profile.num_truncated),
        remarks=tuple(remarks),
    )


def _ids(ids: Sequence[str], num: int) -> str:
    shown = ", ".join(ids[:MAX_IDS])
    more = num - min(len(ids), MAX_IDS)
    return f"{shown} and {more:,} more" if shown and more else shown or "(not named)"


def warnings(record: RunRecord, plan: Plan, events: Sequence[Event]) -> list[tuple[str, str]]:
    """(where, message) of everything a person should know: of the data, of the steps, of the result; none twice."""
    # By message, in order: each is shown at the first place where it occurred.
    found = dict.fromkeys(_leaks(plan.data), "data")
    for event in events:
        if isinstance(event, WarningRaised):
            found.setdefault(event.message, f"step {event.step:,}")
    for message in record.result.warnings if record.result else ():
        # The result repeats warnings of steps, sometimes with more detail: one of both is enough.
        if not any(message in known or known in message for known in found):
            found[message] = "result"
    return [(where, message) for message, where in found.items()]


def _leaks(data: DataPlan) -> list[str]:
    found = []
    if data.num_leaked:
        rows = _rows(data.num_leaked, "held-out")
        found.append(f"{rows} also in the training data, so the verdict flatters the model.")
    if data.num_same_prompt:
        rows = _rows(data.num_same_prompt, "held-out")
        part = "" if data.stream is None else f"the first {data.stream.num_sampled:,} rows of "
        found.append(f"{rows} in {part}the training data with the same prompt and another answer.")
    if data.num_validation_leaked:
        rows = _rows(data.num_validation_leaked, "validation")
        found.append(f"{rows} also in the training data, so early stopping notices memorisation too late.")
    return found


def _rows(num: int, split: str) -> str:
    return f"{num:,} {split} {'row is' if num == 1 else 'rows are'}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        tone: colour of the badge.
        badge: one or two words.
        headline: the one large sentence.
        details: what the headline rests on.
        further: what else was found.
        caveats: what limits it.
        next_steps: pairs of text and command.
        view: of an evaluation for people; None for other outcomes.
    """

    tone: Tone
    badge: str
    headline: str
    details: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()
    view: VerdictView | None = None


def outcomes(record: RunRecord, plan: Plan, evaluation: Evaluation | None) -> list[Outcome]:
    """What the page opens with: the verdict; before it, for a run that has not succeeded, in what state it is."""
    found = []
    if record.status != "succeeded":
        found.append(_unfinished(record))
    if evaluation is not None:
        found.append(_judged(evaluation, record, plan))
    elif record.status == "succeeded":
        found.append(_not_judged(record, plan))
    return found


def _judged(evaluation: Evaluation, record: RunRecord, plan: Plan) -> Outcome:
    verdict, view = evaluation.verdict, verdict_view(evaluation)
    if verdict is not None:
        # Details of the figure that decides come first in a verdict; the others are shown below them.
        num = verdict.num_primary_details
        details, further = verdict.details[:num], verdict.details[num:]
        tone, steps = tone_of(verdict.word), _commands_of(view, record, plan)
        return Outcome(tone, verdict.title, verdict.headline, details, further, verdict.caveats, steps, view)
    headline = f"Measured on {counted(evaluation.num_rows, 'held-out row')}, but without a verdict."
    why = (
        "A verdict needs at least two systems on the same rows."
        if len(evaluation.systems) < 2
        else "No comparison was requested."
    )
    return Outcome("quiet", "no verdict", headline, (why,), view=view)


def _commands_of(view: VerdictView | None, record: RunRecord, plan: Plan) -> tuple[tuple[str, str], ...]:
    """The commands of the recommended action, where it has some."""
    advice = None if view is None else view.recommendation
    if advice is None:
        return ()
    if advice.action == "use_model":
        return (
            ("Ask it:", shlex.join(["luthier", "chat", record.run_id])),
            ("Give it a name for programs:", shlex.join(["luthier", "deploy", record.run_id, "--as", "NAME"])),
        )
    if advice.action == "evaluate_more" and advice.num_rows_left and plan.data.held_out is not None:
        return (("Evaluate it on all held-out rows:", eval_command(record, plan, plan.data.held_out.file)),)
    if advice.action == "evaluate_more":
        return (("Evaluate it on more rows:", eval_command(record, plan, "more_held_out.jsonl")),)
    return (("See the base models:", "luthier models list"),) if advice.action == "larger_base" else ()


def _not_judged(record: RunRecord, plan: Plan) -> Outcome:
    held_out = plan.data.held_out
    if held_out is None:
        return Outcome(
            "quiet",
            "not evaluated",
            "The model was trained, but it is not known whether it is better.",
            (
                "The recipe names no held-out rows, so nothing was evaluated. "
                "A falling loss is no proof of a better model.",
            ),
            next_steps=(
                ("Evaluate it on rows that training has not seen:", eval_command(record, plan, "held_out.jsonl")),
                ("Or let the next run hold out rows itself:", "luthier train recipe.yaml --set data.held_out=0.1"),
            ),
        )
    waiting = counted(held_out.num_rows, "held-out row is", "held-out rows are")
    return Outcome(
        "quiet",
        "not evaluated",
        "The model was trained, but has not been evaluated yet.",
        (f"{waiting} waiting in {Path(held_out.file).name}.",),
        next_steps=(("Evaluate it:", eval_command(record, plan, held_out.file)),),
    )


def _unfinished(record: RunRecord) -> Outcome:
    where = f"step {record.step:,} of {record.num_steps:,}"
    because = () if not record.stopped_because else (f"Reason: {record.stopped_because}",)
    again = ("Continue from its last checkpoint:", resume_command(record))
    if record.status == "failed":
        kept = "Checkpoints that were saved before are still there; nothing on this page is a finished result."
        return Outcome("bad", "failed", f"This run failed at {where}.", (*because, kept), next_steps=(again,))
    if record.status == "paused":
        note = "No step is lost: continuing gives the same model as a run that was never paused."
        return Outcome("open", "paused", f"This run is paused at {where}.", (*because, note), next_steps=(again,))
    if record.status == "running":
        return Outcome("open", "running", f"This run is at {where} and not done yet.", because)
    return Outcome("quiet", "planned", "This run has not started yet.", because)


def resume_command(record: RunRecord) -> str:
    """What continues this run."""
    return shlex.join(["luthier", "train", "--resume", record.run_id])


def eval_command(record: RunRecord, plan: Plan, held_out: str) -> str:
    """The command that evaluates this run against its base model, with the few-shot examples of the plan."""
    words: Sequence[str] = ["luthier", "eval", record.run_id, "--data", held_out, "--against", plan.base_model.name]
    # Streamed rows are no file that could be named.
    if plan.evaluation.few_shot and plan.data.stream is None:
        shots = ["--few-shot", str(plan.evaluation.few_shot), "--few-shot-from", plan.data.train.file]
        words = [*words, *shots]
    return shlex.join(words)


def recipe_yaml(plan: Plan) -> str:
    """The recipe as YAML, without unset keys and without queries of addresses: trackers get the report, too."""
    document = with_new_keys(without_queries(plan.recipe.model_dump(mode="json", exclude_none=True)))
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100))


def commands(record: RunRecord, plan: Plan) -> list[tuple[str, str]]:
    """(what it does, command), in the order in which they are typed."""
    found = [
        ("Get the base model", f"luthier models pull {plan.base_model.name}"),
        ("See the plan before it runs", "luthier plan recipe.yaml"),
        ("Train", "luthier train recipe.yaml"),
    ]
    if plan.data.held_out is not None:
        found.append(("Evaluate this run again", eval_command(record, plan, plan.data.held_out.file)))
    return found
