"""Every cluster file that is shipped: through Ray's own check, and through checks of what that one misses."""

import copy
import re
import subprocess
import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from raysat.sweep import _parser

ROOT = Path(__file__).parents[2]
FILES = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "cluster.yaml", ROOT / "cluster-local.yaml")}
REQUIREMENTS = {
    requirement.name: requirement
    for requirement in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
}
PINS = {
    pin.name: pin for pin in map(Requirement, re.findall(r"^[\w-]+==\S+", (ROOT / "constraints.txt").read_text(), re.M))
}
START_UP_MINUTES = 10
"""What a GPU machine takes from its launch to its first trial: to boot, to pull the image, to install the project."""

# The fields of KubeRay's v1 resources, as far as a job file has use for them.
RAY_JOB = {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAY_CLUSTER = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}


def problems(config: dict) -> list[str]:
    """What is wrong with a cluster file that Ray's check lets pass."""
    found = []
    if not re.fullmatch(r"[a-zA-Z][\w-]*", config["cluster_name"]):
        found.append("cluster_name")
    if not config.get("auth", {}).get("ssh_user"):
        found.append("ssh_user")
    if any(not (ROOT / source).exists() for source in config["file_mounts"].values() if not source.startswith("~")):
        found.append("file_mounts")
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        found.append("auth_token")
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[commands] if "ray start" in command]
        if len(starts) != 1 or "RAY_AUTH_MODE=token ray start" not in starts[0]:
            found.append(commands)
    if {".git", "results"} - set(config["rsync_exclude"]):
        found.append("rsync_exclude")
    if "--constraint" not in " ".join(config["setup_commands"]):
        found.append("setup_commands")
    counts = [config, *config.get("available_node_types", {}).values()]
    if any(counted.get(name, 0) < 0 for counted in counts for name in ("min_workers", "max_workers")):
        found.append("max_workers")
    for key, image in config.get("docker", {}).items():
        if key.endswith("image") and not REQUIREMENTS["ray"].specifier.contains(image.partition(":")[2].split("-")[0]):
            found.append(key)
    return found + (aws_problems(config) if config["provider"]["type"] == "aws" else [])


@cache
def run_instances():
    """The service model of EC2, and the shape of what RunInstances takes."""
    session = pytest.importorskip("botocore.session").get_session()
    return session, session.get_service_model("ec2").operation_model("RunInstances").input_shape


def aws_problems(config: dict) -> list[str]:
    """What is wrong on AWS: the region, and what RunInstances would not take."""
    session, shape = run_instances()
    validate = pytest.importorskip("botocore.validate").ParamValidator().validate
    found = []
    region = config["provider"].get("region", "")
    if region not in session.get_available_regions("ec2"):
        found.append("region")
    if any(not zone.startswith(region) for zone in config["provider"]["availability_zone"].split(",")):
        found.append("availability_zone")
    if config["provider"].get("cache_stopped_nodes", True):
        found.append("cache_stopped_nodes")
    types = config["available_node_types"]
    for name, kind in types.items():
        needed = {"InstanceType", "ImageId", "IamInstanceProfile"} - set(kind["node_config"])
        report = validate({"MinCount": 1, "MaxCount": 1, **kind["node_config"]}, shape).generate_report()
        if needed or report:
            found.append(f"node_config of {name}")
        if (name == config["head_node_type"]) != (kind["resources"]["CPU"] == 0):
            found.append(f"resources of {name}")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_passes_rays_check_and_ours(name):
    config = FILES[name]
    validate_config(prepare_config(copy.deepcopy(config)))
    assert problems(config) == []


def test_workers_on_aws_are_on_spot_and_of_more_than_one_instance_type():
    types = FILES["cluster.yaml"]["available_node_types"]
    workers = [kind["node_config"] for name, kind in types.items() if name != FILES["cluster.yaml"]["head_node_type"]]
    assert {worker["InstanceMarketOptions"]["MarketType"] for worker in workers} == {"spot"}
    assert len({worker["InstanceType"] for worker in workers}) == len(workers) == 2


