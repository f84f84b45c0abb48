"""`luthier deploy`, `promote`, `rollback`, `deployments` and `canary`: names that route to models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, ProjectOption, caller_of, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.deployment import CanaryRules, CanaryWatch, Deployment
    from luthier.features.serving.engine_choice import EngineDecision

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of a deployment.")]
RevisionOption = Annotated[
    int | None,
    typer.Option(
        "--expect",
        metavar="N",
        min=0,
        help="Change it only if it is at this revision (0: a new name).",
        show_default=False,
    ),
]
GateOption = Annotated[
    Path | None, typer.Option("--gate", metavar="FILE", help="A release gate to pass, in addition to the project's.")
]
OverrideOption = Annotated[
    str | None,
    typer.Option(
        "--override", metavar="REASON", help="Deploy although a gate refuses it, for this reason, which is recorded."
    ),
]
UnjudgedOption = Annotated[
    bool, typer.Option("--unjudged", help="Deploy to all users without an evaluation; this is recorded.")
]

GgufCopyOption = Annotated[
    bool,
    typer.Option(
        "--gguf-copy",
        help="Also write, prove and time a GGUF copy; servers without a GPU use it if it is faster.",
    ),
]
TargetArgument = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run, a tuned model (ft:...), a base model, or the folder of an export."),
]


def deploy(
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The name that requests use.")],
    target: TargetArgument = None,
    canary: Annotated[
        float | None,
        typer.Option("--canary", metavar="F", help="Try it on this fraction of the users, such as 0.1."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="A=F,B=F", help="Divide the users among targets (A/B), instead of RUN."),
    ] = None,
    gate: GateOption = None,
    override: OverrideOption = None,
    unjudged: UnjudgedOption = False,
    expect: RevisionOption = None,
    gguf_copy: GgufCopyOption = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Deploy a model under a name; running servers use it from the next request on.

    The first one gets all traffic, a later one takes it over, or, with --canary, a fraction of the users: the same ones
    while it exists. A model without an evaluation gets all of them only with --unjudged. `luthier promote NAME` gives
    it all, `luthier rollback NAME` goes back.
    """
    from luthier.core.errors import RequestError
    from luthier.features.deployments import service as deployments

    if (target is None) == (split is None) or (split is not None and canary is not None):
        raise RequestError(
            "a RUN, --canary and --split contradict each other" if target or canary else "neither a RUN nor --split",
            expected="one RUN, with or without --canary, or --split",
            do="luthier deploy RUN --as NAME --canary 0.1, or luthier deploy --as NAME --split RUN=0.5,RUN=0.5",
        )
    with open_context(home) as context:
        caller = caller_of(context, project)
        if split is not None:
            parts = parse_split(split)
            made = deployments.split(
                context,
                caller,
                name,
                parts,
                expected_revision=expect,
                gate=gate,
                override=override,
                # An override answers for the target with a reason, which covers the missing evaluation.
                may_be_unjudged=unjudged or override is not None,
            )
        else:
            made = deployments.deploy(
                context,
                caller,
                name,
                target or "",
                canary=canary,
                expected_revision=expect,
                gate=gate,
                override=override,
                may_be_unjudged=unjudged or override is not None,
            )
        engines = deployments.choose_target_engines(context, caller, made) if gguf_copy else {}
    return _answer(made, project, as_json, engines)


def promote(
    name: NameArgument,
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="The winner of a split; without it, the canary.")
    ] = None,
    gate: GateOption = None,
    override: OverrideOption = None,
    unjudged: UnjudgedOption = False,
    expect: RevisionOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Give all traffic to the canary of a deployment, or to the winner of a split."""
    from luthier.features.deployments import service as deployments

    with open_context(home) as context:
        made = deployments.promote(
            context,
            caller_of(context, project),
            name,
            target,
            expected_revision=expect,
            gate=gate,
            override=override,
            may_be_unjudged=unjudged or override is not None,
        )
    return _answer(made, project, as_json)


def rollback(
    name: NameArgument,
    expect: RevisionOption = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Go back to the previous revision; repeat to go back further. Running servers do so from the next request on."""
    from luthier.features.deployments import service as deployments

    with open_context(home) as context:
        made = deployments.rollback(context, caller_of(context, project), name, expected_revision=expect)
    return _answer(made, project, as_json)


def list_or_show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this deployment with its history.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the deployment; the models behind it stay.")] = False,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the deployments with the requests that each target has answered, or show one with its history."""
    from luthier.core.errors import RequestError
    from luthier.features.deployments import format as deployment_text
    from luthier.features.deployments import service as deployments

    if remove and name is None:
        raise RequestError("--remove without a NAME", expected="which one", do="name it: luthier deployments NAME")
    with open_context(home) as context:
        caller = caller_of(context, project)
        if name is None:
            found = deployments.list_deployments(context, caller)
            document = [view.as_json() for view in found]
            return Answer(as_json, document, lambda console: deployment_text.show_all(console, found))
        view = deployments.show_deployment(context, caller, name)
        if remove:
            deployments.remove(context, caller, name)
            words = f"removed {name}: requests by this name now fail"
            return Answer(as_json, view.as_json(), lambda console: console.print(words, soft_wrap=True))
    return Answer(as_json, view.as_json(), lambda console: deployment_text.show_one(console, view))


