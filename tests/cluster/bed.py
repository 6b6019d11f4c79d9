"""Several hosts on one machine, which to Ray's launcher are machines that it reaches by ssh.

Each has its own network, process, mount, host name and IPC namespaces, with sshd as its first process, and its own home
folder, /tmp and /dev/shm.

A bridge in a namespace of its own joins them. All of it ends with the `with` block; where this process is killed, the
hosts die with it, and the next bed removes their names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NETWORK = "10.77.0"
HOME = "/tmp/home"  # of every host's root, in its own /tmp
ROOT = Path(__file__).parents[2]

_FIRST_PROCESS = r"""
set -e
cd /
base=$1 shared=$2
for folder in $shared; do  # what of the real /tmp a host must see: the interpreter, the project
    case $folder in /tmp/*)
        mkdir -p "$base$folder"
        mount --bind "$folder" "$base$folder" ;;
    esac
done
mount --bind "$base/passwd" /etc/passwd
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
cp "$base/sshd_config" "$base/key" /run/
mount --rbind "$base/tmp" /tmp
hostname "$3"
exec /usr/sbin/sshd -D -e -f /run/sshd_config
"""

_SSHD = f"""
HostKey /run/key
AuthorizedKeysFile {HOME}/.ssh/authorized_keys
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
MaxSessions 100
"""


def missing() -> str:
    """Why no bed can be made here; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare", "nsenter", "setpriv", "ssh", "sshd", "ssh-keygen", "rsync"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            return f"{program} is not installed: apt-get install iproute2 openssh-server rsync"
    unshare = ["unshare", "-n", "-p", "-f", "-m", "-u", "-i", "true"]
    attempt = subprocess.run(unshare, capture_output=True, text=True, timeout=60, check=False)
    return f"no namespaces: {attempt.stderr.strip()}" if attempt.returncode else ""


@dataclass
class Host:
    """One host.

    Attributes:
        address: Its address.
        namespace: The name of its network namespace.
        home: Its root's home folder, as this process sees it.
        process: The process outside that all of it hangs on.
    """

    address: str
    namespace: str
    home: Path
    process: subprocess.Popen

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """The command line that runs `arguments` in a login shell's environment on the host."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inside = {
            "HOME": HOME,
            "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM": "dumb",
            **environment,
        }
        return [
            *("nsenter", "--target", children[0], "--all", f"--wdns={HOME}", "env", "-i"),
            *(f"{name}={value}" for name, value in inside.items()),
            *arguments,
        ]

    def launch(self, *arguments: str, output: int | IO = subprocess.PIPE, **environment: str) -> subprocess.Popen:
        """Start a command in the project's folder; what it says, errors too, goes to `output`."""
        line = self.command("sh", "-c", f'cd {ROOT} && exec "$@"', "sh", *arguments, **environment)
        nothing, merged = subprocess.DEVNULL, subprocess.STDOUT
        return subprocess.Popen(line, stdin=nothing, stdout=output, stderr=merged, text=True)

    def run(self, *arguments: str, timeout: float = 240, **environment: str) -> str:
        """A command in the project's folder, to its end; what it said."""
        process = self.launch(*arguments, **environment)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == 0, output
        return output

    def kill(self) -> None:
        """The machine is gone with all its processes; its kernel still answers, as with one that was switched off."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Bed:
    """Hosts `self.hosts`, with one key that opens all of them, and the project at its usual path on each.

    Args:
        count: How many hosts.
    """

    def __init__(self, count: int) -> None:
        self.name = f"bed{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="raysat-bed-"))
        self.hosts: list[Host] = []
        self.count = count

    def __enter__(self) -> Bed:
        for name in _namespaces("bed"):  # of a process that was killed
            if not Path("/proc", name.removeprefix("bed").partition("-")[0]).exists():
                _ip("netns", "delete", name)
        try:
            self._switch()
            for number in range(self.count):
                self.hosts.append(self._host(number))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            if host.alive:
                host.kill()
        for name in _namespaces(f"{self.name}-"):
            for process in _ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            _ip("netns", "delete", name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def left(self, patience: float = 10.0) -> list[str]:
        """What is left of the bed once it has been taken apart, after some seconds: namespaces, processes of hosts."""
        until = time.monotonic() + patience
        while True:
            found = _namespaces(f"{self.name}-")
            for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
                with contextlib.suppress(OSError):  # it has ended
                    if str(self.folder) in mounts.read_text():
                        found.append((mounts.parent / "cmdline").read_text().replace("\0", " "))
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def _switch(self) -> None:
        key = self.folder / "id_ed25519"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        switch = f"{self.name}-switch"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "address", "add", f"{NETWORK}.1/24", "dev", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")

    def _host(self, number: int) -> Host:
        namespace, address = f"{self.name}-{number}", f"{NETWORK}.{number + 10}"
        base = self.folder / str(number)
        home = base / HOME.lstrip("/")
        (home / ".ssh").mkdir(parents=True)
        (base / "tmp").chmod(0o1777)
        for name in ("id_ed25519", "id_ed25519.pub"):
            shutil.copy(self.folder / name, home / ".ssh")
        shutil.copy(self.folder / "id_ed25519", base / "key")
        shutil.copy(self.folder / "id_ed25519.pub", home / ".ssh" / "authorized_keys")
        (home / ".ssh" / "config").write_text("StrictHostKeyChecking no\n")
        (base / "passwd").write_text(Path("/etc/passwd").read_text().replace(":/root:", f":{HOME}:", 1))
        (base / "sshd_config").write_text(_SSHD)

        _ip("netns", "add", namespace)
        _ip("link", "add", "name", "eth0", "netns", namespace, "type", "veth", "peer", "name", f"port{number}",
            "netns", f"{self.name}-switch")  # fmt: skip
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{number}", "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", namespace, "route", "add", "default", "via", f"{NETWORK}.1")  # Ray finds its own address by it

        shared = " ".join({sys.prefix, sys.base_prefix, str(ROOT)})
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),  # where this process is killed, the host dies with it
                *("ip", "netns", "exec", namespace, "unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts"),
                *("--ipc", "--mount-proc", "bash", "-c", _FIRST_PROCESS, "bash", str(base), shared, f"host{number}"),
            ],
            stdout=(base / "log").open("w"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        host = Host(address, namespace, home, process)
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectionAttempts=50",
            "LogLevel=ERROR",
        )
        ssh = ["ssh", "-i", self.folder / "id_ed25519", *(word for option in options for word in ("-o", option))]
        try:
            _run("ip", "netns", "exec", namespace, *ssh, f"root@{address}", "true")
        except subprocess.SubprocessError as error:
            host.kill()
            raise RuntimeError(f"host {number} does not answer: {(base / 'log').read_text()}") from error
        return host

    def cut(self, number: int) -> None:
        """Pull a host's cable: from now on there is silence."""
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{number}", "down")


def _run(*arguments: str | Path) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout


def _namespaces(start: str) -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(start)]


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)
