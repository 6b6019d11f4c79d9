"""The cluster files on hosts of one machine: the real launcher, ssh, sweeps, and hosts that go away under them."""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import pandas as pd
import pytest
import yaml
from cluster import bed

MISSING = bed.missing()
pytestmark = pytest.mark.skipif(bool(MISSING) and "RAYSAT_REQUIRE_BED" not in os.environ, reason=MISSING or "it can")

CLUSTER = f"{bed.HOME}/cluster.yaml"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def make_bed():
    """Makes a bed of so many hosts: a desk, from which the cluster is launched, its head, and workers."""
    if MISSING:
        pytest.fail(f"RAYSAT_REQUIRE_BED is set, and {MISSING}")
    beds = []

    def make(count: int) -> bed.Bed:
        beds.append(bed.Bed(count))
        return beds[-1].__enter__()

    yield make
    for made in beds:
        made.__exit__()
    assert [made.left() for made in beds] == [[] for _ in beds]


def adapted(name: str, laid: bed.Bed) -> dict:
    """A shipped cluster file with the bed's user; its hosts, without network, have what its setup would install."""
    config = copy.deepcopy(yaml.safe_load((bed.ROOT / name).read_text()))
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    versions = ["sha256sum", "constraints.txt", "pyproject.toml"]
    installed = subprocess.run(versions, cwd=bed.ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for host in laid.hosts:
        (host.home / "raysat-env").symlink_to(sys.prefix)
        (host.home / ".raysat-installed").write_text(installed)
        (host.home / ".profile").write_text("export PYTHONPATH=$HOME/raysat-src\n")
    return config


def save(config: dict, laid: bed.Bed) -> None:
    (laid.hosts[0].home / "cluster.yaml").write_text(yaml.safe_dump(config))


def sweep(
    laid: bed.Bed, name: str, sizes: dict[str, object], lose: Callable[[int], None] | None = None, **environment: str
) -> pd.DataFrame:
    """Run a sweep from the desk, lose a host that runs some of its trials, and fetch the rows.

    Args:
        laid: The hosts.
        name: The sweep's name.
        sizes: Fields of it.
        lose: Takes away the host of that number, once four trials have ended; None loses none.
        environment: Of the desk's command.
    """
    desk, head = laid.hosts[:2]
    fields = [f"{key}={value}".replace(" ", "") for key, value in ({"name": name} | sizes).items()]  # of a shell's line
    settings = [word for field in fields for word in ("--set", field)]
    command = ["raysat-src/sweeps/digits.py", "--address", "auto", *settings]
    environment |= QUIET
    process = desk.launch("timeout", "300", "ray", "submit", CLUSTER, "raysat/sweep.py", "--", *command, **environment)
    lines = []
    for line in process.stdout:
        lines.append(line)
        rows = (head.home / "results" / name / "trials").glob("*.parquet")
        ended = sorted((path for path in rows if path.stem != "schema"), key=lambda path: path.stat().st_mtime)
        if lose and len(ended) >= 4:
            hosts = [pd.read_parquet(path)["hostname"].item() for path in reversed(ended)]
            # The last one may be between two trials: the one before it is in the midst of its next.
            lose(int(next((host for host in hosts if host != hosts[0]), hosts[0]).removeprefix("host")))
            lose = None
    assert process.wait() == 0, "".join(lines)
    assert lose is None
    desk.run("ray", "rsync-down", CLUSTER, f"{bed.HOME}/results/{name}", f"{bed.HOME}/fetched/", **environment)
    trials = pd.read_parquet(desk.home / "fetched" / name / "trials")
    assert len(trials) == trials["cell_id"].nunique()
    assert set(trials["status"]) == {"completed"}
    return trials


def test_machines_one_has_and_the_loss_of_two_of_them(make_bed):
    laid = make_bed(5)
    desk, head, *workers = laid.hosts
    config = adapted("cluster-local.yaml", laid)
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    save(config, laid)
    desk.run("ray", "get-auth-token", "--generate")
    desk.run("ray", "up", "--yes", CLUSTER, RAY_UP_enable_autoscaler_v2="0", **QUIET)
    assert (head.home / ".ray" / "auth_token").read_text() == (desk.home / ".ray" / "auth_token").read_text()
    assert (head.home / "raysat-src" / "pyproject.toml").exists()
    assert not (head.home / "raysat-src" / ".git").exists()

    # Trials take longer than a process to start, so that all hosts have some.
    sizes = {"widths": [64], "n_train": 256, "batch_sizes": [1, 4, 16, 64], "iterations": 30_000, "seeds": 2}
    for name, lose in {"killed": lambda number: laid.hosts[number].kill(), "silent": laid.cut}.items():
        trials = sweep(laid, name, sizes, lose)
        assert len(trials) == 16  # 4 batch sizes, 2 stepsizes, 2 seeds
        assert trials["attempts"].max() == 2  # what went down with the host ran again elsewhere
        assert "host1" not in set(trials["hostname"])  # the head runs no trial
    assert "Active:" in desk.run("ray", "exec", CLUSTER, "RAY_AUTH_MODE=token ray status", **QUIET)

    desk.run("ray", "down", "--yes", CLUSTER, **QUIET)
    search = head.command("pgrep", "--list-name", "gcs_server|raylet")
    assert subprocess.run(search, capture_output=True, text=True, timeout=60, check=False).stdout == ""


PREPARE = """
import sys
import boto3

network = sys.argv[1]
boto3.client("cloudformation").create_stack(
    StackName="raysat",
    TemplateBody=open("cluster-iam.yaml").read(),
    Capabilities=["CAPABILITY_NAMED_IAM"],
    Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "raysat-results"}],
)
ec2 = boto3.client("ec2")
vpc = ec2.create_vpc(CidrBlock=f"{network}.0/24")["Vpc"]["VpcId"]
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"{network}.0/24", AvailabilityZone="us-west-2a")
print(subnet["Subnet"]["SubnetId"])
"""

MACHINES = """
import json
import boto3

reservations = boto3.client("ec2").describe_instances()["Reservations"]
print(json.dumps([machine for found in reservations for machine in found["Instances"]], default=str))
"""


@pytest.mark.skipif(find_spec("moto") is None, reason="moto, of the extra 'test', stands in for AWS")
def test_aws_from_an_empty_account_to_trials_on_a_spot_machine(make_bed):
    laid = make_bed(3)
    desk, head, worker = laid.hosts
    aws = {
        "AWS_ENDPOINT_URL": f"http://{desk.address}:5000",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
    }
    serve = (sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "5000")
    log = laid.folder / "moto"
    with log.open("w") as output:  # a pipe that nobody reads would fill up and stop it
        server = desk.launch(*serve, MOTO_IAM_LOAD_MANAGED_POLICIES="true", output=output)
    patience = time.monotonic() + 120
    while "Running on" not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < patience, log.read_text()
        time.sleep(0.1)
    subnet = desk.run(sys.executable, "-c", PREPARE, bed.NETWORK, **aws).strip()

    config = adapted("cluster.yaml", laid)
    del config["docker"], config["available_node_types"]["gpus"]
    config["max_workers"] = config["available_node_types"]["gpu"]["max_workers"] = 1
    config["provider"] |= {"use_internal_ips": True, "availability_zone": "us-west-2a"}
    for kind, host in {"head": head, "gpu": worker}.items():  # the simulated machines are the bed's hosts
        there = {"SubnetIds": [subnet], "PrivateIpAddress": host.address, "KeyName": "bed"}
        config["available_node_types"][kind]["node_config"] |= there
    save(config, laid)
    for host in (head, worker):
        with (host.home / ".profile").open("a") as profile:
            profile.writelines(f"export {name}={value}\n" for name, value in aws.items())
            profile.write("export PATH=$HOME/raysat-env/bin:$PATH\n")

    desk.run("ray", "get-auth-token", "--generate")
    desk.run("ray", "up", "--yes", CLUSTER, **aws, **QUIET)
    sizes = {"widths": [16], "n_train": 64, "batch_sizes": [1, 8, 64], "iterations": 50, "seeds": 1}
    trials = sweep(laid, "spot", sizes, **aws)
    assert set(trials["hostname"]) == {"host2"}
    assert len(trials) == 6

    machines = {machine["InstanceType"]: machine for machine in simulated(desk, aws)}
    assert set(machines) == {"m7i.xlarge", "g6e.2xlarge"}
    assert machines["m7i.xlarge"]["IamInstanceProfile"]["Arn"].endswith("/raysat-head")
    assert machines["g6e.2xlarge"]["IamInstanceProfile"]["Arn"].endswith("/raysat-worker")
    assert machines["g6e.2xlarge"]["InstanceLifecycle"] == "spot"
    for machine in machines.values():
        assert machine["State"]["Name"] == "running"
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["ray-autoscaler-raysat"]

    desk.run("ray", "down", "--yes", CLUSTER, **aws, **QUIET)
    assert {machine["State"]["Name"] for machine in simulated(desk, aws)} == {"terminated"}


def simulated(desk: bed.Host, aws: dict[str, str]) -> list[dict]:
    """The machines of the simulated account."""
    return json.loads(desk.run(sys.executable, "-c", MACHINES, **aws))
