"""cluster.yaml and deploy/: what Ray, a stand-in for AWS, and this project's own command lines say of them.

Nothing here reaches a cloud: Ray's launcher runs against moto; KubeRay's fields are those of its reference.
"""

import argparse
import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.configprovider
import mlflow.environment_variables
import pytest
import ray
import yaml
from jsonschema import ValidationError as SchemaError
from moto import mock_aws
from pydantic import ValidationError
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from mst.config import Config
from mst.errors import ConfigError
from pipelines.command_line import add_resources, add_settings, config_of, resources_of
from pipelines.storage import PROJECT
from serve.settings import ServeSettings

SSH = 22
IMAGE = re.compile(r"[\w./-]+/mst:ray(?P<ray>[\d.]+)")

Fields = dict[str, Any]


def read(path: Path) -> Fields:
    return yaml.safe_load(path.read_text())


def containers(ray_cluster: Fields) -> list[tuple[Fields, Fields]]:
    """Each pod of a Ray cluster, and its one container."""
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    assert all(len(pod["containers"]) == 1 for pod in pods)
    return [(pod, pod["containers"][0]) for pod in pods]


@pytest.fixture
def cluster() -> Fields:
    return read(PROJECT / "cluster.yaml")


# --- cluster.yaml, as Ray and AWS take it


@pytest.fixture
def aws(monkeypatch, tmp_path) -> Iterator[None]:
    """A stand-in for AWS, and a home for the key pair that Ray makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


def launch(cluster: Fields) -> Fields:
    """Do what `ray up` does before it starts the first machine."""
    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return bootstrap_aws(config)


def open_ports(launched: Fields) -> list[Fields]:
    """Inbound rules of all nodes for addresses, that is, for more than the cluster's own nodes."""
    client = boto3.client("ec2", region_name=launched["provider"]["region"])
    nodes = launched["available_node_types"].values()
    groups = {group for node in nodes for group in node["node_config"]["SecurityGroupIds"]}
    found = client.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
    rules = [rule for group in found for rule in group["IpPermissions"]]
    return [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]


def test_ray_and_aws_accept_the_cluster_and_only_ssh_is_open(aws, cluster):
    launched = launch(cluster)
    assert [(rule["FromPort"], rule["ToPort"]) for rule in open_ports(launched)] == [(SSH, SSH)]
    assert launched["auth"]["ssh_private_key"].endswith(".pem")
    assert "IamInstanceProfile" not in launched["head_node"]  # ours, not one with all of S3


def test_a_dashboard_opened_to_the_world_is_found(aws, cluster):
    dashboard = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    cluster["provider"]["security_group"] = {"IpPermissions": [dashboard]}
    assert 8265 in [rule["FromPort"] for rule in open_ports(launch(cluster))]


@pytest.mark.parametrize(
    ("where", "key"),
    [((), "idle_timeout_minute"), (("auth",), "ssh_usr"), (("available_node_types", "gpu"), "min_worker")],
)
def test_ray_refuses_a_misspelt_key(cluster, where, key):
    level = cluster
    for step in where:
        level = level[step]
    level[key] = 1
    with pytest.raises(SchemaError, match=key):
        validate_config(prepare_config(cluster))


def test_workers_are_spot_and_from_none_to_as_many_gpus_as_the_cluster_may_have(cluster):
    gpu, head = cluster["available_node_types"]["gpu"], cluster["available_node_types"]["head"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, cluster["max_workers"])
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["resources"]["GPU"] == 1
    assert "GPU" not in head["resources"]


# --- what its commands name


def commands(cluster: Fields) -> list[str]:
    return [line for key in cluster if key.endswith("_commands") for line in cluster[key]]


def missing_files(cluster: Fields) -> list[str]:
    """Files that the commands name in the nodes' home and that no mount puts there."""
    mounts = {
        path.replace("/home/ubuntu", "~"): PROJECT / local for path, local in cluster["file_mounts"].items()
    }
    named = re.findall(r"~/mst/[\w./-]+", "\n".join(commands(cluster)))
    return [path for path in named if path not in mounts or not mounts[path].is_file()]