def parse_split(text: str) -> dict[str, float]:
    """`a=0.5,b=0.5` -> {"a": 0.5, "b": 0.5}.

    Raises:
        RequestError: A part is no `target=number`, or a target is named twice.
    """
    from luthier.core.errors import RequestError

    parts: dict[str, float] = {}
    for one in text.split(","):
        # From the right: a target may contain an equals sign, a fraction cannot.
        target, _, fraction = one.strip().rpartition("=")
        try:
            parts[target] = float(fraction)
        except ValueError:
            target = ""
        if not target:
            raise RequestError(
                f"--split {text!r}: {one.strip()!r}",
                expected="targets with fractions that add up to 1, separated by commas",
                do="write for example: --split run-a=0.5,run-b=0.5",
            )
    if len(parts) < len(text.split(",")):
        raise RequestError(f"--split {text!r} names a target twice", expected="each target once", do="correct it")
    return parts


def _answer(
    made: Deployment, project: str, as_json: bool, engines: Mapping[str, EngineDecision] | None = None
) -> Answer:
    """engines: how each target is served from now on, where that was requested."""
    from luthier.features.deployments import format as deployment_text
    from luthier.features.deployments.service import DeploymentView

    document = DeploymentView(made, {}).as_json()
    # A deployment that was just changed has no requests yet; an empty object would look like a count.
    del document["requests"]
    if engines:
        document["engines"] = {
            target: {"engine": one.served.engine, "reason": one.reason} for target, one in engines.items()
        }
    return Answer(as_json, document, lambda console: deployment_text.show_change(console, made, project, engines or {}))


def canary(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a deployment.")],
    error: Annotated[
        float | None,
        typer.Option(
            "--error",
            metavar="P",
            help="Probability that a canary is rolled back although it is not worse, over its whole life.",
        ),
    ] = None,
    least_requests: Annotated[
        int | None,
        typer.Option("--least-requests", metavar="N", help="Minimum requests to the canary before any result."),
    ] = None,
    rolls_back: Annotated[
        bool | None, typer.Option("--roll-back/--only-tell", help="Roll back a worse canary, or only report it.")
    ] = None,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project it belongs to.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare a canary with the rest of its deployment now, or, with options, change its rules.

    Failed requests, seconds, refusals, ratings and scores, tested over users at looks that are set beforehand. This
    command only reports; a running server checks by itself and rolls a worse one back.
    """
    from luthier.features.deployments import canary_release

    with open_context(home) as context:
        caller = caller_of(context, project)
        rules = canary_release.rules_of(context, caller.project_id, name)
        given = {"error": error, "least_requests": least_requests, "rolls_back": rolls_back}
        changes = {key: value for key, value in given.items() if value is not None}
        if changes:
            rules = _changed(rules, changes)
            canary_release.set_rules(context, caller, name, rules)
            document = rules.model_dump(mode="json")
            words = ", ".join(f"{key} {value}" for key, value in document.items())
            return Answer(as_json, document, lambda console: console.print(f"{name}: {words}", soft_wrap=True))
        deployment = context.deployments.get(caller.project_id, name)
        seen = canary_release.last_seen(context, caller, name)
        # Without a running canary the last result is shown; `check_canary` would refuse.
        if deployment.revision.canary is not None or seen is None:
            # A question about the state must not change the traffic.
            seen = canary_release.check_canary(context, caller, name, may_roll_back=False)
    found = seen
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def _changed(rules: CanaryRules, changes: dict[str, Any]) -> CanaryRules:
    from pydantic import ValidationError

    from luthier.core.errors import RequestError, validation_reason
    from luthier.core.records.deployment import CanaryRules

    try:
        return CanaryRules.model_validate(rules.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(
            f"{first['loc'][0]} {first['input']!r}", expected=validation_reason(first), do="correct the option"
        ) from None


def _show(console: Console, seen: CanaryWatch) -> None:
    from rich.text import Text

    from luthier.platform.cli.console import make_table, visible

    title = f"{seen.name}: canary {seen.canary}, {seen.state}"
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print(visible(seen.sentence), soft_wrap=True)
    if seen.rolled_back_to is not None:
        console.print(f"rolled back by revision {seen.rolled_back_to}")
    if seen.kept_because:
        console.print(visible(f"not rolled back: {seen.kept_because}"), soft_wrap=True)
    table = make_table(["signal", "state", "canary", "rest", "difference (95%)", "p", "needed"], num_text_columns=2)
    for one in seen.signals:
        if one.difference is None:
            table.add_row(one.title, one.state, "", "", "", "", "")
            continue
        gap = f"{one.difference:.3g} ({one.low:.3g} to {one.high:.3g})" + (" times" if one.is_ratio else "")
        table.add_row(
            one.title, one.state, f"{one.canary:.3g}", f"{one.rest:.3g}", gap, f"{one.p_value:.2g}", f"{one.level:.2g}"
        )
    if seen.signals:
        console.print(table)
    for one in seen.signals:
        if one.state == "too early":
            console.print(visible(one.sentence), soft_wrap=True)
    for caution in seen.cautions:
        console.print(visible(caution), soft_wrap=True)
    if seen.measures:
        sides = make_table(["so far", "canary", "rest", "difference (95%)", "finding"], num_text_columns=1)
        for measure in seen.measures:
            ends = "" if measure.difference is None else f"({measure.low:.3g} to {measure.high:.3g})"
            gap = "" if measure.difference is None else f"{measure.difference:.3g} {ends}"
            figures = ["" if one is None else f"{one.value:.3g}" for one in (measure.canary, measure.rest)]
            sides.add_row(measure.title, *figures, gap, measure.missing or measure.finding)
        console.print(sides)
        console.print(visible(seen.summary), soft_wrap=True)
    console.print(f"{counted(seen.num_seen, 'exchange')} so far; the next check is at {seen.next_at:,}")
