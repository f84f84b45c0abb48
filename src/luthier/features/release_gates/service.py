"""Use cases: read release gates, evaluate a model's stored results by them, and find models without an evaluation.

The gates of a deployment are `gates/PROJECT.yaml` in the home, or else `gate.yaml` there, and in addition the one that
a command names: a command can require more, never less. Without a gate, a run that was never evaluated would reach all
users without a warning. Base models are exempt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError, validation_reason
from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id, sha256_file
from luthier.core.records.calibration import Target
from luthier.core.records.deployment import Share
from luthier.core.results.release_gate import Gate
from luthier.core.results.suite import GateOutcome, SafetyResult, SuiteResult
from luthier.core.text.counted import counted
from luthier.features.models.names import is_tuned_name
from luthier.features.models.result_files import local_weights, result_saved_at
from luthier.features.recipes.file import FileKind, read_recipe_file
from luthier.features.serving.targets import EXPORT
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.gate import Results

_GATE: Final = FileKind(
    word="gate",
    needs="a mapping with the key rules",
    begin="write `rules:` and below it `- {metric: TASK.METRIC, at_least: 0.8}`",
    hint="give the path of the gate's YAML file",
    refuse=RequestError,
)
MAX_GATE_CHARACTERS: Final = 50_000
_MAX_EVALUATIONS: Final = 10
"""The newest of a run that are searched for one of its present weights."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Weights that a training client has saved, or a job as a checkpoint.

    Attributes:
        at: when, in seconds since 1970.
        adapter_path: their folder.
    """

    at: float
    adapter_path: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose results are those of a target.

    Attributes:
        run_id: the run whose outcome it is; None for others.
        base: the base model that it is; None for others.
        checkpoint: the checkpoint that it is, by its own name; None for others.
        saved: when that checkpoint was saved, and where: its name may have had other weights before.
        set_aside: why there is none, or what does not count, a sentence each.
    """

    run_id: str | None = None
    base: str | None = None
    set_aside: tuple[str, ...] = ()
    checkpoint: str | None = None
    saved: Saved | None = None

    @property
    def subject(self) -> str | None:
        """What its results are stored by; None where there is no such thing."""
        return self.run_id or self.base or self.checkpoint


def read_gate(path: Path) -> Gate:
    """The rules of a file.

    Raises:
        NotFoundError: There is no such file.
        RequestError: The file is no gate; the message names every wrong place.
    """
    return _gate_of(f"gate {path}", read_recipe_file(path, _GATE).keys)


def _gate_of(name: str, keys: dict[str, Any]) -> Gate:
    """The rules in a mapping. Raises RequestError naming every wrong place."""
    try:
        return Gate.model_validate_json(json.dumps(keys))
    except (ValidationError, TypeError, ValueError) as error:
        problems = error.errors(include_url=False) if isinstance(error, ValidationError) else ()
        lines = [f"{'.'.join(map(str, one['loc'])) or 'rules'}: {validation_reason(one)}" for one in problems]
        lines = lines or [str(error)]
        raise RequestError(
            "\n    ".join([f"{name} has {len(lines)} wrong place{'s' if len(lines) > 1 else ''}:", *lines]),
            expected="rules with metric, one of at_least and at_most, and else known keys alone",
            do="correct the places named; docs/release_gates.md shows all keys",
        ) from error


def own_gate(context: Context, project_id: str) -> Path:
    """The file of a project's own rules, which may not be there."""
    return context.home / "gates" / f"{project_id}.yaml"


