"""A showdown, an auto or a retraining in words: what was asked, what each stage is for, what it found, what it made."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final, Literal

from luthier.core.workflows.pipeline import Pipeline, PipelineKind, Stage
from luthier.features.workflows.automl.report import STAGE_WORDS, found_by
from luthier.features.workflows.retraining.format import format_stage

Thing = Literal["run", "study", "evaluation", "showdown", "dataset", "suite"]

THINGS: Final[dict[Thing, str]] = {
    "run": "run",
    "study": "study",
    "evaluation": "evaluation",
    "showdown": "showdown",
    "dataset": "dataset",
    "suite": "result of the suite",
}
NOUNS: Final[dict[PipelineKind, str]] = {"showdown": "a showdown", "auto": "an auto", "retrain": "a retraining"}
_ANSWERS: Final = {
    "tuned": "One of them, tuned, is better than the best that prompting can do.",
    "prompting": "Prompting is enough: no tuned model was shown to be better.",
    "nothing": "None of them gets any row right.",
}
_OF_SHOWDOWN: Final = {
    "prompting": "Asked without and with examples in its prompt",
    "tuning": "Trained for a short while, on the same examples as the others",
    "tuned": "Asked as it is after its training",
    "comparing": "All systems are compared over the same rows",
}
_OF_RETRAIN: Final = {
    "rows": "Reviewed rows, beside those of the last run",
    "audit": "All checks over all rows",
    "version": "The rows are kept as the next version of the dataset",
    "train": "The last run's recipe is trained with these rows",
    "judge": "The new model is held against the deployed one",
    "gate": "The project's rules for what may be deployed",
    "canary": "The new model is offered, or tried on some of the users",
}
_MADE: Final[dict[str, Thing]] = {
    "showdown_id": "showdown",
    "study_id": "study",
    "run_id": "run",
    "evaluation_id": "evaluation",
}
_MAX_CHARACTERS: Final = 160


def subject(pipeline: Pipeline) -> str:
    """What it is about, in a few words: the contenders, the goal, or the deployment; its id where nobody knows."""
    asked = pipeline.asked
    if pipeline.kind == "showdown":
        found = ", ".join(str(one.get("label", "")) for one in asked.get("contenders", []))
    else:
        found = str(asked.get("goal" if pipeline.kind == "auto" else "model", ""))
    return _short(found) or pipeline.pipeline_id


def format_request(pipeline: Pipeline) -> str:
    """What was asked, on one line."""
    asked, about = pipeline.asked, subject(pipeline)
    if pipeline.kind == "showdown":
        return f"{about}: which of them for {_name(asked.get('data'))}, within {asked.get('hours', 0):.3g} h"
    if pipeline.kind == "auto":
        return f"“{about}” from {_name(asked.get('data'))}, within {asked.get('hours', 0):.3g} h"
    canary = asked.get("canary")
    tried = f", tried on {canary:.0%} of the users" if canary else ""
    return f"{about}, again on {' and '.join(_learned(asked))}{tried}"


def request_details(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What was asked, a name and a value each, without folders."""
    asked = pipeline.asked
    if pipeline.kind == "showdown":
        found = {
            "Base models": ", ".join(_model(str(one.get("model", ""))) for one in asked.get("contenders", [])),
            "Rows to tune on": _name(asked.get("data")),
            "Rows to judge on": _name(asked.get("held_out")),
            "Instruction": asked.get("instruction"),
            "Decides": asked.get("primary"),
            "Method": asked.get("method"),
            "Budget": f"{asked.get('hours', 0):.3g} h",
        }
    elif pipeline.kind == "auto":
        found = {
            "Goal": asked.get("goal"),
            "Folder of documents" if asked.get("is_folder") else "Rows": _name(asked.get("data")),
            "Base models": ", ".join(_model(str(name)) for name in asked.get("models", [])),
            "Decides": asked.get("metric"),
            "Budget": f"{asked.get('hours', 0):.3g} h, {asked.get('showdown_hours', 0):.3g} h of them for the showdown",
        }
    else:
        found = {
            "Deployment": asked.get("model"),
            "Deployed then": asked.get("run_id"),
            "Learns from": " and ".join(_learned(asked)),
            "Begins with": "the last model" if asked.get("start") == "last" else "its base",
            "Canary": f"{asked['canary']:.0%} of the users" if asked.get("canary") else "only offered",
            "Gate": _name(asked.get("gate")),
            "Suite": _name(asked.get("suite")),
        }
    return [(name, str(value)) for name, value in found.items() if value]


def stage_title(kind: PipelineKind, name: str) -> str:
    """What a stage is for; empty for one that nobody knows."""
    words = {
        "auto": STAGE_WORDS | {"report": "One page of all of it"},
        "retrain": _OF_RETRAIN,
        "showdown": _OF_SHOWDOWN,
    }[kind]
    return words.get(name.rpartition(": ")[2] if kind == "showdown" else name, "")


def format_findings(kind: PipelineKind, stage: Stage) -> list[str]:
    """What a stage has found, a sentence each, without ids and files; a reason to end is not among them."""
    came = stage.came
    if kind == "auto":
        return found_by(stage)
    if kind == "showdown":
        return [came["reason"]] if came.get("reason") else []
    if stage.name == "audit" and "grade" in came:
        return [f"grade {came['grade']}", *(one["message"] for one in came.get("findings", [])[:3])]
    if stage.name in ("version", "train"):
        return [f"started from the {came['started_from']} model"] if came.get("started_from") else []
    return [said] if (said := format_stage(stage.name, came)) else []


def made_by(kind: PipelineKind, stage: Stage) -> list[tuple[Thing, str]]:
    """What a stage makes or has made, by kind and id; what is only begun may not be there yet."""
    came = stage.came
    found: list[tuple[Thing, str]] = [(thing, str(came[key])) for key, thing in _MADE.items() if came.get(key)]
    if kind != "retrain":
        return found
    if stage.name == "version":
        found += [("dataset", came[name]["dataset_id"]) for name in ("train", "held_out") if name in came]
    if stage.name == "judge":
        found += [("evaluation", came[which]) for which in ("old", "new") if came.get(which)]
        found += [("suite", came["suite"])] if came.get("suite") else []
    return found


def format_answer(pipeline: Pipeline) -> str:
    """What came of one that is done, in a sentence, from its stages alone."""
    if pipeline.kind == "showdown":
        return _ANSWERS.get(str(pipeline.came("comparing").get("word")), "")
    if pipeline.kind == "auto":
        from luthier.features.workflows.automl.report import headline

        return headline(pipeline)
    said = [format_stage(name, pipeline.came(name)) for name in ("judge", "canary")]
    run_id, before = pipeline.came("train").get("run_id"), pipeline.asked.get("judged_against")
    return f"{run_id} beside {before}: {'; '.join(part for part in said if part)}"


def _learned(asked: dict[str, Any]) -> Sequence[str]:
    traffic = ["accepted traffic"] if asked.get("from_traffic") else []
    panels = [f"panel {one}" for one in asked.get("panels", [])]
    return ["reviewed answers", *traffic, *panels]


def _name(path: Any) -> str:
    return PurePath(str(path)).name if path else ""


def _model(name: str) -> str:
    return PurePath(name).name if name.startswith("/") else name


def _short(text: str) -> str:
    return textwrap.shorten(text, _MAX_CHARACTERS, placeholder=" …") if len(text) > _MAX_CHARACTERS else text
