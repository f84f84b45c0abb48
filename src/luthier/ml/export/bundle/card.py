"""The model card: README.md with the hub's front matter, filled from facts. It states what is not known.

The second half has the verdict, the parity check of the export, safety, cost, limits and the duties of the licence.
"""

from __future__ import annotations

import json
from typing import Final

from luthier.core.dataset import CUT_REASON, coverage, joined_note
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.plan import MethodPlan, ObjectivePlan, Plan, TrainingPlan
from luthier.core.records.export import Export, ParityReport
from luthier.core.registry import OBJECTIVES
from luthier.core.run import TrainResult
from luthier.core.task_head import what_it_gives
from luthier.core.text.target_modules import target_summary
from luthier.ml.charts import figures, visible
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.charts.visible import code, table
from luthier.ml.export.bundle import front_matter
from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts, DatasetFacts, RunFacts
from luthier.ml.export.bundle.front_matter import front_matter_text
from luthier.ml.export.bundle.manifest import DOCUMENTS, LINEAGE, MANIFEST, PLAN, SBOM, Manifest
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS
from luthier.ml.export.exporters.registry import format_of


def outcome_sections(export: Export, facts: BundleFacts) -> tuple[str, ...]:
    """Each section with its heading."""
    return (
        _verdict(facts.evaluation),
        _parity(export),
        _safety(facts),
        _cost(facts.run),
        _limits(export, facts),
        _licence(facts.base, is_tuned=facts.run is not None),
    )


def _verdict(evaluation: Evaluation | None) -> str:
    title = "## Verdict\n\n"
    if evaluation is None:
        return title + "None: it was not evaluated on held-out rows."
    parts = []
    if (verdict := evaluation.verdict) is not None:
        parts.append(f"**{visible.text(verdict.headline, 1_000)}**")
        if verdict.details:
            parts.append("\n".join(f"- {visible.text(line, 1_000)}" for line in verdict.details))
    names = list(dict.fromkeys(name for system in evaluation.systems for name in system.metrics))
    rows = [
        [visible.text(system.name), *(_figure(system.metrics.get(name)) for name in names)]
        for system in evaluation.systems
    ]
    parts.append(table(("", *(_heading(name, evaluation) for name in names)), rows))
    # Only the name: a path would reveal folders of the machine. It may be a Windows path.
    file = visible.text(evaluation.held_out_file.replace("\\", "/").rsplit("/", 1)[-1])
    parts.append(
        f"95% intervals over {_rows(evaluation.num_rows)} of {file} (SHA-256 {code(evaluation.held_out_sha256)}). "
        "What was evaluated is the model before it was exported; what the export changed is in the next section."
    )
    if evaluation.kl_to_base is not None:
        parts.append(visible.text(evaluation.kl_to_base.sentence, 1_000))
    if evaluation.forgetting is not None:
        parts.append(f"On rows of other tasks: {visible.text(evaluation.forgetting.sentence, 1_000)}")
    return title + "\n\n".join(parts)


def _rows(num: int) -> str:
    return f"{num:,} row{'' if num == 1 else 's'}"


def _heading(name: str, evaluation: Evaluation) -> str:
    metric = next(system.metrics[name] for system in evaluation.systems if name in system.metrics)
    better = "higher is better" if metric.higher_is_better else "lower is better"
    unit = f"{visible.text(metric.unit)}; " if metric.unit else ""
    return f"{visible.text(metric_title(name))} ({unit}{better})"


def _figure(metric: Metric | None) -> str:
    if metric is None:
        return "not measured"
    decimals = figures.decimals_for(metric.low, metric.high)
    return f"{figures.number(metric.value, decimals)} {figures.interval(metric.low, metric.high, decimals)}"


