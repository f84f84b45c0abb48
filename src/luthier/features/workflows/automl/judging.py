"""The end of an automatic run: the tuned model against prompting, on held-out rows that nothing was chosen by."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from luthier.core.evaluation import Evaluation
from luthier.core.workflows.automl import AutomlSpec
from luthier.core.workflows.model_comparison import SYSTEM_KINDS, ModelComparisonResult, SystemKind
from luthier.features.evaluations.service import choose_samples
from luthier.features.models.resolve import Candidate, find_candidate
from luthier.features.workflows.model_comparison.answers import ComparisonRows, candidate_of, record, replayed, rows_for
from luthier.features.workflows.model_comparison.rows import rows_that_fit
from luthier.platform.home.context import Context


def judge_at_end(
    context: Context,
    spec: AutomlSpec,
    result: ModelComparisonResult,
    held_out: Path,
    run_id: str | None,
    evaluation_id: str,
) -> Evaluation:
    """Judge the recommended model as it is, with examples in its prompt, and as the run has made it, if there is one.

    Raises what loading and judging raise.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.evaluation.compare import judge, verdict
    from luthier.ml.inference.models import sources

    began = time.perf_counter()
    number, asked = result.recommendation.contender, result.spec
    assert number is not None
    model = sources.pull(asked.contenders[number].model, context.home, context.progress)
    loaded = load_file(held_out, mapping=spec.map)
    # Rows that the model cannot read whole would be judged cut.
    fit = rows_that_fit(context, model, loaded.examples, instruction=spec.goal)
    judged = choose_samples(fit, spec.most_judged)
    material = ComparisonRows(load_file(Path(asked.train_file), mapping=spec.map).examples, judged)
    # Few-shot prompting is the rival of tuning, so it is judged even where zero-shot was recommended.
    there = {"zero-shot": True, "few-shot": asked.few_shot > 0, "tuned": run_id is not None}
    kinds = [kind for kind in SYSTEM_KINDS if there[kind]]
    systems = []
    for kind in kinds:
        candidate = _candidate(context, result, number, kind, material, run_id)
        examples = rows_for(asked, kind, material)
        recorded = record(candidate, examples, asked.max_new_tokens, context.progress)
        # Each model is asked on its own and then replayed, so that only one is in memory at a time.
        systems.append(replayed(candidate, recorded, examples, asked.max_new_tokens))
    results, comparisons = judge(systems, metrics=asked.metrics, seed=spec.seed, progress=context.progress)
    words = None
    # Without a tuned model there is nothing to decide about.
    if run_id is not None:
        words = verdict(results, comparisons, primary=asked.primary, num_rows_in_file=loaded.num_rows)
    found = Evaluation(
        evaluation_id=evaluation_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        held_out_file=str(held_out),
        held_out_sha256=loaded.sha256,
        num_rows=len(judged),
        systems=results,
        comparisons=comparisons,
        verdict=words,
        seconds=time.perf_counter() - began,
    )
    context.evaluations.save(found)
    return found


def _candidate(
    context: Context,
    result: ModelComparisonResult,
    number: int,
    kind: SystemKind,
    material: ComparisonRows,
    run_id: str | None,
) -> Candidate:
    if kind != "tuned":
        return candidate_of(context, result.spec, number, kind, material)
    assert run_id is not None
    return replace(find_candidate(context, run_id), name="tuned")
