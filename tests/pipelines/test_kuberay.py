"""deploy/kuberay/: the fields of KubeRay's reference, and a cluster that would run and be closed."""

from typing import Any

import pytest
import ray

from tests.pipelines.test_cluster_files import IMAGE, Fields, containers

CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int},
    "headGroupSpec": {
        "serviceType": str,
        "rayStartParams": dict,
        "template": {"spec": {"containers": list, "volumes": list, "securityContext": dict}},
    },
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "rayStartParams": dict,
            "template": {
                "spec": {"containers": list, "volumes": list, "securityContext": dict, "tolerations": list}
            },
        }
    ],
}
TOP = {"apiVersion": str, "kind": str, "metadata": {"name": str}}
JOB = TOP | {
    "spec": {
        "entrypoint": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": CLUSTER,
    }
}
SERVICE = TOP | {"spec": {"serveConfigV2": str, "rayClusterConfig": CLUSTER}}


def problems(found: Any, expected: Any, path: str = "") -> list[str]:
    """Say where a manifest has not exactly the fields, of the types, that it should have.

    The fields are those of https://ray-project.github.io/kuberay/reference/api/ that our manifests set.
    """
    if isinstance(expected, type):
        return [] if type(found) is expected else [f"{path}: {found!r} is no {expected.__name__}"]
    if isinstance(expected, list):
        if not isinstance(found, list) or not found:
            return [f"{path}: empty"]
        return [line for i, each in enumerate(found) for line in problems(each, expected[0], f"{path}[{i}]")]
    if not isinstance(found, dict):
        return [f"{path}: {found!r} has no fields"]
    wrong = [f"{path}.{key}: missing" for key in expected.keys() - found.keys()]
    wrong += [f"{path}.{key}: unknown" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        wrong += problems(found[key], expected[key], f"{path}.{key}")
    return wrong


def check_ray_cluster(ray_cluster: Fields) -> None:
    """Refuse what the types do not: versions, limits, volumes and a public dashboard."""
    assert ray_cluster["rayVersion"] == ray.__version__
    assert ray_cluster["authOptions"]["mode"] == "token"
    assert ray_cluster["enableInTreeAutoscaling"]
    assert ray_cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in ray_cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 <= group["replicas"] <= group["maxReplicas"]
    for pod, container in containers(ray_cluster):
        image = IMAGE.fullmatch(container["image"])
        assert image
        assert image["ray"] == ray.__version__
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }
    _, *workers = containers(ray_cluster)
    for _, worker in workers:
        for kind in ("requests", "limits"):
            assert worker["resources"][kind]["nvidia.com/gpu"] == 1


def test_the_job_and_the_service_have_kuberays_fields(job, service):
    assert problems(job, JOB) == []
    assert problems(service, SERVICE) == []
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    check_ray_cluster(job["spec"]["rayClusterSpec"])
    check_ray_cluster(service["spec"]["rayClusterConfig"])


def test_fields_that_are_misspelt_missing_or_of_another_type_are_found(job):
    ray_cluster = job["spec"]["rayClusterSpec"]
    worker = ray_cluster["workerGroupSpecs"][0]
    worker["maxReplica"] = worker.pop("maxReplicas")
    ray_cluster["rayVersion"] = 2.6
    del job["spec"]["entrypoint"]
    group = ".spec.rayClusterSpec.workerGroupSpecs[0]"
    assert sorted(problems(job, JOB)) == [
        ".spec.entrypoint: missing",
        ".spec.rayClusterSpec.rayVersion: 2.6 is no str",
        f"{group}.maxReplica: unknown",
        f"{group}.maxReplicas: missing",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rayVersion",), "2.59.0"),
        (("authOptions", "mode"), "disabled"),
        (("headGroupSpec", "serviceType"), "LoadBalancer"),
        (("headGroupSpec", "template", "spec", "containers", 0, "image"), "x/mst:ray2.59.0"),
        (("headGroupSpec", "template", "spec", "volumes"), []),
        (("workerGroupSpecs", 0, "replicas"), 100),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits"), {}),
    ],
)
def test_a_cluster_that_would_not_run_or_is_open_is_refused(job, path, value):
    level = ray_cluster = job["spec"]["rayClusterSpec"]
    for step in path[:-1]:
        level = level[step]
    level[path[-1]] = value
    with pytest.raises((AssertionError, KeyError)):
        check_ray_cluster(ray_cluster)