def _parity(export: Export) -> str:
    title = "## Is it the same model?\n\n"
    if (head := export.head_parity) is not None:
        return title + (
            f"Source and export have read {head.num_inputs} texts, the export in {head.runtime} "
            f"{visible.text(head.runtime_version)}. **The proof {'holds' if head.passed else 'failed'}**: "
            f"{head.num_inputs_same_tokens} texts have the same tokens, and outputs differ by at most "
            f"{head.max_difference or 0.0:.3g}, where {head.bound:g} is allowed."
        )
    if export.parity is None:
        return title + "Not proved: the export was not compared with its source."
    proofs = [_proof(export.parity, "the export")]
    if export.gguf_parity is not None:
        proofs.append(_proof(export.gguf_parity, "`adapter.gguf` over the base in float16"))
    return title + "\n\n".join(proofs)


def _proof(parity: ParityReport, what: str) -> str:
    more = parity.nll_increase_nats
    rows = [
        ("Prompts with the same tokens", f"{parity.num_prompts_same_tokens} of {parity.num_prompts}"),
        ("Greedy texts that are equal", f"{parity.num_texts_equal} of {parity.num_prompts}"),
        ("Largest difference of a log-probability", _difference(parity)),
        ("Mean difference", f"{parity.mean_difference_nats:.3g} nats"),
        ("Loss of quality", f"{_signed(more.value)} [{_signed(more.low)}, {_signed(more.high)}] nats a token"),
        ("Perplexity, source and export", f"{parity.source_perplexity:.4g} and {parity.export_perplexity:.4g}"),
    ]
    said = (
        f"Source and export answered {parity.num_prompts} prompts, {what} in {parity.runtime} "
        f"{visible.text(parity.runtime_version)}. **The proof {'holds' if parity.passed else 'failed'}.**"
    )
    if parity.reasons:
        said += "\n\n" + "\n".join(f"- {visible.text(reason, 1_000)}" for reason in parity.reasons)
    return f"{said}\n\n{table(('', ''), [list(row) for row in rows], num_text_columns=2)}"


def _signed(value: float) -> str:
    """Three significant digits, however small."""
    return f"{value:+.3g}".replace("-", figures.MINUS) if value else "0"


def _difference(parity: ParityReport) -> str:
    bound = "no bound in this format" if parity.bound_nats is None else f"at most {parity.bound_nats:.3g} allowed"
    return f"{parity.max_difference_nats:.3g} nats, {bound}"


def _safety(facts: BundleFacts) -> str:
    title = "## Safety\n\n"
    if facts.safety:
        return title + "\n".join(f"- {visible.text(line, 1_000)}" for line in facts.safety)
    said = "Not measured: this model was not tested with prompts for harmful, false or private content"
    if facts.run is None:
        return f"{title}{said}."
    return f"{title}{said}, neither before training nor after. Tuning can weaken what the base model refuses."


def _cost(run: RunFacts | None) -> str:
    title = "## Energy and cost\n\n"
    if run is None:
        return title + "Nothing was trained here. What the base model cost, its makers say."
    bill = run.result.bill
    if bill is None:
        return title + "Not measured."
    budget = run.plan.budget
    energy, money = "Energy: not measured", "Money: not known"
    if bill.energy_kwh is not None:
        source = f" at {visible.text(budget.watts_source)}" if budget is not None else ""
        energy = f"Energy: {_between(bill.energy_kwh)} kWh, estimated: the time{source}; no meter was read"
    if bill.usd is not None:
        source = f" at {visible.text(budget.price_source)}" if budget is not None else ""
        money = f"Money: {_between(bill.usd)} USD, estimated: the time{source}"
    lines = [f"Time: {figures.duration(bill.hours * 3600)}, training and evaluation", energy, money]
    return title + "\n".join(f"- {line}." for line in lines)


def _between(estimate: Estimate) -> str:
    value = figures.rough(estimate.value)
    if estimate.low == estimate.high:
        return value
    return f"{value} [{figures.rough(estimate.low)}, {figures.rough(estimate.high)}]"


