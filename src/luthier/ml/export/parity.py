"""The parity check of an export: run in its real runtime on held-out prompts, and compared with its source.

  tokens        of every prompt, by the export's own tokenizer and template, are the source's
  end token     the runtime ends an answer where the source does
  likelihoods   of what the source holds likeliest lie within a bound (32 and 16 bits; `bound_nats` says why)
  greedy text   is the source's (32 and 16 bits). Where the source itself hardly prefers one token to another, both are
                right: a first differing token counts as equal if the source's likelihoods of the two differ by less
                than the bound, and what follows it is not compared. So does the end, where the source continues with a
                token at which the runtime always ends an answer; a warning names the token
                Where rounding the weights to 16 bits takes the source itself beyond the bound, as where a router then
                takes other experts, the rounded source is what likelihoods and text are compared with
  adapter       the export is not nearer to the bare base than to the source
  quality       the references do not become much less likely: for fewer bits the only measure, with a 95% interval of a
                paired bootstrap over prompts

`compare` gives the findings, `judge` the reasons against an export. `adapter.gguf` is checked in llama.cpp over its
base as GGUF.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.ports import Progress
from luthier.core.records.export import ExportFormat, ExportPrecision, ExportSource, ParityReport
from luthier.ml.export.exporters.proof_prompts import NUM_NEW_TOKENS, compared_tokens
from luthier.ml.export.exporters.registry import format_of, open_export
from luthier.ml.export.runtimes.protocol import Runtime
from luthier.ml.export.source_side import ObservedSource, SourceAnswer, observe_source, reference_nll


@dataclass(slots=True)
class Findings:
    """The findings of the comparison, by prompt, without what could not be compared.

    Attributes:
        num_prompts: compared prompts.
        num_texts_equal: number of them with the same greedy text.
        first_other_text: the difference in the first prompt with another greedy text.
        earlier_ends: tokens at which the runtime ended a text and the source did not.
        vocabulary: number of logits of the export; 0 before the first prompt.
        is_finite: whether all likelihoods are finite.
        differences: [positions, tokens] per prompt, in nats: export to source.
        base_differences: the same, export to the base without the adapter.
        source_base_differences: the same, source to the base without the adapter.
        export_nats, source_nats: totals of each reference.
        num_tokens: scored tokens of each reference.
    """

    num_prompts: int = 0
    num_texts_equal: int = 0
    first_other_text: str | None = None
    earlier_ends: set[int] = field(default_factory=set)
    vocabulary: int = 0
    is_finite: bool = True
    differences: list[NDArray[np.float32]] = field(default_factory=list)
    base_differences: list[NDArray[np.float32]] = field(default_factory=list)
    source_base_differences: list[NDArray[np.float32]] = field(default_factory=list)
    export_nats: list[float] = field(default_factory=list)
    source_nats: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)


_NUM_RESAMPLES = 10_000
_SEED = 20_240_101


def increase_a_token(export_nats: Sequence[float], source_nats: Sequence[float], num_tokens: Sequence[int]) -> Estimate:
    """Export minus source in nats per token, with its 95% interval. Arguments have one item per prompt: totals, and
    tokens.

    Prompts are resampled, not tokens, as tokens of one answer are correlated. One prompt gives no spread, none gives no
    increase.
    """
    if not num_tokens:
        return Estimate(value=0.0, low=0.0, high=0.0)
    differences = np.asarray(export_nats, dtype=np.float64) - np.asarray(source_nats, dtype=np.float64)
    tokens = np.asarray(num_tokens, dtype=np.float64)
    # [resamples, prompts] of indices, with replacement. Seeded: equal findings give equal intervals.
    draws = np.random.default_rng(_SEED).integers(0, len(tokens), size=(_NUM_RESAMPLES, len(tokens)))
    # A ratio of sums: answers are weighted by their tokens, as in perplexity.
    resampled = differences[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value=float(differences.sum() / tokens.sum()), low=float(low), high=float(high))


NOTEWORTHY_LOSS_NATS: Final = 0.02
"""Per token of the references. A larger loss (2% more perplexity) whose interval excludes 0 makes a format "not
recommended" for a model: q8_0 stays below, q4_k_m of a small model does not."""

RUINOUS_LOSS_NATS: Final = 0.693
"""Per token of the references: perplexity has doubled. An export with a larger loss fails, in any format."""

NEARER_BASE_FRACTION: Final = 0.9
"""An export nearer to the base than to the source in this share of prompts has lost the adapter."""


