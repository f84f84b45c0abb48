"""What tools that know each format say of the files for containers, clusters and CI: hadolint and published schemas."""

from __future__ import annotations

import copy
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.chart import CASES, CHART, LONG, documents
from tests.vacuous import nonempty

ROOT = Path(__file__).parents[2]
_WITHOUT_SCHEMA = {"ScaledObject", "TriggerAuthentication"}
"""Kinds of KEDA, which Kubernetes publishes no schema of."""
_SCHEMAS = {
    "vendor.compose-spec": ("compose.yaml",),
    "vendor.github-workflows": (".github/workflows/*.yml",),
    "vendor.github-issue-config": (".github/ISSUE_TEMPLATE/config.yml",),
    "vendor.github-issue-forms": (".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/feature.yml"),
}


def run(program: str, *arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program that `make test` installs beside Python, whatever is on the PATH."""
    place = Path(sysconfig.get_path("scripts")) / program
    assert place.exists() or place.with_suffix(".exe").exists(), f"there is no {place}: `make test` installs it"
    command = [str(place), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)


def schema_errors(document: dict[str, Any], version: str) -> str:
    """What the schema of a kind says of a rendered object; empty if nothing."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{document['kind']} {'.'.join(map(str, error.path))}: {error.message}"
    return ""


def kubernetes_versions() -> tuple[str, str]:
    """The oldest that the chart takes, and the newest with schemas."""
    wanted = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["kubeVersion"]
    found = re.match(r">=(\d+\.\d+)", wanted)
    assert found is not None, wanted
    return found[1], kubernetes_validate.latest_version()


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run("hadolint", "--no-color", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_hadolint_finds_what_is_wrong() -> None:
    done = run("hadolint", "--no-color", "-", given="FROM debian\nRUN cd /tmp && sudo ls\nENTRYPOINT ls\n")
    assert done.returncode == 1
    assert {"DL3006", "DL3004", "DL3025"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("schema", _SCHEMAS)
def test_files_follow_their_published_schema(schema: str) -> None:
    files = [path for pattern in _SCHEMAS[schema] for path in sorted(ROOT.glob(pattern))]
    done = run("check-jsonschema", "--builtin-schema", schema, *nonempty(files))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "content", "named"),
    [
        ("vendor.compose-spec", "services: {server: {image: a, port: ['1:1']}}", "'port' was unexpected"),
        ("vendor.github-workflows", "on: push\njobs: {test: {runs-on: [], steps: []}}", "jobs.test"),
    ],
)
def test_a_file_with_a_mistake_does_not_follow_it(schema: str, content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "file.yml").write_text(content, encoding="utf-8")
    done = run("check-jsonschema", "--verbose", "--builtin-schema", schema, tmp_path / "file.yml")
    assert done.returncode == 1
    assert named in done.stdout + done.stderr


@pytest.mark.parametrize("version", kubernetes_versions())
@pytest.mark.parametrize("case", [*CASES, LONG])
def test_rendered_objects_follow_the_schemas_of_kubernetes(case: str, version: str) -> None:
    known = [one for one in documents(case) if one["kind"] not in _WITHOUT_SCHEMA]
    assert list(filter(None, (schema_errors(one, version) for one in nonempty(known)))) == []


def test_only_objects_of_keda_have_no_schema() -> None:
    for case in nonempty((*CASES, LONG)):
        for one in nonempty(documents(case)):
            assert (one["kind"] in _WITHOUT_SCHEMA) == one["apiVersion"].startswith("keda.sh/"), one["kind"]


def test_an_object_with_a_mistake_does_not_follow_its_schema() -> None:
    (server,) = [one for one in documents("default") if one["kind"] == "Deployment"][:1]
    wrong = copy.deepcopy(server)
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    assert "imagePullPolcy" in schema_errors(wrong, kubernetes_versions()[1])
    wrong = copy.deepcopy(server)
    wrong["spec"]["replicas"] = "two"
    assert "replicas" in schema_errors(wrong, kubernetes_versions()[0])