def set_gate(context: Context, caller: Caller, text: str) -> Gate:
    """Write the rules of the caller's project; they hold from the next deployment on.

    Args:
        context: The home.
        caller: Of the project.
        text: YAML, as in a gate's file.

    Raises:
        RequestError: It is no plain YAML, or holds no right rules; every wrong place is named.
    """
    from luthier.core.system.files import replace_text
    from luthier.core.text.plain_yaml import has_alias, parse_yaml

    # Aliases expand: a few lines of nested ones grow to gigabytes.
    if len(text) > MAX_GATE_CHARACTERS or has_alias(text):
        raise RequestError(
            f"a gate of {len(text):,} characters, or one that repeats a part by its name (*name)",
            expected=f"plain YAML of at most {MAX_GATE_CHARACTERS:,} characters",
            do="write its rules in full",
        )
    keys, _ = parse_yaml("the gate", text)
    if not isinstance(keys, dict):
        raise RequestError("the gate holds no keys", expected=_GATE.needs, do=_GATE.begin)
    gate, path = _gate_of("the gate", keys), own_gate(context, caller.project_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with context.database.transaction():
        replace_text(path, text if text.endswith("\n") else f"{text}\n")
        facts = {"sha256": sha256_file(path), "rules": len(gate.rules)}
        record(context, caller, "gate.changed", caller.project_id, facts)
    return gate


def remove_gate(context: Context, caller: Caller) -> None:
    """Remove the project's own rules; those of the home hold again.

    Raises:
        NotFoundError: There are none.
    """
    path = own_gate(context, caller.project_id)
    try:
        with context.database.transaction():
            record(context, caller, "gate.removed", caller.project_id, {"sha256": sha256_file(path)})
            path.unlink()
    except FileNotFoundError:
        raise NotFoundError(
            "this project has set no gate", expected="rules that were set before", do="see the page of the gate"
        ) from None


def default_gate(context: Context, project_id: str) -> Path | None:
    """The file whose rules hold for every deployment of a project; None where there is none."""
    own = own_gate(context, project_id)
    # The project's own rules replace those of the home, they do not add to them.
    return next((path for path in (own, context.home / "gate.yaml") if path.is_file()), None)


def gates_of(context: Context, project_id: str, given: Path | None = None) -> list[Path]:
    """All gates that hold for a deployment: the project's, and the one that was given."""
    return [path for path in (default_gate(context, project_id), given) if path is not None]


def check_gate(
    context: Context,
    project_id: str,
    gate_file: Path,
    *,
    suite: SuiteResult | None = None,
    safety: SafetyResult | None = None,
    evaluation: Evaluation | None = None,
) -> GateOutcome:
    """Check given results by the rules of a gate.

    Args:
        context: of the home.
        project_id: whose gate it is.
        gate_file: the rules.
        suite: result of a suite; None for none.
        safety: result of the safety check; None for none.
        evaluation: of the candidate; None for none.

    Raises:
        NotFoundError: No such file.
        RequestError: The file holds no rules; every wrong place is named.
    """
    from luthier.ml.evaluation.gate import Results

    suites = () if suite is None else (suite,)
    return _checked(context, project_id, gate_file, Results(suites=suites, safety=safety, evaluation=evaluation))


def newest_outcome(context: Context, project_id: str, run_id: str, gate_file: Path) -> GateOutcome:
    """Hold the newest stored results of a run against a gate: of each suite, of safety, and its own evaluation.

    None of them counts where the weights on the disk are not those that the run made.

    Raises:
        NotFoundError: No such file.
        RequestError: The file holds no rules; every wrong place is named.
    """
    return _checked(context, project_id, gate_file, _results(context, project_id, Origin(run_id=run_id)))


def outcome_of_target(context: Context, caller: Caller, share: Share, gate_file: Path) -> GateOutcome:
    """The same for what a deployment is to route to; an export answers for the model that it was made from."""
    judged = judged_behind(context, caller, share)
    return _checked(context, caller.project_id, gate_file, _results(context, caller.project_id, judged))


def judged_behind(context: Context, caller: Caller, share: Share) -> Origin:
    """Whose results are those of a target; none for an export of other weights than its run has now."""
    judged = _origin(context, caller, share)
    is_export = share.target.startswith(EXPORT)
    if judged.run_id is None or not is_export or _holds_present_result(context, caller, share, judged.run_id):
        return judged
    why = f"{share.target} was made of other weights than {judged.run_id} has now, and its results are about these."
    return Origin(set_aside=(why,))


def _origin(context: Context, caller: Caller, share: Share) -> Origin:
    """The run, base model or checkpoint that a target comes from."""
    target = share.target
    if target.startswith(EXPORT):
        target = _source_of(context, caller, target.removeprefix(EXPORT), share.folder)
        if not target:
            return Origin(set_aside=(f"Of the export {share.target} it is not known here what it was made from.",))
    if is_tuned_name(target):
        tuned = context.tuned_models.get(caller.project_id, target)
        if tuned.step is not None:
            words = f"{target} is a checkpoint: the results of its run are about its final weights."
            return Origin(set_aside=(words,), checkpoint=target, saved=Saved(tuned.created_at, tuned.adapter_path))
        return Origin(run_id=tuned.run_id)
    return Origin(run_id=target) if is_id(target, "run") else Origin(base=target)


def own_run_behind(context: Context, caller: Caller, share: Share) -> Origin:
    """The run that made a target, for what reads its recipe or rows: that of another project counts as unknown.

    A project that permits its model to others gives away neither.
    """
    judged = _origin(context, caller, share)
    owner = None if judged.run_id is None else context.runs.project_of(judged.run_id)
    if owner in (None, caller.project_id):
        return judged
    return Origin(set_aside=(f"{share.target} was made by another project, which shares the model alone",))


def newest_suites(context: Context, project_id: str, subject: str) -> list[SuiteResult]:
    """The newest result of each suite, newest first: of one model or run."""
    ids = context.assessments.suites(project_id, subject).values()
    return [context.assessments.get("suite", SuiteResult, project_id, one) for one in ids]


def newest_safety(context: Context, project_id: str, subject: str) -> SafetyResult | None:
    """The newest safety check of a model or a run."""
    found = context.assessments.list("safety", SafetyResult, project_id, subject=subject, limit=1)
    return found[0] if found else None


def _source_of(context: Context, caller: Caller, name: str, folder: str | None) -> str:
    """The run or base model that an export was made from; empty where that is not known."""
    if is_id(name, "exp"):
        return context.exports.get(caller.project_id, name).source
    from luthier.ml.export.bundle.provenance import read_origin

    found = read_origin(Path(folder or "")).run_ids
    return next((one for one in found if context.runs.project_of(one) == caller.project_id), "")


def _holds_present_result(context: Context, caller: Caller, share: Share, run_id: str) -> bool:
    """Whether an export was made of the result that its run has now; true where a digest is not known."""
    exported = _exported_digest(context, caller, share)
    try:
        result = context.runs.get(run_id).result
    except NotFoundError:
        return True
    present = None if result is None else result.adapter_sha256
    return exported is None or present is None or exported == present


def _exported_digest(context: Context, caller: Caller, share: Share) -> str | None:
    """The digest of the trained weights that an export was made of; None where it is not known."""
    name = share.target.removeprefix(EXPORT)
    if is_id(name, "exp"):
        made = context.exports.get(caller.project_id, name).document
        return None if made is None else made.source.adapter_sha256
    from luthier.ml.export.bundle.provenance import read_origin

    return read_origin(Path(share.folder or "")).trained_sha256


def _checked(context: Context, project_id: str, gate_file: Path, results: Results) -> GateOutcome:
    from luthier.ml.evaluation.gate import check

    def is_calibrated(judge: str, target: Target) -> bool:
        from luthier.features.judges import service

        return service.is_calibrated(context, project_id, judge, target) is not None

    gate = read_gate(gate_file)
    return check(gate, results, gate_sha256=sha256_file(gate_file), is_calibrated=is_calibrated)


def _results(context: Context, project_id: str, judged: Origin) -> Results:
    from luthier.ml.evaluation.gate import Results

    subject = judged.subject
    if subject is None:
        return Results(set_aside=judged.set_aside)
    suites = newest_suites(context, project_id, subject)
    safety = newest_safety(context, project_id, subject)
    if judged.run_id is None:
        found = Results(suites=tuple(suites), safety=safety, set_aside=judged.set_aside)
        return _of_present_result(found, judged.saved, whose=judged.checkpoint or "")
    # Results are of the weights that the run made: replaced files would be deployed under their name.
    if not _has_its_weights(context, judged.run_id):
        return Results(set_aside=("The weights on the disk differ from those of the run, so no result counts.",))
    evaluation, aside = _own_evaluation(context, project_id, judged.run_id)
    found = Results(suites=tuple(suites), safety=safety, evaluation=evaluation, set_aside=aside)
    return _of_present_result(found, _saved_result(context, judged.run_id), whose="the run")


def _of_present_result(found: Results, saved: Saved | None, *, whose: str) -> Results:
    """What is about the present weights of a run or checkpoint, and not about others that a training client saved."""
    suites = tuple(one for one in found.suites if _is_about(one, saved))
    safety = found.safety if found.safety is None or _is_about(found.safety, saved) else None
    evaluation = found.evaluation if found.evaluation is None or _is_about(found.evaluation, saved) else None
    num_old = len(found.suites) - len(suites) + (safety is not found.safety) + (evaluation is not found.evaluation)
    if not num_old:
        return found
    why = f"{counted(num_old, 'result is', 'results are')} of weights that {whose} had before, and not counted."
    return replace(found, suites=suites, safety=safety, evaluation=evaluation, set_aside=(*found.set_aside, why))


def is_of_present_result(context: Context, run_id: str, one: SuiteResult | SafetyResult | Evaluation) -> bool:
    """Whether a result of a run is about the weights that it has now, and not about those of an earlier save."""
    return _is_about(one, _saved_result(context, run_id))


def present_evaluation(context: Context, run_id: str) -> Evaluation | None:
    """The newest evaluation of a run that is about the weights that it has now; None where there is none."""
    return _evaluation_of(context, run_id, _saved_result(context, run_id))


def _evaluation_of(context: Context, run_id: str, saved: Saved | None) -> Evaluation | None:
    # Without a training client the newest one is.
    found = context.evaluations.list(run_id=run_id, limit=1 if saved is None else _MAX_EVALUATIONS)
    return next((one for one in found if _is_about(one, saved)), None)


def _saved_result(context: Context, run_id: str) -> Saved | None:
    """The present result of a run whose training client can save another; None for other runs."""
    at, result = result_saved_at(context, run_id), context.runs.get(run_id).result
    return None if at is None or result is None or result.adapter_path is None else Saved(at, result.adapter_path)


def _is_about(one: SuiteResult | SafetyResult | Evaluation, saved: Saved | None) -> bool:
    if saved is None:
        return True
    # Of a client each save has its own folder. The result of a run goes back to an earlier one where the last was
    # deleted: what was evaluated since is then about others.
    own = _client_folder(saved.adapter_path)
    if own is not None and any(_client_folder(path) not in (None, own) for path in _judged_adapters(one)):
        return False
    # The time of a result is that of its end, without the fraction of its second.
    return datetime.fromisoformat(one.created_at).timestamp() + 1.0 - one.seconds > saved.at


def _client_folder(adapter_path: str) -> tuple[str, ...] | None:
    """The end of the path of what a training client has saved, the same in a home that was moved; None for others."""
    parts = Path(adapter_path).parts[-3:]
    return parts if parts[:1] == ("tinker",) else None


def _judged_adapters(one: SuiteResult | SafetyResult | Evaluation) -> list[str]:
    """The folders of the weights that a result is about."""
    if isinstance(one, Evaluation):
        systems = [one.systems[-1]]
    else:
        tasks = one.tasks if isinstance(one, SuiteResult) else one.probes
        systems = [system for task in tasks for system in task.systems if system.name == one.candidate]
    return [system.adapter for system in systems if system.adapter is not None]


def _own_evaluation(context: Context, project_id: str, run_id: str) -> tuple[Evaluation | None, tuple[str, ...]]:
    """The one that the run was evaluated by when it ended; none where rows of it were trained on."""
    evaluation_id = context.runs.get(run_id).evaluation_id
    if evaluation_id is None:
        return None, ()
    # A project that permits its model to others gives away neither its rows nor what was measured on them.
    if context.runs.project_of(run_id) != project_id:
        return None, ("The run is of another project, which shares the model alone, so its evaluation does not count.",)
    # A gate must not pass on rows that the model has memorised.
    if num := context.runs.plan(run_id).data.num_leaked:
        return None, (
            f"{counted(num, 'of its held-out rows is', 'of its held-out rows are')} in its training rows, so its "
            "evaluation does not count.",
        )
    return context.evaluations.get(evaluation_id), ()


def _has_its_weights(context: Context, run_id: str) -> bool:
    """Whether the weights on the disk are those that the run made; true without weights or digest."""
    result = context.runs.get(run_id).result
    if result is None or result.adapter_path is None or result.adapter_sha256 is None:
        return True
    # Those that are served: of a home that was moved they are not where they were trained.
    folder = local_weights(context, run_id, result.adapter_path)
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    # Sizes and times are the key of a cached digest: gigabytes are read again only where a file has changed.
    stamps = [(file, file.stat()) for file in files]
    known = tuple((str(file), found.st_size, found.st_mtime_ns) for file, found in stamps)
    return not known or _digest_of(known) == result.adapter_sha256


@lru_cache(maxsize=64)
def _digest_of(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The digest of files that are named with what changes when they do, so that none is read twice."""
    from luthier.features.evaluations.export_sources import outcome_digest

    return outcome_digest([Path(path) for path, _, _ in stamps])


def unjudged_targets(context: Context, caller: Caller, shares: Sequence[Share]) -> tuple[str, ...]:
    """Targets without an evaluation or a suite result of the run or checkpoint behind them; base models are none.

    Of a run of another project its owner's evaluation counts, too: that there is one gives nothing of it away.
    """
    return tuple(share.target for share in shares if not _is_judged(context, caller, share))


def refuse_unjudged(name: str, targets: Sequence[str], *, has_others: bool) -> None:
    """Refuse to have unjudged targets answer all users of a name.

    Args:
        name: Of the deployment.
        targets: Those without an evaluation.
        has_others: Whether a canary could be tried there.

    Raises:
        ConflictError: there is any.
    """
    if not targets:
        return
    which = targets[0]
    ways = [f"evaluate it: luthier eval {which} --data held_out.jsonl"]
    if has_others:
        ways.append(f"try it on a share of the users: luthier deploy {which} --as {name} --canary 0.1")
    ways.append("deploy it without an evaluation, which is recorded: add --unjudged")
    raise ConflictError(
        f"no evaluation of {', '.join(targets)}, and {'they' if len(targets) > 1 else 'it'} would answer all users of "
        f"{name!r}",
        expected="a model with an evaluation or the result of a suite",
        do="; or ".join(ways),
    )


def remedy(targets: Sequence[str]) -> str:
    """A warning about targets without an evaluation; empty where there are none."""
    if not targets:
        return ""
    return f"There is no evaluation of {', '.join(targets)}. Run: luthier eval {targets[0]} --data held_out.jsonl"


def _is_judged(context: Context, caller: Caller, share: Share) -> bool:
    judged = judged_behind(context, caller, share)
    if judged.base is not None:
        return True
    if judged.subject is None:
        return False
    if judged.run_id is None:
        saved, evaluation = judged.saved, context.evaluations.of_model(judged.subject)
        is_evaluated = evaluation is not None and _is_about(evaluation, saved)
    else:
        saved = _saved_result(context, judged.run_id)
        is_evaluated = _evaluation_of(context, judged.run_id, saved) is not None
    suites = newest_suites(context, caller.project_id, judged.subject)
    return is_evaluated or any(_is_about(one, saved) for one in suites)