def judge(seen: ObservedSource, findings: Findings, bound: float | None, increase: Estimate) -> tuple[str, ...]:
    """Reasons against using the export because of its outputs, one sentence each; empty if there are none.

    Args:
        seen: what the source gives.
        findings: how the export differs from it.
        bound: the largest allowed difference of log-probabilities in nats; None where rounding has no such bound.
        increase: the 95% interval of the increase of the loss.
    """
    reasons = []
    if findings.vocabulary != seen.vocabulary:
        reasons.append(f"The export knows {findings.vocabulary} tokens, the source {seen.vocabulary}.")
        return tuple(reasons)
    if not findings.is_finite:
        reasons.append("Likelihoods of the export are not finite numbers.")
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
    """What users of a passed export must know."""
    increase = report.nll_increase_nats
    given: tuple[str, ...] = ()
    if report.given_options:
        options = json.dumps(report.given_options, ensure_ascii=False)
        given = (
            f"{report.runtime} sets its own options of the chat template, so send chat_template_kwargs {options} with "
            f"every request, or start it with --chat-template-kwargs '{options}'.",
        )
    if report.earlier_ends:
        ids = ", ".join(map(str, report.earlier_ends))
        given += (
            f"{report.runtime} ends an answer at token {ids}, too, which the model wrote in a proof before it "
            "continued: such "
            "an answer is cut there.",
        )
    if report.unrounded_difference_nats is not None:
        given += (
            f"Rounding the weights to {report.precision} changes log-probabilities of this model by up to "
            f"{report.unrounded_difference_nats:.3g} nats, as where a router takes other experts; the export equals "
            f"the rounded model within {report.max_difference_nats:.3g} nats.",
        )
    # Only a loss that is both significant (interval above 0) and relevant in size.
    if not report.passed or increase.low <= 0 or increase.value <= NOTEWORTHY_LOSS_NATS:
        return given
    return (
        *given,
        f"{report.format} {report.precision} is not recommended for this model: a token of the references is "
        f"{increase.value:.3f} nats less likely (95% interval {increase.low:.3f} to {increase.high:.3f}), "
        f"perplexity {report.export_perplexity:.2f} instead of {report.source_perplexity:.2f}.",
    )


def day_warnings(seen: ObservedSource, report: ParityReport) -> tuple[str, ...]:
    """What users must know about a template with a date: the check used the day of training."""
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
    """Whether the export is nearer to the bare base than to the source in nearly all prompts."""
    pairs = list(zip(findings.differences, findings.base_differences, findings.source_base_differences, strict=False))
    # An adapter without effect cannot be missed.
    if not pairs or max(float(apart.mean()) for _, _, apart in pairs) < 1e-3:
        return None
    # Counted by prompt: one prompt with large differences must not decide alone.
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


NUM_PROMPTS = 32
_SIXTEEN_BITS: Final[Mapping[str, Literal["bfloat16", "float16"]]] = {"bfloat16": "bfloat16", "float16": "float16"}
# Replaces a likelihood that is NaN or infinite, so that reports stay valid JSON.
_IMPOSSIBLE_NATS = -1000.0


def prove(
    source: ExportSource,
    export_folder: Path,
    format: ExportFormat,
    precision: ExportPrecision,
    examples: Sequence[Example],
    progress: Progress,
    *,
    observed: ObservedSource | None = None,
    bound_nats: float | None = None,
) -> ParityReport:
    """Compare an export with its source on held-out examples; a check needs `NUM_PROMPTS` of them.

    Source and export are in memory one after the other, never together.

    Args:
        source: the model.
        export_folder: the exported folder.
        format, precision: format and precision of the export.
        examples: held-out examples.
        progress: advanced by each prompt.
        observed: the source's outputs if it was already run on these examples (`observe_source`).
        bound_nats: as of `compare`.

    Raises:
        RequestError: no example can be used, or the package of the runtime is missing.
        NotFoundError, ModelSourceError: source or export does not load.
        DivergedError: the source gives NaN.
        WorkError: the runtime fails on the export.
    """
    # The source model is freed before the export is opened: one at a time in memory.
    seen = observed if observed is not None else observe_source(source, examples, progress)
    with closing(open_export(format, export_folder, source, in_child=True)) as runtime:
        report, has_other_reasons = _compared(seen, runtime, format, precision, progress, bound_nats)
    rounded_to = _SIXTEEN_BITS.get(precision)
    if report.passed or has_other_reasons or rounded_to is None:
        return report
    rounded = observe_source(source, (), progress, prompts=seen.prompts, rounded_to=rounded_to)
    with closing(open_export(format, export_folder, source, in_child=True)) as runtime:
        to_rounded = compare(rounded, runtime, format, precision, progress, bound_nats=bound_nats)
    return _of_rounded(report, to_rounded) if to_rounded.passed else report


