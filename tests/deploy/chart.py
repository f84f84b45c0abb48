"""The chart as it is rendered, for tests without Helm and Go: `python -m tests.deploy.chart PROGRAM` renders it again.

PROGRAM is `helm`, or `go`, which runs the templates by its own template engine with Helm's functions (`render.go`).
Rendered files hold the digest of what they were made from, so a chart that has changed since fails the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "deploy" / "helm" / "luthier"
HERE: Final = Path(__file__).parent
CASES: Final = ("default", "full", "bare")
"""Values of each case lie beside this file as CASE-values.yaml, its rendered chart in `rendered/`."""
LONG: Final = "long"
"""The case of a release and of a worker with the longest names that they may have."""
_RELEASES: Final = {LONG: "tuning-of-the-customer-support-models-of-the-west-eme"}
_RELEASE: Final = ("lu", "ml")
"""Name and namespace of the rendered release; of some cases the name is another."""
_HEADER: Final = "# Rendered from sha256 "


def release_of(case: str) -> str:
    """The name of the release of a case."""
    return _RELEASES.get(case, _RELEASE[0])


def digest(case: str) -> str:
    """Of all files of the chart and the values of the case."""
    found = hashlib.sha256()
    for path in [*sorted(one for one in CHART.rglob("*") if one.is_file()), HERE / f"{case}-values.yaml"]:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def merged(case: str) -> dict[str, Any]:
    """The values of the chart with those of the case, as Helm merges them: mappings key by key, all else replaced."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    _merge(found, yaml.safe_load((HERE / f"{case}-values.yaml").read_text(encoding="utf-8")))
    return found


def _merge(into: dict[str, Any], given: dict[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def by_helm(helm: str, case: str) -> str:
    """The chart rendered by Helm, which lints it first."""
    values = ("--values", str(HERE / f"{case}-values.yaml"))
    subprocess.run([helm, "lint", "--strict", str(CHART), *values], check=True, stdout=subprocess.DEVNULL)
    command = [helm, "template", release_of(case), str(CHART), "--namespace", _RELEASE[1], *values]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def by_go(go: str, case: str) -> str:
    """The chart rendered by Go's template engine."""
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    # As Helm names the fields of a chart: `.Chart.AppVersion`.
    fields = {key[0].upper() + key[1:]: value for key, value in about.items()}
    return subprocess.run(
        [go, "run", str(HERE / "render.go"), str(CHART), release_of(case), _RELEASE[1]],
        input=json.dumps(merged(case)),
        env=os.environ | {"CHART_JSON": json.dumps(fields)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a rendered chart, in a fixed order."""
    found = [one for one in yaml.safe_load_all(text) if one]
    return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"]))


def stored(case: str) -> tuple[str, str]:
    """The digest that a case was rendered from, and what was rendered."""
    header, _, text = (HERE / "rendered" / f"{case}.yaml").read_text(encoding="utf-8").partition("\n")
    return header.removeprefix(_HEADER), text


def documents(case: str) -> list[dict[str, Any]]:
    """The objects of a case as stored."""
    return objects(stored(case)[1])


def main(program: str) -> None:
    """Render all cases."""
    for case in (*CASES, LONG):
        text = by_go(program, case) if Path(program).name == "go" else by_helm(program, case)
        plain = yaml.safe_dump_all(objects(text), sort_keys=True, width=140)
        (HERE / "rendered" / f"{case}.yaml").write_text(f"{_HEADER}{digest(case)}\n{plain}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