def limits_of(facts: BundleFacts, warnings: tuple[str, ...] = ()) -> list[str]:
    """What users of the model must know, one sentence each.

    Args:
        facts: the origin of the model.
        warnings: of the export.
    """
    said = [*warnings, *([f"Of the base model: {facts.base.note}"] if facts.base.note else [])]
    if (evaluation := facts.evaluation) is not None and evaluation.verdict is not None:
        said += evaluation.verdict.caveats
    if facts.run is not None:
        said += facts.run.result.warnings
        fit = facts.run.result.fit
        if fit is not None and fit.kind != "settled":
            said.append(f"{fit.title}: {fit.seen}")
    if facts.base.context_length_tokens is not None:
        said.append(f"Prompt and answer together have room for {facts.base.context_length_tokens:,} tokens.")
    if facts.run is not None:
        said.append("It was tuned for rows such as those above; of other tasks only what is listed here was measured.")
    said.append("Like every language model it writes things that are not true, in the same voice as things that are.")
    # Export and run may give the same warning: each sentence appears once, in the order of first mention.
    return list(dict.fromkeys(said))


def _limits(export: Export, facts: BundleFacts) -> str:
    lines = limits_of(facts, export.warnings)
    return "## Limits\n\n" + "\n".join(f"- {visible.text(line, 1_000)}" for line in lines)


def _licence(base: BaseFacts, *, is_tuned: bool) -> str:
    stated = front_matter.is_stated(base.licence)
    name = visible.text(base.licence or "")
    link = f", {visible.text(base.licence_url)}" if base.licence_url else ""
    texts = ", ".join(code(name) for name in sorted(base.licence_texts))
    follows = front_matter.consequences(base.licence)
    lines = [f"The base model: {name}{link}. {follows}" if stated else follows]
    if texts:
        lines.append(f"The texts that came with it are next to this file: {texts}.")
    elif stated:
        lines.append("The base model came without its text, so there is none next to this file.")
    rows = " The licence of the rows is not stated." if is_tuned else ""
    lines.append(f"Luthier claims no rights in the weights.{rows}")
    return "## Licence\n\n" + "\n\n".join(lines)


_SPLITS: Final = {
    "train": "train",
    "validation": "validation (steered training)",
    "held_out": "held-out (evaluated, once)",
    "replay": "replayed general rows",
    "replay_held_out": "held-out general rows",
}


def card_text(export: Export, facts: BundleFacts, manifest: Manifest) -> str:
    """The whole card. Equal facts give equal bytes.

    Args:
        export: what was exported.
        facts: where it comes from.
        manifest: the manifest of the files other than the card.
    """
    sections = (
        f"# {visible.text(facts.title)}",
        _what(export, facts, manifest),
        _data(facts.run),
        _training(facts.run),
        *outcome_sections(export, facts),
        _check(facts),
    )
    return front_matter_text(export, facts) + "\n" + "\n\n".join(sections) + "\n"


def _what(export: Export, facts: BundleFacts, manifest: Manifest) -> str:
    base, run = facts.base, facts.run
    name = code(base.name)
    # A runtime does not load the documents of the bundle.
    own = [one.num_bytes for one in manifest.files if one.path not in DOCUMENTS]
    head = export.source.task_head
    described = format_of(export.format).description if head is None else HEAD_FORMATS[export.format].description
    made = (
        f"{name}, tuned by run {code(run.run_id)} and exported as {described}."
        if run is not None
        else f"{name}, not tuned by a run, exported as {described}."
    )
    rows = [
        ("Base model", name + (f" ({code(base.hub)} on the hub)" if base.hub and base.hub not in base.name else "")),
        ("Digest of the base's weights", code(base.sha256)),
        ("Architecture", code(base.architecture) if base.architecture else "not stated"),
        ("Parameters of the base", figures.short_count(base.num_parameters) if base.num_parameters else "not stated"),
        ("Context", f"{base.context_length_tokens:,} tokens" if base.context_length_tokens else "not stated"),
        ("Format, precision", f"{export.format}, {export.precision}"),
        ("Size", f"{figures.size(sum(own))} in {len(own)} files, without the documents of the bundle"),
        ("Made", figures.when(facts.made_at)),
    ]
    return f"{made}\n\n{table(('', ''), [list(row) for row in rows], num_text_columns=2)}"