def _of_rounded(report: ParityReport, to_rounded: ParityReport) -> ParityReport:
    """The report on an export that equals its source once that is rounded; its quality is that against the source."""
    return report.model_copy(
        update={
            "num_texts_equal": to_rounded.num_texts_equal,
            "max_difference_nats": to_rounded.max_difference_nats,
            "mean_difference_nats": to_rounded.mean_difference_nats,
            "earlier_ends": to_rounded.earlier_ends,
            "unrounded_difference_nats": report.max_difference_nats,
            "passed": True,
            "reasons": (),
        }
    )


def compare(
    seen: ObservedSource,
    runtime: Runtime,
    format: ExportFormat,
    precision: ExportPrecision,
    progress: Progress,
    *,
    bound_nats: float | None = None,
) -> ParityReport:
    """Compare an export in an open runtime with the outputs of its source; like `prove`, for a given runtime.

    Args:
        seen: the source's outputs.
        runtime: the open export.
        format, precision: format and precision of the export.
        progress: advanced by each prompt.
        bound_nats: how far log-probabilities may lie from the source's; None for the bound of the precision, which
            packed weights do not have.

    Raises:
        RequestError: no prompt fits the context of the export.
        WorkError: the runtime fails on the export.
    """
    return _compared(seen, runtime, format, precision, progress, bound_nats)[0]


def _compared(
    seen: ObservedSource,
    runtime: Runtime,
    format: ExportFormat,
    precision: ExportPrecision,
    progress: Progress,
    bound_nats: float | None,
) -> tuple[ParityReport, bool]:
    """The report, and whether it has a reason against the export that rounding of the weights cannot explain."""
    bound = format_of(format).precisions[precision].bound_nats if bound_nats is None else bound_nats
    answers = _within_context(seen, runtime)
    tokens, findings = compared_tokens(seen.prompts, answers, runtime), Findings(num_prompts=len(answers))
    with progress.task(f"Proving it equal in {runtime.name}", len(answers), "prompts") as task:
        for number, answer in enumerate(answers, start=1):
            _compare(runtime, seen, answer, number, bound, findings)
            task.advance()
    increase = increase_a_token(findings.export_nats, findings.source_nats, findings.num_tokens)
    # A placeholder of one zero if nothing was compared: `judge` gives the reason.
    everywhere = np.concatenate([rows.ravel() for rows in findings.differences] or [np.zeros(1, np.float32)])
    others = (*tokens.reasons, *judge(seen, findings, None, increase))
    reasons = (*tokens.reasons, *judge(seen, findings, bound, increase))
    report = ParityReport(
        format=format,
        precision=precision,
        runtime=runtime.name,
        runtime_version=runtime.version,
        num_prompts=len(answers),
        num_prompts_same_tokens=tokens.num_same,
        num_texts_equal=findings.num_texts_equal,
        max_difference_nats=float(everywhere.max()),
        mean_difference_nats=float(everywhere.mean()),
        bound_nats=bound,
        nll_increase_nats=increase,
        source_perplexity=_perplexity(findings.source_nats, findings.num_tokens),
        export_perplexity=_perplexity(findings.export_nats, findings.num_tokens),
        passed=not reasons,
        reasons=reasons,
        given_options=tokens.given_options,
        earlier_ends=tuple(sorted(findings.earlier_ends)),
    )
    return report, bool(others)


def _within_context(seen: ObservedSource, runtime: Runtime) -> list[SourceAnswer]:
    room = runtime.context_tokens
    fitting = [a for a in seen.answers if room is None or len(a.ids) + NUM_NEW_TOKENS <= room]
    if not any(answer.reference_ids for answer in fitting):
        raise RequestError(
            f"{len(seen.answers)} prompts, none of them with an answer within the {room} tokens of the export",
            expected="held-out examples that the export has room for",
            do="prove the export on shorter held-out rows",
        )
    return fitting


