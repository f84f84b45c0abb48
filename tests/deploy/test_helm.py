"""The chart: its values are checked, and what Helm renders of it fits together and names what Luthier has."""

from __future__ import annotations

import json
import shutil
from typing import Any

import jsonschema
import pytest
import yaml
from tests.deploy.chart import CASES, CHART, LONG, by_helm, digest, documents, merged, objects, release_of, stored
from tests.deploy.settings import check_command, unknown_variables
from tests.vacuous import nonempty

from luthier.server.service import API_GRACE_SECONDS, WORKER_GRACE_SECONDS

GIVEN_ELSEWHERE = {"HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}


def of_kind(case: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in documents(case) if one["kind"] == kind]


def pods(case: str) -> list[tuple[str, dict[str, Any]]]:
    found = [one for one in documents(case) if one["kind"] in ("Deployment", "Job")]
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in found]


@pytest.mark.parametrize("case", [*CASES, LONG])
def test_what_was_rendered_is_of_this_chart(case: str) -> None:
    made_from, text = stored(case)
    assert made_from == digest(case), "render it again: python -m tests.deploy.chart go, or helm"
    if (helm := shutil.which("helm")) is not None:
        assert objects(by_helm(helm, case)) == objects(text)


def test_no_name_or_label_is_longer_than_kubernetes_allows() -> None:
    assert len(release_of(LONG)) == 53, "the longest that Helm takes"
    longest = max(len(worker["name"]) for worker in merged(LONG)["workers"])
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert longest == schema["properties"]["workers"]["items"]["properties"]["name"]["maxLength"]
    names = [one["metadata"]["name"] for one in documents(LONG)]
    jsonschema.validate(merged(LONG), schema)
    values = [value for one in documents(LONG) for value in one["metadata"].get("labels", {}).values()]
    values += [value for _, pod in pods(LONG) for value in pod["metadata"]["labels"].values()]
    # A label of KEDA and the host name of a pod hold the name of the object.
    assert [one for one in nonempty(names + values) if len(one) > 63] == []
    (scaled,) = of_kind(LONG, "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"].endswith("-worker-gpu-a100-80gb-shared")


def test_values_are_checked() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(values, schema)
    for case in nonempty(CASES):
        jsonschema.validate(merged(case), schema)
    wrong: list[dict[str, Any]] = [
        {"replicas": 3},
        {"existingSecret": ""},
        {"env": {"LUTHIER_DATABASE": "postgresql://in-plain-text"}},
        {"home": {"shared": True, "size": "much"}},
        {"workers": [{"name": "GPU_1", "resources": {}}]},
        {"artifacts": "bucket"},
        {"secretEnv": ["LUTHIER_ADMIN_KEY"]},
        {"secretEnv": ["not-a-variable"]},
    ]
    for one in nonempty(wrong):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | one, schema)


@pytest.mark.parametrize("case", CASES)
def test_pods_have_no_rights_and_run_commands_that_exist(case: str) -> None:
    for name, template in nonempty(pods(case)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert ":latest" not in container["image"]
        assert ":" in container["image"]
        check_command(container["args"])
        assert unknown_variables([one["name"] for one in container["env"]], GIVEN_ELSEWHERE) == []
        secrets = [one["valueFrom"]["secretKeyRef"]["key"] for one in container["env"] if "valueFrom" in one]
        assert ("LUTHIER_ADMIN_KEY" in secrets) == name.endswith("-prepare")
        assert "LUTHIER_DATABASE" in secrets
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in spec["volumes"]}
        assert {"/data", "/tmp"} <= {one["mountPath"] for one in container["volumeMounts"]}


