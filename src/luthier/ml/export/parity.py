"""The proof of an export: run in its real runtime on held-out prompts, and compared with the source it was made of.

tokens        of every prompt, by the export's own tokenizer and template, are the source's
end token     the runtime ends an answer where the source does
likelihoods   of what the source holds likeliest lie within the bound that the format declares (32 and 16 bits)
greedy text   is the source's (32 and 16 bits). Where the source itself hardly prefers one token to another, both are
              right: a first differing token counts as equal if the source's likelihoods of the two differ by less
              than the bound, and what follows it is not compared
adapter       the export is not nearer to the bare base than to the source
quality       the references do not become much less likely: for fewer bits the only measure, with a 95% interval
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportFormat, ExportPrecision, ExportSource, ParityReport
from luthier.ml.export.exporters.proof_prompts import NUM_NEW_TOKENS, compared_tokens
from luthier.ml.export.exporters.registry import format_of, open_export
from luthier.ml.export.findings import Findings
from luthier.ml.export.paired_interval import increase_a_token
from luthier.ml.export.parity_judgement import judge
from luthier.ml.export.runtimes.protocol import Runtime
from luthier.ml.export.source_side import ObservedSource, SourceAnswer, observe_source, reference_nll

NUM_PROMPTS = 32
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
) -> ParityReport:
    """Compare an export with its source on held-out examples; `NUM_PROMPTS` of them make a proof.

    Source and export are in memory one after the other.

    Args:
        source: the model.
        export_folder: what was exported.
        format, precision: of the export.
        examples: held-out.
        progress: advanced by each prompt.
        observed: the source's side where it was run on these examples before (`observe_source`).

    Raises:
        RequestError: no example can be used, or the package of the runtime is not installed.
        NotFoundError, ModelSourceError: source or export does not load.
        DivergedError: the source has NaN in it.
    """
    # The source's model is gone when the export is opened: one at a time in memory.
    seen = observed if observed is not None else observe_source(source, examples, progress)
    runtime = open_export(format, export_folder, source)
    try:
        return compare(seen, runtime, format, precision, progress)
    finally:
        runtime.close()


def compare(
    seen: ObservedSource, runtime: Runtime, format: ExportFormat, precision: ExportPrecision, progress: Progress
) -> ParityReport:
    """What an export does in an open runtime against what its source did; `prove` for a runtime that is at hand."""
    bound, answers = format_of(format).precisions[precision].bound_nats, _within_context(seen, runtime)
    tokens, findings = compared_tokens(seen.prompts, answers, runtime), Findings(num_prompts=len(answers))
    with progress.task(f"Proving it equal in {runtime.name}", len(answers), "prompts") as task:
        for number, answer in enumerate(answers, start=1):
            _compare(runtime, seen, answer, number, bound, findings)
            task.advance()
    increase = increase_a_token(findings.export_nats, findings.source_nats, findings.num_tokens)
    # A placeholder of one zero where nothing was compared: `judge` says why there is nothing.
    everywhere = np.concatenate([rows.ravel() for rows in findings.differences] or [np.zeros(1, np.float32)])
    reasons = (*tokens.reasons, *judge(seen, findings, bound, increase))
    return ParityReport(
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
    )


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
    """Add to the findings what the export makes of one prompt."""
    # One prompt has shown another vocabulary: rows of unlike width cannot be compared.
    if into.vocabulary not in (0, seen.vocabulary):
        return
    rows = runtime.log_probabilities(answer.ids, answer.start)
    into.vocabulary = rows.shape[1]
    if into.vocabulary != seen.vocabulary:
        return
    into.is_finite &= bool(np.isfinite(rows).all())
    rows = np.nan_to_num(rows, nan=_IMPOSSIBLE_NATS, posinf=_IMPOSSIBLE_NATS, neginf=_IMPOSSIBLE_NATS)
    # [positions, NUM_TOP]: the export's likelihoods of the tokens that the source holds likeliest.
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
    other = _other_text(runtime.greedy(answer.prompt_ids, NUM_NEW_TOKENS), answer, seen.prompts.end_id, bound or 0.0)
    into.num_texts_equal += other is None
    if other is not None and into.first_other_text is None:
        into.first_other_text = f"prompt {number} of {into.num_prompts}: {other}"


def _other_text(found: Sequence[int], answer: SourceAnswer, end_id: int, bound: float) -> str | None:
    """How the export's greedy text differs from the source's; None where it does not, or only from a near-tie on."""
    expected, same = answer.greedy_ids, 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    if same == len(expected) == len(found):
        return None
    ids, nats = answer.greedy_top.ids[same], answer.greedy_top.nats[same]
    written = found[same] if same < len(found) else end_id
    # What is not even among the likeliest is at least as far behind as the last of them.
    behind = float(nats[0] - (nats[ids == written][0] if written in ids else nats[-1]))
    if behind < bound:
        return None
    return (
        f"from new token {same + 1} on it writes {list(found[same : same + 5])} where the source writes "
        f"{list(expected[same : same + 5])}, which it holds likelier by {behind:.3g} nats"
    )


def _num_scored(answer: SourceAnswer) -> int:
    """How many tokens of the reference lie within the positions that are compared."""
    return len(answer.reference_ids) - max(0, answer.start - (len(answer.prompt_ids) - 1))


def _perplexity(nats: Sequence[float], num_tokens: Sequence[int]) -> float:
    # exp(700) is near the largest float64.
    return math.exp(min(sum(nats) / max(sum(num_tokens), 1), 700.0))
