"""What the findings of a proof mean: the reasons against an export, and what its user must know."""

from __future__ import annotations

import json

import numpy as np

from luthier.core.records.export import Interval, ParityReport
from luthier.ml.export.exporters.registry import format_of
from luthier.ml.export.findings import Findings
from luthier.ml.export.parity_bounds import NEARER_BASE_FRACTION, NOTEWORTHY_LOSS_NATS, RUINOUS_LOSS_NATS
from luthier.ml.export.source_side import ObservedSource


def judge(seen: ObservedSource, findings: Findings, bound: float | None, increase: Interval) -> tuple[str, ...]:
    """Why the export must not be used for what it computes, one sentence each; nothing where it may."""
    reasons = []
    if findings.vocabulary != seen.vocabulary:
        reasons.append(f"The export knows {findings.vocabulary} tokens, the source {seen.vocabulary}.")
        return tuple(reasons)
    if not findings.is_finite:
        reasons.append("Likelihoods of the export are no finite numbers.")
    if lost := _lost_adapter(findings):
        reasons.append(lost)
    if bound is not None:
        reasons += _beyond_bound(findings, bound)
    if increase.value > RUINOUS_LOSS_NATS:
        reasons.append(
            f"The references are {increase.value:.2f} nats a token less likely than by the source: "
            "their perplexity has more than doubled."
        )
    return tuple(reasons)


def parity_warnings(report: ParityReport) -> tuple[str, ...]:
    """What a user of an export that has passed must know before using it."""
    increase = report.nll_increase_nats
    given: tuple[str, ...] = ()
    if report.given_options:
        options = json.dumps(report.given_options, ensure_ascii=False)
        given = (
            f"{report.runtime} gives the chat template options of its own, so send chat_template_kwargs {options} with "
            f"every request, or start it with --chat-template-kwargs '{options}'.",
        )
    # Only a loss that is both certain (interval above 0) and large enough to matter.
    if not report.passed or increase.low <= 0 or increase.value <= NOTEWORTHY_LOSS_NATS:
        return given
    return (
        *given,
        f"{report.format} {report.precision} is not recommended for this model: a token of the references is "
        f"{increase.value:.3f} nats less likely (95% interval {increase.low:.3f} to {increase.high:.3f}), "
        f"perplexity {report.export_perplexity:.2f} instead of {report.source_perplexity:.2f}.",
    )


def day_warnings(seen: ObservedSource, report: ParityReport) -> tuple[str, ...]:
    """What a user must know of a template that writes the date: the proof was made on the day of training."""
    if seen.prompts.template_day is not None:
        return (
            f"the chat template writes the date: in training and in this proof it was {seen.prompts.template_day}, and "
            f"{report.runtime} by itself writes today's",
        )
    if seen.prompts.filled and format_of(report.format).fills_in_date:
        return (
            f"{report.runtime} gives the chat template today's date as {' and '.join(seen.prompts.filled)}: in "
            "training and in this proof the template wrote what it has by itself",
        )
    return ()


def _lost_adapter(findings: Findings) -> str | None:
    """Whether the export is nearer to the base without the adapter than to the source, in nearly all prompts."""
    pairs = list(zip(findings.differences, findings.base_differences, findings.source_base_differences, strict=False))
    # An adapter that changes nothing cannot be missed.
    if not pairs or max(float(apart.mean()) for _, _, apart in pairs) < 1e-3:
        return None
    # Counted by prompt: one prompt with large differences must not decide.
    num_nearer_base = sum(float(to_base.mean()) < float(to_source.mean()) for to_source, to_base, _ in pairs)
    if num_nearer_base < NEARER_BASE_FRACTION * len(pairs):
        return None
    to_source, to_base = (
        float(np.mean([rows.mean() for rows in group])) for group in list(zip(*pairs, strict=True))[:2]
    )
    return (
        f"In {num_nearer_base} of {len(pairs)} prompts the export is nearer to the base without the adapter "
        f"({to_base:.3g} nats) than to the source ({to_source:.3g}): the adapter is not in it, or was lost in rounding."
    )


def _beyond_bound(findings: Findings, bound: float) -> list[str]:
    reasons = []
    worst = max((float(rows.max()) for rows in findings.differences), default=0.0)
    if worst > bound:
        num_beyond = sum(bool(rows.max() > bound) for rows in findings.differences)
        reasons.append(
            f"Log-probabilities differ by up to {worst:.3g} nats, in {num_beyond} of {findings.num_prompts} prompts by "
            f"more than the {bound:g} allowed: the weights are not the source's."
        )
    if findings.first_other_text is not None:
        num_other = findings.num_prompts - findings.num_texts_equal
        reasons.append(f"The greedy text of {num_other} prompts differs; {findings.first_other_text}.")
    return reasons