def _data(run: RunFacts | None) -> str:
    title = "## What it was trained on\n\n"
    if run is None:
        return title + "Nothing was trained here. What the base model was trained on, its makers say."
    rows = [_dataset(dataset) for dataset in run.datasets]
    text = title + table(
        ("Split", "File", "SHA-256", "Shape", "Rows", "Used", "Tokens", "Learned"), rows, num_text_columns=4
    )
    return f"{text}\n\n{' '.join(_about_data(run))}"


def _dataset(dataset: DatasetFacts) -> list[str]:
    counts = (dataset.num_rows, dataset.num_examples, dataset.num_tokens, dataset.num_trained_tokens)
    shape = dataset.shape.replace("_", " ")
    return [_SPLITS[dataset.split], code(dataset.name), code(dataset.sha256), shape, *(f"{n:,}" for n in counts)]


def _about_data(run: RunFacts) -> list[str]:
    data = run.plan.data
    streamed = run.result.stream  # the plan knows the first of streamed rows alone
    num_same_prompt = data.num_same_prompt if streamed is None else len(streamed.same_prompt)
    said = ["The rows are not part of this bundle; anyone who has a file can compare its digest."]
    if data.held_out is None:
        said.append("No rows were held out.")
    elif data.num_leaked or num_same_prompt:
        said.append(
            f"Of the held-out rows {data.num_leaked:,} are also in the training rows, and of "
            f"{num_same_prompt:,} more the prompt is."
        )
    else:
        said.append("No held-out row is in the training rows, nor is its prompt.")
    if proved := coverage(data):
        said.append(f"{proved[:1].upper()}{proved[1:]}.")
    if data.part is not None:
        said.append(f"Only a part of the training rows was used: {data.part[0]:.0%} to {data.part[1]:.0%} of them.")
    return said


def _training(run: RunFacts | None) -> str:
    title = "## How it was trained\n\n"
    if run is None:
        return title + "It was not: the weights are those of the base model."
    plan, result = run.plan, run.result
    training = plan.training
    rows = [
        ("Method", _method(plan.method)),
        ("Objective", _objective(plan.objective)),
        ("Loss mask", _mask(plan)),
        *([("Chat template given", settings)] if (settings := _template_settings(plan)) else ()),
        ("Trained parameters", f"{result.num_trainable_parameters:,} ({figures.percent(result.trainable_fraction)})"),
        ("Steps", f"{result.num_steps:,} of {training.num_steps:,}, {training.global_batch_size} examples each"),
        ("Ended because", visible.text(result.stopped_because)),
        ("Optimizer", f"{training.optimizer.name}, weight decay {training.weight_decay:g}"),
        ("Learning rate", f"{training.learning_rate:g}, {_schedule(training)}"),
        ("Warm-up", f"{training.num_warmup_steps:,} of these steps"),
        ("Gradient clipping", f"norm {training.clip_gradient_norm:g}" if training.clip_gradient_norm else "none"),
        ("Longest row", f"{training.max_length_tokens:,} tokens; longer ones: {training.overlong}"),
        ("Precision", f"{training.precision} on {training.device}"),
        ("Seed", f"{training.seed}"),
        ("Training loss", _training_loss(result, plan.objective)),
        ("Best validation loss", _best(run)),
    ]
    text = title + table(("", ""), [list(row) for row in rows], num_text_columns=2)
    return f"{text}\n\nEvery other value is in {code(PLAN)}; the plan's hash is {code(run.plan_hash)}."


def _schedule(training: TrainingPlan) -> str:
    return training.schedule + (f" to {training.min_lr_ratio:g} of it" if training.min_lr_ratio else "")


