"""The card of a model: README.md with the hub's front matter, filled from facts; what is not known, it says so."""

from __future__ import annotations

import json
from typing import Final

from luthier.core.dataset import CUT_REASON, joined_note
from luthier.core.plan import MethodPlan, ObjectivePlan, Plan
from luthier.core.records.export import Export
from luthier.core.split_provenance import coverage
from luthier.ml.charts import figures, markdown
from luthier.ml.charts.markdown import code, table
from luthier.ml.export.bundle.card_outcome import outcome_sections
from luthier.ml.export.bundle.facts import BundleFacts, DatasetFacts, RunFacts
from luthier.ml.export.bundle.front_matter import front_matter_text
from luthier.ml.export.bundle.manifest import DOCUMENTS, LINEAGE, MANIFEST, PLAN, SBOM, Manifest
from luthier.ml.export.exporters.registry import format_of

_OBJECTIVES: Final = {
    "sft": "supervised fine-tuning",
    "pretraining": "continued pretraining",
    "distillation": "distillation from a teacher",
    "dpo": "DPO",
    "ipo": "IPO",
    "orpo": "ORPO",
    "kto": "KTO",
    "simpo": "SimPO",
    "grpo": "GRPO: reinforcement learning from rewards",
}
_SPLITS: Final = {
    "train": "train",
    "validation": "validation (steered training)",
    "held_out": "held-out (judged, once)",
    "replay": "replayed general rows",
    "replay_held_out": "held-out general rows",
}


def card_text(export: Export, facts: BundleFacts, manifest: Manifest) -> str:
    """The whole card. The same facts give the same bytes.

    Args:
        export: what was exported.
        facts: where it comes from.
        manifest: of the files that are there besides the card.
    """
    sections = (
        f"# {markdown.text(facts.title)}",
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
    # The documents of the bundle are not part of what a runtime loads.
    own = [one.num_bytes for one in manifest.files if one.path not in DOCUMENTS]
    described = format_of(export.format).description
    made = (
        f"{name}, tuned by run {code(run.run_id)} and exported as {described}."
        if run is not None
        else f"{name} as it is, tuned by no run, exported as {described}."
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
    said = ["The rows are not part of this bundle; whoever has a file can compare its digest."]
    if data.held_out is None:
        said.append("No rows were held out.")
    elif data.num_leaked or data.num_same_prompt:
        said.append(
            f"Of the held-out rows {data.num_leaked:,} also stand in the training rows, and of "
            f"{data.num_same_prompt:,} more the prompt does."
        )
    else:
        said.append("No held-out row stands in the training rows, nor does its prompt.")
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
        ("Ended because", markdown.text(result.stopped_because)),
        ("Optimizer", f"{training.optimizer.name}, weight decay {training.weight_decay:g}"),
        ("Learning rate", f"{training.learning_rate:g}, {training.schedule}"),
        ("Warm-up", f"{training.num_warmup_steps:,} of these steps"),
        ("Gradient clipping", f"norm {training.clip_gradient_norm:g}"),
        ("Longest row", f"{training.max_length_tokens:,} tokens; longer ones: {training.overlong}"),
        ("Precision", f"{training.precision} on {training.device}"),
        ("Seed", f"{training.seed}"),
        ("Training loss", _loss(result.train_loss, plan.objective)),
        ("Best validation loss", _best(run)),
    ]
    text = title + table(("", ""), [list(row) for row in rows], num_text_columns=2)
    return f"{text}\n\nEvery other value stands in {code(PLAN)}; the plan's hash is {code(run.plan_hash)}."


def _method(method: MethodPlan) -> str:
    parts = [method.name]
    if method.rank:
        parts.append(f"rank {method.rank}, alpha {method.alpha:g}, dropout {method.dropout:g}")
    if method.is_adapter:
        parts.append(f"on {markdown.text(method.target_summary)}")
    if method.quantisation:
        parts.append(f"over a base held as {method.quantisation}")
    return "; ".join(parts)


def _objective(objective: ObjectivePlan) -> str:
    words = [_OBJECTIVES.get(objective.name, markdown.text(objective.name))]
    if objective.beta is not None:
        words.append(f"beta {objective.beta:g}")
    if objective.teacher is not None:
        words.append(f"teacher {code(objective.teacher.name)}")
    return ", ".join(words)


def _mask(plan: Plan) -> str:
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
    """What must be the same in use as it was in training."""
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
            f"says where the files come from, {code(SBOM)} what they are made of. Whether all of it is as it was:",
            "",
            "    luthier verify .",
            "",
            "Made by:",
            "",
            *(f"    {line}" for line in facts.command.splitlines()),
        )
    )