def test_commands_name_files_that_are_mounted_from_this_repository(cluster):
    assert missing_files(cluster) == []
    tracked = subprocess.check_output(["git", "ls-files"], cwd=PROJECT, text=True).split("\n")
    ours = [local for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert set(ours) <= set(tracked)


def test_a_file_that_no_mount_has_is_found(cluster):
    cluster["setup_commands"].append("cat ~/mst/requirements.txt")
    assert missing_files(cluster) == ["~/mst/requirements.txt"]
    del cluster["file_mounts"]["/home/ubuntu/mst/constraints.txt"]
    assert "~/mst/constraints.txt" in missing_files(cluster)


def test_the_commands_are_bash(cluster):
    subprocess.run(["bash", "-n"], input="\n".join(commands(cluster)), text=True, check=True)


def environment(cluster: Fields, home: Path) -> dict[str, str]:
    """Run what writes the nodes' environment as Ray runs it; return what a new shell then has."""
    (home / ".bashrc").touch()

    def shell(line: str) -> str:
        command = " ".join(_with_interactive(line))
        inside = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            ["bash", "-c", command], env=inside, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout.decode()

    for _ in range(2):  # as on a second `ray up`
        for line in cluster["setup_commands"]:
            if ".mst_env" in line:
                shell(line)
    assert (home / ".bashrc").read_text().count(".mst_env") == 1
    return dict(line.split("=", 1) for line in shell("env").splitlines() if "=" in line)


def test_ray_finds_the_token_the_registry_and_the_environment(cluster, tmp_path):
    found = environment(cluster, tmp_path)
    assert found["RAY_AUTH_MODE"] == "token"
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert found["AWS_DEFAULT_REGION"] == cluster["provider"]["region"]
    assert found["MLFLOW_TRACKING_URI"].startswith("https://")
    assert found["PATH"].startswith(f"{tmp_path}/venv/bin:")


def unknown(names: set[str]) -> set[str]:
    """Environment variables that no library reads."""
    region = botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES["region"][1]
    known = {AUTH_MODE_ENV_VAR, WORKER_GROUP_START_TIMEOUT_S_ENV_VAR, region, "PATH"}
    return {name for name in names if name not in known and not hasattr(mlflow.environment_variables, name)}


def test_every_variable_that_is_set_is_read(cluster, job):
    block = next(line for line in cluster["setup_commands"] if line.startswith("printf"))
    names = set(re.findall(r"\b([A-Z][A-Z_]+)=", block))
    assert "MLFLOW_TRACKING_URI" in names
    pods = [container for _, container in containers(job["spec"]["rayClusterSpec"])]
    names |= {variable["name"] for pod in pods for variable in pod.get("env", [])}
    assert unknown(names) == set()
    assert unknown({"RAY_AUTH_MODES", "MLFLOW_TRACKING_URL"}) == {"RAY_AUTH_MODES", "MLFLOW_TRACKING_URL"}


# --- the commands of the job and of the documentation


def trained(command: str) -> argparse.Namespace:
    """Parse a training's command line by the parser of pipelines/train.py."""
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith("pipelines/train.py"))
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--name")
    parser.add_argument("--storage", default="runs")
    add_resources(parser)
    add_settings(parser)
    arguments, others = parser.parse_known_args(words[script + 1 :])
    if others:
        raise ConfigError(f"unknown: {others}")
    return arguments


def check_training(command: str, gpus: int) -> Config:
    """Refuse a training that the cluster cannot hold or whose run would not outlive it."""
    arguments = trained(command)
    config, resources = config_of(arguments), resources_of(arguments)
    assert resources.use_gpu
    assert resources.num_workers <= gpus
    assert config.train.batch_size % resources.num_workers == 0
    assert arguments.name
    assert arguments.storage.startswith("/")
    return config


def documented() -> list[str]:
    """The trainings of docs/cluster.md, one line each."""
    text = (PROJECT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    return [line for line in text.split("\n") if line.startswith("    ") and "pipelines/train.py" in line]


def test_the_commands_train_on_what_the_clusters_may_have(cluster, job):
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    check_training(job["spec"]["entrypoint"], workers["maxReplicas"])
    assert documented()
    for command in documented():
        check_training(command, cluster["max_workers"])


def test_the_entrypoint_fits_the_jobs_volumes(job):
    config = check_training(job["spec"]["entrypoint"], 6)
    (_, _), (pod, worker) = containers(job["spec"]["rayClusterSpec"])
    mounted = {mount["mountPath"]: mount["name"] for mount in worker["volumeMounts"]}
    cache = next(volume for volume in pod["volumes"] if volume["name"] == mounted["/cache"])
    assert config.data.cache.startswith("/cache/")
    assert float(cache["emptyDir"]["sizeLimit"].removesuffix("Gi")) > config.data.cache_gb


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("pipelines/train.py --recipe mst_base_cocolvis --worker 6", ConfigError),
        (
            "pipelines/train.py --recipe demo --name x --storage /runs --use-gpu --num-workers 7",
            AssertionError,
        ),
        ("pipelines/train.py --recipe demo --name x --storage runs --use-gpu", AssertionError),
    ],
)
def test_a_command_that_cannot_train_is_refused(command, error):
    with pytest.raises(error):
        check_training(command, 6)


def test_the_service_is_what_serve_builds(service):
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert (PROJECT / f"{module.replace('.', '/')}.py").is_file()
    assert f"def {name}(settings: ServeSettings) -> Application" in (PROJECT / "serve" / "app.py").read_text()
    settings = ServeSettings(**application.args)
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert settings.max_replicas * settings.gpus_per_replica <= workers["maxReplicas"]
    with pytest.raises(ValidationError, match="max_replica\n"):
        ServeSettings(**application.args, max_replica=1)
    with pytest.raises(ValidationError, match="import_path"):
        ServeDeploySchema.model_validate({"applications": [{"import_path": "serve"}]})


def test_the_image_of_the_documentation_has_the_installed_ray():
    text = (PROJECT / "docs" / "cluster.md").read_text()
    assert re.findall(r"FROM rayproject/ray:([\d.]+)-py311-gpu", text) == [ray.__version__]
    assert set(re.findall(r"mst:ray([\d.]+\d)", text)) == {ray.__version__}