@pytest.mark.parametrize("case", CASES)
def test_selectors_find_the_pods_that_they_mean(case: str) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(case)}
    for one in nonempty(of_kind(case, "Deployment")):
        wanted = one["spec"]["selector"]["matchLabels"].items()
        assert [name for name, has in labels.items() if wanted <= has.items()] == [one["metadata"]["name"]]
    (service,) = of_kind(case, "Service")
    chosen = [name for name, has in labels.items() if service["spec"]["selector"].items() <= has.items()]
    assert chosen == ["lu-server"]
    (server,) = [template for name, template in pods(case) if name == "lu-server"]
    assert [port["name"] for port in server["spec"]["containers"][0]["ports"]] == [
        port["targetPort"] for port in service["spec"]["ports"]
    ]


def test_the_server_is_probed_where_it_answers_without_a_key() -> None:
    from luthier.platform.http.health import router

    addresses = {str(getattr(route, "path", "")) for route in router.routes}
    (server,) = [template for name, template in pods("default") if name == "lu-server"]
    container = server["spec"]["containers"][0]
    for probe in nonempty(("startupProbe", "livenessProbe", "readinessProbe")):
        get = container[probe]["httpGet"]
        assert get["path"] in addresses
        assert get["httpHeaders"] == [{"name": "Host", "value": "localhost"}]
    names = {one["name"]: one.get("value", "") for one in container["env"]}
    assert names["LUTHIER_ALLOWED_HOSTS"].split() == ["lu-server", "lu-server.ml.svc"]


def test_the_host_of_the_ingress_is_allowed_beside_the_names_that_are_given() -> None:
    (ingress,) = of_kind("full", "Ingress")
    host, given = ingress["spec"]["rules"][0]["host"], merged("full")["server"]["allowedHosts"]
    assert host not in given
    (server,) = [template for name, template in pods("full") if name == "lu-server"]
    names = {one["name"]: one.get("value", "") for one in server["spec"]["containers"][0]["env"]}
    assert {host, *given.split(), "lu-server.ml.svc"} <= set(names["LUTHIER_ALLOWED_HOSTS"].split())


def test_further_keys_of_the_secret_are_read_from_it_by_every_pod() -> None:
    key = "LUTHIER_OIDC_CLIENT_SECRET"
    for name, template in nonempty(pods("full")):
        found = {one["name"]: one for one in template["spec"]["containers"][0]["env"]}
        assert found[key] == {"name": key, "valueFrom": {"secretKeyRef": {"name": "tuning", "key": key}}}, name
    for name, template in nonempty(pods("default")):
        assert key not in {one["name"] for one in template["spec"]["containers"][0]["env"]}, name