MISTAKES = {
    "cluster_name": lambda config: config.update(cluster_name=""),
    "ssh_user": lambda config: config["auth"].pop("ssh_user"),
    "file_mounts": lambda config: config["file_mounts"].update({"~/data": "no-such-folder"}),
    "auth_token": lambda config: config["file_mounts"].pop("~/.ray/auth_token"),
    "worker_start_ray_commands": lambda config: config.update(worker_start_ray_commands=["ray start"]),
    "rsync_exclude": lambda config: config.update(rsync_exclude=[]),
    "setup_commands": lambda config: config.update(setup_commands=["pip install raysat"]),
    "max_workers": lambda config: config["available_node_types"]["gpu"].update(max_workers=-1),
    "worker_image": lambda config: config["docker"].update(worker_image="rayproject/ray:2.59.0-py311-gpu"),
    "region": lambda config: config["provider"].pop("region"),
    "availability_zone": lambda config: config["provider"].update(availability_zone="us-east-1a"),
    "cache_stopped_nodes": lambda config: config["provider"].pop("cache_stopped_nodes"),
    "node_config of gpu": lambda config: config["available_node_types"]["gpu"]["node_config"].update(InstanceTyp="x"),
    "node_config of head": lambda config: config["available_node_types"]["head"]["node_config"].pop("ImageId"),
    "resources of head": lambda config: config["available_node_types"]["head"]["resources"].update(CPU=4),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake):
    config = copy.deepcopy(FILES["cluster.yaml"])
    for kind in config["available_node_types"].values():  # a YAML anchor is one object in several places
        kind["node_config"] = copy.deepcopy(kind["node_config"])
    MISTAKES[mistake](config)
    assert mistake in problems(config)


def test_constraints_pin_every_dependency_within_its_range():
    assert set(PINS) == {*REQUIREMENTS, "boto3"}
    for name, requirement in REQUIREMENTS.items():
        (specifier,) = PINS[name].specifier
        assert requirement.specifier.contains(Version(specifier.version)), PINS[name]


def test_the_boto3_that_launches_workers_is_the_one_that_is_tested():
    pytest.importorskip("boto3")
    assert PINS["boto3"].specifier.contains(version("boto3"))


def test_a_machine_that_has_started_is_not_ended_before_its_first_trial():
    job = yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())
    assert FILES["cluster.yaml"]["idle_timeout_minutes"] >= 1.5 * START_UP_MINUTES
    idle = job["spec"]["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"]
    assert idle >= 1.5 * 60 * START_UP_MINUTES


@pytest.mark.parametrize("name", FILES)
def test_a_second_launch_installs_nothing_unless_the_versions_have_changed(name, tmp_path):
    project, installer, calls = tmp_path / "raysat-src", tmp_path / "raysat-env" / "bin" / "pip", tmp_path / "calls"
    for path in (project, installer.parent):
        path.mkdir(parents=True)
    for file in ("constraints.txt", "pyproject.toml"):
        (project / file).write_bytes((ROOT / file).read_bytes())
    installer.write_text(f'#!/bin/sh\ntest -z "$BROKEN" && pwd >> {calls} && echo "$*" >> {calls}\n')
    (installer.parent / "python").write_text("")
    for program in installer.parent.iterdir():
        program.chmod(0o755)

    def launch(**environment: str) -> int:
        """How often something was installed when all setup commands have run."""
        inside = {"HOME": str(tmp_path), "PATH": f"{installer.parent}:/usr/bin:/bin", **environment}
        for command in FILES[name]["setup_commands"]:
            done = subprocess.run(["bash", "-c", command], env=inside, timeout=60, check=False)
            if done.returncode:
                break
        assert bool(done.returncode) == bool(environment)
        return calls.read_text().count("--constraint constraints.txt --editable .") if calls.exists() else 0

    assert launch(BROKEN="1") == 0
    assert launch() == 1
    assert launch() == 1
    (project / "constraints.txt").write_text("torch==3.0.0\n")
    assert launch() == 2
    assert set(calls.read_text().splitlines()[::2]) == {str(project)}


def test_the_kuberay_job_runs_a_sweep_with_the_projects_ray():
    job = yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(spec) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert REQUIREMENTS["ray"].specifier.contains(cluster["rayVersion"])
    python, option, module, *arguments = spec["entrypoint"].split()
    assert (python, option, module) == ("python", "-m", "raysat.sweep")
    assert (ROOT / _parser().parse_args(arguments).file).exists()
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in (head, worker):
        (container,) = group["template"]["spec"]["containers"]
        version = container["image"].rpartition(":")[2].split("-")[0]
        assert version == cluster["rayVersion"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