def _compare(
    runtime: Runtime, seen: ObservedSource, answer: SourceAnswer, number: int, bound: float | None, into: Findings
) -> None:
    """Add the export's results for one prompt to the findings."""
    # One prompt shows that the vocabulary differs: rows of different width cannot be compared.
    if into.vocabulary not in (0, seen.vocabulary):
        return
    rows = runtime.log_probabilities(answer.ids, answer.start)
    into.vocabulary = rows.shape[1]
    if into.vocabulary != seen.vocabulary:
        return
    into.is_finite &= bool(np.isfinite(rows).all())
    rows = np.nan_to_num(rows, nan=_IMPOSSIBLE_NATS, posinf=_IMPOSSIBLE_NATS, neginf=_IMPOSSIBLE_NATS)
    # [positions, NUM_TOP]: the export's likelihoods of the source's likeliest tokens.
    nats = np.take_along_axis(rows, answer.top.ids, axis=1)
    into.differences.append(np.abs(nats - answer.top.nats))
    if answer.base_nats is not None:
        into.base_differences.append(np.abs(nats - answer.base_nats))
        into.source_base_differences.append(np.abs(answer.top.nats - answer.base_nats))
    if num_scored := _num_scored(answer):
        num_prompt = len(answer.prompt_ids)
        into.export_nats.append(reference_nll(rows, answer.start, num_prompt, answer.reference_ids))
        into.source_nats.append(answer.nll_nats)
        into.num_tokens.append(num_scored)
    found = runtime.greedy(answer.prompt_ids, NUM_NEW_TOKENS)
    following = answer.greedy_ids[len(found) : len(found) + 1]
    if list(found) == list(answer.greedy_ids[: len(found)]) and runtime.end_ids.issuperset(following) and following:
        # The runtime would end there with any weights: this is no evidence against them.
        into.earlier_ends.update(following)
        other = None
    else:
        other = _other_text(found, answer, seen.prompts.end_id, bound or 0.0)
    into.num_texts_equal += other is None
    if other is not None and into.first_other_text is None:
        into.first_other_text = f"prompt {number} of {into.num_prompts}: {other}"


def _other_text(found: Sequence[int], answer: SourceAnswer, end_id: int, bound: float) -> str | None:
    """The difference of the export's greedy text to the source's; None if equal, or different only after a near-tie."""
    expected, same = answer.greedy_ids, 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    if same == len(expected) == len(found):
        return None
    ids, nats = answer.greedy_top.ids[same], answer.greedy_top.nats[same]
    written = found[same] if same < len(found) else end_id
    # A token outside the likeliest ones is at least as far behind as the last of them.
    behind = float(nats[0] - (nats[ids == written][0] if written in ids else nats[-1]))
    if behind < bound:
        return None
    return (
        f"from new token {same + 1} on it writes {list(found[same : same + 5])} where the source writes "
        f"{list(expected[same : same + 5])}, which it holds likelier by {behind:.3g} nats"
    )


def _num_scored(answer: SourceAnswer) -> int:
    """The number of reference tokens within the compared positions."""
    return len(answer.reference_ids) - max(0, answer.start - (len(answer.prompt_ids) - 1))


def _perplexity(nats: Sequence[float], num_tokens: Sequence[int]) -> float:
    # exp(700) is close to the largest float64.
    return math.exp(min(sum(nats) / max(sum(num_tokens), 1), 700.0))


_BASE_PRECISION: Final[ExportPrecision] = "float16"


def prove_gguf_adapter(
    source: ExportSource, file: Path, observed: ObservedSource, scratch: Path, progress: Progress, tools: Path
) -> ParityReport:
    """Run the adapter in `file` over its base in float16 and compare it like a GGUF of the merged model.

    The bound is that of GGUF in float16: only the base is rounded.

    Args:
        source: the model.
        file: the adapter as GGUF.
        observed: the source's outputs, with an unpacked base.
        scratch: a folder for the base, which is deleted afterwards (2 bytes per weight, temporarily 4 more).
        progress: shows conversion and check.
        tools: the folder of the converter.

    Raises:
        WorkError: the converter fails or is not available.
        RequestError: llama.cpp does not support the base.
    """
    from luthier.ml.export.exporters import gguf

    # The base alone, under its own name: llama.cpp applies the adapter at run time.
    base = source.model_copy(update={"name": source.base_name, "adapter_path": None, "adapter_sha256": None})
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".base-") as folder:
        made = Path(folder) / "base"
        made.mkdir()
        gguf.write(base, made, _BASE_PRECISION, progress, tools)
        return prove_adapter_over(base, file, made, _BASE_PRECISION, observed, progress)


def prove_adapter_over(
    source: ExportSource,
    file: Path,
    base: Path,
    precision: ExportPrecision,
    observed: ObservedSource,
    progress: Progress,
    *,
    bound_nats: float | None = None,
) -> ParityReport:
    """Run a GGUF adapter over its base, which is GGUF already, and compare it as a GGUF of the merged model would be.

    Args:
        source: what the runtime is opened for.
        file: the adapter.
        base: the folder of the base's file.
        precision: of the base, whose bound counts.
        observed: the side of the model with its adapter, the base not packed.
        progress: shows the proof.
        bound_nats: as of `compare`.

    Raises:
        WorkError: llama.cpp stops on it.
        RequestError: llama.cpp cannot put the adapter over the base.
    """
    with closing(open_export("gguf", base, source, file, in_child=True)) as runtime:
        return compare(observed, runtime, "gguf", precision, progress, bound_nats=bound_nats)