def test_the_hook_prepares_before_the_release_and_needs_nothing_of_it() -> None:
    (job,) = of_kind("full", "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert spec["containers"][0]["args"] == ["server", "prepare"]
    # Nor the account of the release: this one is of a hook that comes first, with the same role.
    accounts = {one["metadata"]["name"]: one["metadata"]["annotations"] for one in of_kind("full", "ServiceAccount")}
    own = accounts[spec["serviceAccountName"]]
    assert own["helm.sh/hook"] == job["metadata"]["annotations"]["helm.sh/hook"]
    assert int(own["helm.sh/hook-weight"]) < int(job["metadata"]["annotations"]["helm.sh/hook-weight"])
    assert own["eks.amazonaws.com/role-arn"] == accounts["lu"]["eks.amazonaws.com/role-arn"]
    # A key that is made would end with the home of this pod.
    (key,) = [one for one in spec["containers"][0]["env"] if one["name"] == "LUTHIER_ADMIN_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["optional"] is False
    assert all("persistentVolumeClaim" not in volume for volume in nonempty(spec["volumes"]))
    (plain,) = of_kind("default", "Job")
    assert "serviceAccountName" not in plain["spec"]["template"]["spec"]
    assert [one["metadata"]["name"] for one in of_kind("default", "ServiceAccount")] == ["lu"]


def test_gpu_workers_go_to_gpu_nodes_and_follow_the_queue() -> None:
    deployments = {one["metadata"]["name"]: one["spec"] for one in of_kind("full", "Deployment")}
    assert set(deployments) == {"lu-server", "lu-worker-cpu", "lu-worker-a100"}
    gpu = deployments["lu-worker-a100"]["template"]["spec"]
    assert gpu["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert gpu["containers"][0]["resources"]["limits"] == {"memory": "256Gi", "nvidia.com/gpu": 2}
    assert gpu["containers"][0]["image"] == "registry.example/luthier:0.1.0-cuda"
    assert gpu["terminationGracePeriodSeconds"] == 90
    # The autoscaler alone says how many there are.
    assert "replicas" not in deployments["lu-worker-a100"]
    assert deployments["lu-worker-cpu"]["replicas"] == 2
    (scaled,) = of_kind("full", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == "lu-worker-a100"
    assert scaled["spec"]["advanced"]["scalingModifiers"]["formula"] == "queued + running"
    (authentication,) = of_kind("full", "TriggerAuthentication")
    for trigger in nonempty(scaled["spec"]["triggers"]):
        assert trigger["metadata"]["url"] == "http://lu-server.ml.svc:8520/metrics"
        assert trigger["metadata"]["valueLocation"] == f'luthier_jobs{{status="{trigger["name"]}"}}'
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert of_kind("default", "ScaledObject") == of_kind("default", "TriggerAuthentication") == []


def test_a_gpu_worker_needs_no_other_limit_and_no_largest_number() -> None:
    (spec,) = [one["spec"] for one in of_kind("bare", "Deployment") if one["metadata"]["name"] == "lu-worker-gpu"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": 1}}
    assert container["image"] == "luthier:cuda"
    (scaled,) = of_kind("bare", "ScaledObject")
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (0, 4)


def test_the_metric_of_the_queue_is_there(home: Any) -> None:
    from prometheus_client import generate_latest

    from luthier.platform.http.metrics import Metrics

    text = generate_latest(Metrics(home).registry).decode()
    for trigger in nonempty(of_kind("full", "ScaledObject")[0]["spec"]["triggers"]):
        assert f"{trigger['metadata']['valueLocation']} 0.0" in text.splitlines()


def test_workers_are_reached_by_nobody_and_the_server_at_one_port() -> None:
    others, server = of_kind("full", "NetworkPolicy")
    assert server["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8520}]
    assert list(server["spec"]["ingress"][0]["from"][0]) == ["namespaceSelector"]
    assert others["spec"]["ingress"] == []
    assert of_kind("bare", "NetworkPolicy") == []
    assert {one["metadata"]["name"] for one in of_kind("full", "PodDisruptionBudget")} == {
        "lu-worker-cpu",
        "lu-worker-a100",
    }


def test_without_a_shared_home_nothing_claims_a_volume() -> None:
    assert of_kind("bare", "PersistentVolumeClaim") == []
    (claim,) = of_kind("default", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert of_kind("full", "PersistentVolumeClaim") == []
    volumes = [volume for _, template in pods("full") for volume in template["spec"]["volumes"]]
    assert {"claimName": "nfs"} in [volume.get("persistentVolumeClaim") for volume in volumes]


def test_a_stop_leaves_time_for_a_checkpoint() -> None:
    for name, template in nonempty([one for case in CASES for one in pods(case) if not one[0].endswith("-prepare")]):
        grace = WORKER_GRACE_SECONDS if "-worker-" in name else API_GRACE_SECONDS
        assert template["spec"]["terminationGracePeriodSeconds"] > grace, name


def test_kubernetes_waits_longer_than_running_answers_may_take() -> None:
    graces = {case: dict(pods(case)) for case in ("default", "full")}
    found = {
        case: next(
            spec["spec"]["terminationGracePeriodSeconds"] for name, spec in of.items() if name.endswith("-server")
        )
        for case, of in graces.items()
    }
    assert merged("full")["env"]["LUTHIER_DRAIN_SECONDS"] == "299.5"
    assert found == {"default": 40, "full": 330}
