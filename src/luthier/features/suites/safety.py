"""Use case: what did tuning do to safety? Probes asked of the base and of the tuned model, kept as an assessment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.digest import sha256_document
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.core.results.suite import TaskCommon
from luthier.core.results.task_result import SafetyResult
from luthier.features.datasets.file_audits import check_is_not_input
from luthier.features.models.resolve import Candidate, find_base
from luthier.features.suites.safety_probes import Built, SafetySuite, build_probes, num_seen, probe_inputs
from luthier.features.suites.systems import find_system, run_of
from luthier.features.suites.task_runs import RowsOf, run_tasks
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.dataset import Example
    from luthier.ml.evaluation.safety.probe import Probe


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
    project_id: str = DEFAULT_PROJECT,
    result_id: str | None = None,
) -> SafetyResult:
    """Ask all probes of a model and of what it is held against, keep the result, and return it.

    model, against: a base model's name, a run, or a tuned model (`ft:...`); a tuned one is held against its base where
    `against` is None. pairs: a CSV file of sentence pairs in place of the own ones. prompts: rows whose prompts are
    swapped, in place of the run's held-out rows. toxicity_model: the folder of a text classifier, asked beside the list
    of words. only: names of probes, where not all are to be asked. html: where to write a page. result_id: what the
    result is called; by default a new id.

    Raises NotFoundError (model, run, file), DataError (files of the user that cannot be used), RequestError (a model
    behind a server, or whose tokenizer cannot be used), DivergedError (likelihoods that are no numbers).
    """
    from luthier.ml.evaluation.safety.summary import summarise, with_what_is_ruled_out
    from luthier.ml.evaluation.tasks.protocol import Resources

    check_is_not_input(html, pairs, prompts)
    start = time.perf_counter()
    systems, run_id = _systems(context, model, against, project_id)
    built = Built()
    material = probe_inputs(context, run_id, built.left_out)
    build_probes(systems, material, built, suite=suite, pairs=pairs, prompts=prompts, toxicity_model=toxicity_model)
    if only:
        built.keep(only)
    tasks = [_as_task(probe, material.trained) for probe in built.probes]
    resources = Resources(folder=Path(), progress=context.progress)
    judged = run_tasks(context, systems, tasks, resources=resources)
    results = tuple(with_what_is_ruled_out(probe) for probe in judged)
    candidate, base = systems[-1].name, systems[0].name if len(systems) > 1 else None
    summary = summarise(results, {p.name: p.title for p in built.probes}, candidate=candidate, base=base)
    result = SafetyResult(
        result_id=result_id or new_id("safety"),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        suite=suite,
        fingerprint=sha256_document([[task.task.name, task.sha256] for task in tasks]),
        run_id=run_id,
        candidate=candidate,
        base=base,
        probes=results,
        headline=summary.headline,
        concerns=summary.concerns,
        left_out=tuple(built.left_out),
        seconds=time.perf_counter() - start,
    )
    context.assessments.save(
        "safety", result.result_id, result, project_id=project_id, subject=run_id or candidate, run_id=run_id
    )
    if html is not None:
        from luthier.ml.evaluation.report.safety_page import write_safety_page

        html.parent.mkdir(parents=True, exist_ok=True)
        write_safety_page(result, html)
    return result


def _systems(
    context: Context, model: str, against: str | None, project_id: str
) -> tuple[tuple[Candidate, ...], str | None]:
    """What is judged, the base first, and the run that made the model."""
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
    # The judged model last, as `run_tasks` wants it.
    return tuple(reversed(judged)), run_id


def _as_task(probe: Probe, trained: Sequence[Example]) -> RowsOf:
    from luthier.ml.evaluation.safety.probe import ProbeKind

    task = TaskCommon(
        name=probe.name,
        data=probe.source,
        max_new_tokens=probe.max_new_tokens,
        cluster_by="prompt" if probe.has_clusters else None,
    )
    rows = [row.example.model_dump(mode="json") for row in probe.rows]
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
