"""What an error advises, as a page says it: a link to a page where the service names an API call or a command.

The services speak to programs, commands and pages alike, and their advice names whatever leads on. Who reads a page
is led to pages. Commands without a page (`luthier models pull`, `luthier data ingest`) stay what they are.
"""

from __future__ import annotations

import re
from typing import Final

from markupsafe import Markup, escape

from luthier.ml.charts.visible import visible

_RUNS, _MODELS = ("/runs", "Runs"), ("/models", "Models")
_DEPLOYMENTS = ("/models?show=deployments", "Deployments")
_FILES, _DATASETS = ("/datasets/new", "Bring a dataset"), ("/datasets", "Datasets")
_HOME = ("/", "Home")
_ROUTES: Final = {
    "runs": _RUNS,
    "fine_tuning/jobs": _RUNS,
    "fine_tuning": _MODELS,
    "models": _MODELS,
    "files": _FILES,
    "uploads": _FILES,
    "deployments": _DEPLOYMENTS,
    "webhooks": ("/settings/webhooks", "Webhooks"),
    "feedback": ("/review", "Review"),
}
"""The page for the first part of an API's address; any other leads home, from where the navigation goes on."""
_COMMANDS: Final = {
    "runs": _RUNS,
    "jobs": _RUNS,
    "train": _RUNS,
    "models list": _MODELS,
    "models show": _MODELS,
    "models remove": _MODELS,
    "deployments": _DEPLOYMENTS,
    "deploy": _DEPLOYMENTS,
    "promote": _DEPLOYMENTS,
    "rollback": _DEPLOYMENTS,
    "export": _MODELS,
    "eval": ("/evaluations/new", "Judge a model"),
    "data repair": _DATASETS,
    "data audit": _DATASETS,
    "data split": _DATASETS,
    "data diff": _DATASETS,
    "keys": ("/settings/keys", "Keys"),
    "users": ("/settings/members", "Members"),
    "studies": ("/studies", "Studies"),
    "pipelines": _HOME,
    "alerts": ("/monitor", "Monitor"),
    "traffic list": ("/monitor/exchanges", "Exchanges"),
    "traffic policy": ("/settings/traffic", "Traffic"),
    "usage": ("/settings/usage", "Usage"),
    "audit-log": ("/settings/audit-log", "Audit log"),
    "feedback": ("/review", "Review"),
    "human-eval": ("/evaluations/panels", "Panels of raters"),
}
_CALL: Final = re.compile(r"\b(?:GET|POST|PUT|PATCH|DELETE) /(?:api/)?v1/([A-Za-z0-9_/{}.-]*)")
_NAMES: Final = "|".join(sorted(map(re.escape, _COMMANDS), key=len, reverse=True))
_COMMAND: Final = re.compile(rf"`luthier ({_NAMES})\b([^`]*)`|(?<![\w-])luthier ({_NAMES})(?![\w-])([^;,()]*)")
_RUN_ID: Final = re.compile(r"\brun-[A-Za-z0-9-]+")
# Advice that names a command and an API call for the same thing becomes one link.
_TWICE: Final = re.compile(r"(<a [^>]*>[^<]*</a>),? or \1")


def page_advice(advice: str) -> Markup:
    """The advice of an error with links to pages in the place of API calls and of commands that have a page."""
    # Escaped first: an error may quote what a stranger sent, and only the links below may be markup.
    text = str(escape(visible(advice)))
    text = _CALL.sub(lambda found: _link(*_page_of_route(found[1])), text)
    text = _COMMAND.sub(lambda found: _of_command(found[1] or found[3], found[2] or found[4] or ""), text)
    return Markup(_TWICE.sub(r"\1", text))  # noqa: S704 - escaped above; what was put in are addresses of this module


def _page_of_route(path: str) -> tuple[str, str]:
    known = [name for name in _ROUTES if path == name or path.startswith(f"{name}/")]
    # The longest name that fits: `fine_tuning/jobs` before `fine_tuning`.
    return _ROUTES[max(known, key=len)] if known else _HOME


def _of_command(name: str, arguments: str) -> str:
    address, title = _COMMANDS[name]
    if address == "/runs" and (run := _RUN_ID.search(arguments)) is not None:
        address, title = f"/runs/{run[0]}", "its page"
    return _link(address, title)


def _link(address: str, title: str) -> str:
    return f'<a href="{address}">{title}</a>'