def _method(method: MethodPlan) -> str:
    parts = [method.name]
    if method.rank:
        parts.append(f"rank {method.rank}, alpha {method.alpha:g}, dropout {method.dropout:g}")
    if method.is_adapter:
        parts.append(f"on {visible.text(target_summary(method))}")
    if method.quantisation:
        parts.append(f"over a base held as {method.quantisation}")
    return "; ".join(parts)


def _objective(objective: ObjectivePlan) -> str:
    rules = OBJECTIVES.find(objective.name)
    title = objective.name if rules is None else f"{rules.name}: {rules.title}" if rules.name else rules.title
    words = [visible.text(title)]
    if objective.beta is not None:
        words.append(f"beta {objective.beta:g}")
    if objective.teacher is not None:
        words.append(f"teacher {code(objective.teacher.name)}")
    if objective.judges:
        words.append(f"answers graded by {', '.join(code(judge.name) for judge in objective.judges)}")
    return ", ".join(words)


def _mask(plan: Plan) -> str:
    if (head := plan.objective.task_head) is not None:
        return f"none: no text is learned; the model gives {what_it_gives(head.kind)}"
    if plan.objective.draws:
        return "answers that the model wrote itself, by their rewards"
    if plan.objective.name == "pretraining" or plan.data.train.shape == "text":
        return "1 on every token of the texts but the first"
    if plan.base_model.template == "plain":
        return "1 on the answers and the token that ends them, 0 on prompts"
    words = ["1 on all that the chat template writes for an assistant's turn, its end included; 0 on everything else"]
    data = plan.data
    if data.learn_reasoning is not None:
        words.append(f"thoughts {'learned, empty ones too' if data.learn_reasoning else 'not learned'}")
    if data.train.num_joined:
        words.append(joined_note(data.train.num_joined, data.train.num_examples, data.train.joined_differs))
    if data.train.num_cut:
        words.append(f"{data.train.num_sequences:,} sequences of {data.train.num_examples:,} rows: {CUT_REASON}")
    return "; ".join(words)


def _template_settings(plan: Plan) -> str:
    """What must be the same in use as in training."""
    data = plan.data
    options = {name: json.dumps(value) for name, value in sorted(data.template_options.items())}
    words = [f"{code(name)} {code(value)}" for name, value in options.items()]
    if data.template_day is not None:
        words.append(f"the date, where the template writes it, {data.template_day}")
    for name in ("system", "tools", "reasoning"):
        if (value := getattr(data, name)) is not None:
            words.append(f"{name} {value.replace('_', ' ')}")
    return ", ".join(words)


def _loss(value: float, objective: ObjectivePlan) -> str:
    unit = objective.loss_unit
    return f"{value:.4g}{f' {unit}' if unit else ''}"


def _training_loss(result: TrainResult, objective: ObjectivePlan) -> str:
    """What was minimised, and what compares with the validation loss where that is something else."""
    minimised = _loss(result.train_loss, objective)
    plain = minimised if result.plain_train_loss is None else _loss(result.plain_train_loss, objective)
    return minimised if plain == minimised else f"{minimised} as minimised; {plain} without regularisation"


def _best(run: RunFacts) -> str:
    result = run.result
    if result.best_validation_loss is None:
        return "not measured"
    return f"{_loss(result.best_validation_loss, run.plan.objective)}, at step {result.best_step:,}"


def _check(facts: BundleFacts) -> str:
    return "\n".join(
        (
            "## This bundle",
            "",
            f"{code(MANIFEST)} names every file with its digest, and its own SHA-256 names the bundle. {code(LINEAGE)} "
            f"says where the files come from, {code(SBOM)} what they are made of. To check that nothing has changed:",
            "",
            "    luthier verify .",
            "",
            "Made by:",
            "",
            *(f"    {line}" for line in facts.command.splitlines()),
        )
    )
