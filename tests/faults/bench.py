"""Draws, one after the other: a fresh folder, a run that is struck, and undisturbed ones until all is done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from faults import checks
from faults.checks import Ended
from faults.damage import damage
from faults.plans import Fault, drawn, on_ray

TESTS = Path(__file__).parents[1]
NET = '''
"""A small data set and network, each use of which is an event of the fault harness's."""

import sys

import torch
from torch import nn

from raysat.data import Dataset


def event(kind):
    if harness := getattr(sys, "faults_event", None):  # not by its module's name, which is hidden from jobs
        harness(kind)


class Net(nn.Sequential):
    def forward(self, x):
        event("forward")
        return super().forward(x)


def load():
    event("load")
    draw = torch.Generator().manual_seed(0)
    return Dataset(x=torch.randn(12, 3, generator=draw), y=torch.randn(12, 2, generator=draw))


def build(width, input_shape, outputs):
    event("build")
    return Net(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, outputs))
'''
SWEEP = """
from raysat import Sweep, theory
sweep = Sweep(name="tiny", dataset="my_net:load", models=["my_net:build"], widths=[2, 4], batch_sizes=[1, 12],
              stepsizes=[theory()], iterations=4, seeds=2, evaluations=3, checkpoint_seconds=1e-9, ntk_at=[2])
"""
CELLS = 8
AGAIN = 3
"""How often the command is run again before it is said that it does not end."""


@dataclass
class Draw:
    """What became of a draw.

    Attributes:
        seed: Its seed.
        fault: What was drawn.
        struck: Where it struck; empty where it did not.
        problems: What should not be.
        seconds: How long it took.
    """

    seed: int
    fault: Fault
    struck: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        said = "struck at " + self.struck if self.struck else "did not strike"
        lines = [f"seed {self.seed}, {self.fault}; {said}; {self.seconds:.1f} s", *self.problems]
        return "\n    ".join(lines)


class Bench:
    """Where draws are made. A context manager."""

    def __init__(self) -> None:
        self.plant, self.draws = "", 0

    def __enter__(self) -> Bench:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a tiny sweep waits for the disk else
        self._kept = TemporaryDirectory(prefix="faults-", dir=memory)
        self.folder = Path(self._kept.name)
        (self.folder / "my_net.py").write_text(NET)
        (self.folder / "tiny.py").write_text(SWEEP)
        environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": self._kept.name, "COLUMNS": "100"}
        self.environment = environment
        command = [sys.executable, "-W", "ignore", "-m", "faults.child"]
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        modules = self.folder / "modules"
        self.census, self.whole = {}, {}
        first = self._start("fresh", None, modules=str(modules))
        self._ask({"imports": [name for name in modules.read_text().splitlines() if name != "my_net"]})
        self.whole = {name: checks.table(first, name) for name in checks.TABLES}
        merging = Fault("", "signal", ("unlink",), 1, signal="SIGKILL", path="/trials/[0-9a-f]{16}.parquet")
        saving = Fault("", "signal", ("replace",), 4 * 5 + 2, signal="SIGKILL", path="/checkpoints/")
        for name, fault in (("half", merging), ("cut", saving)):
            self._start(name, fault)
        shutil.copytree(first, self.starts["done"])
        for name in ("half", "cut", "done"):
            self._count(name)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()
        self._kept.cleanup()

    @contextmanager
    def planted(self, defect: str) -> Iterator[None]:
        """Plant one of `planted.DEFECTS` in every run that is struck."""
        self.plant = defect
        try:
            yield
        finally:
            self.plant = ""

    @cached_property
    def starts(self) -> dict[str, Path]:
        """The folder with which a run begins."""
        return {name: self.folder / "starts" / name / "tiny" for name in ("fresh", "half", "cut", "done")}

    def _start(self, name: str, fault: Fault | None, **more: str) -> Path:
        """Make a folder to start from, and where nothing strikes take the census of the events."""
        work = self.folder / "work" / name
        work.mkdir(parents=True)
        root = self.starts[name]
        ended = self.run(work, root, fault, **more)
        if fault is None:
            assert ended.code == 0, ended
            self.census[name] = _events(work)
        else:
            assert ended.code == -signal.SIGKILL, ended
        return root

    def _count(self, name: str) -> None:
        work = self.folder / "work" / f"count-{name}"
        work.mkdir(parents=True)
        root = work / "results" / "tiny"
        shutil.copytree(self.starts[name], root, symlinks=True)
        ended = self.run(work, root, None)
        assert ended.code == 0, ended
        self.census[name] = _events(work)

    def _ask(self, request: dict) -> dict:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def run(self, work: Path, root: Path, fault: Fault | None, *more: str, ray: bool = False, **request: str) -> Ended:
        """The command, once.

        Args:
            work: Where its processes count together.
            root: The results folder.
            fault: What strikes it.
            more: Further arguments.
            ray: Whether under Ray.
            request: What else `child` is asked.
        """
        arguments = [str(self.folder / "tiny.py"), "--results", str(root.parent), *more, *["--inline"] * (not ray)]
        plant = self.plant if fault and fault.name else ""
        files = {name: str(work / name) for name in ("stdout", "stderr")}
        for name in (*files, "starts", "count"):
            (work / name).unlink(missing_ok=True) if name in files or not fault else None
        about = {"module": "raysat.sweep", "arguments": arguments, "fault": fault and fault.plain, "plant": plant}
        request = {**about, "work": str(work), "root": str(root), **files, **request}
        (work / "starts").unlink(missing_ok=True)
        code = self._on_ray(work, request) if ray else self._ask(request)["code"]
        said = {name: _text(work / name) for name in ("stdout", "stderr", "starts")}
        return Ended(code, said["stdout"], said["stderr"], tuple(said["starts"].split()))

    def _on_ray(self, work: Path, request: dict) -> int:
        """The command in a new process; what it leaves behind is ended with it."""
        asked = work / "request.json"
        asked.write_text(json.dumps(request))
        temporary = TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True)  # sockets' names are short
        more = {"FAULTS_REQUEST": str(asked), "RAY_TMPDIR": temporary.name, "TMPDIR": temporary.name}
        command = [sys.executable, "-W", "ignore", "-m", "faults.child", str(asked)]
        with open(request["stdout"], "w") as out, open(request["stderr"], "w") as err, temporary:
            process = subprocess.Popen(command, env=self.environment | more, cwd=work, stdout=out, stderr=err)
            code = process.wait()
            for left in _with(f"FAULTS_REQUEST={asked}"):
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
        return code

    def draw(self, seed: int, ray: bool | None = None) -> Draw:
        """Make the draw of a seed."""
        begun = monotonic()
        draw = Draw(seed, drawn(seed, self.census))
        self.draws += 1
        work = self.folder / "work" / f"draw-{self.draws}"
        root = work / "results" / "tiny"
        work.mkdir(parents=True)
        if draw.fault.start != "fresh":
            shutil.copytree(self.starts[draw.fault.start], root, symlinks=True)
        try:
            self._drawn(draw, work, root, on_ray(seed))
        finally:
            shutil.rmtree(work)
        draw.seconds = monotonic() - begun
        return draw

    def _drawn(self, draw: Draw, work: Path, root: Path, ray: bool) -> None:
        fault, problems = draw.fault, draw.problems
        if fault.action == "damage":
            draw.struck = damage(root, fault.file, fault.damage, fault.draw)
        else:
            before = checks.finished(root, self.whole)
            ended = self.run(work, root, fault, ray=ray)
            draw.struck = _text(work / "struck").partition("\n")[0]
            codes, mute = allowed(fault)
            if draw.struck:
                problems += [f"{one} (struck)" for one in checks.ended_well(ended, codes, mute=mute)]
            problems += _text(work / "problems").splitlines()
            problems += [f"{one}, after the fault" for one in checks.readable(root)]
            problems += _rerun(before, ended)
            if ended.code == 0:
                raised = fault.action == "raise"
                problems += [f"{one}, with exit code 0" for one in checks.complete(root, self.whole, raised=raised)]
        (work / "struck").unlink(missing_ok=True)
        more: tuple[str, ...] = ()
        for _ in range(AGAIN):
            before = checks.finished(root, self.whole)
            ended = self.run(work, root, None, *more, ray=ray)
            problems += _rerun(set() if more else before, ended)
            if ended.code == 0:
                break
            fresh = ended.code == 2 and "--fresh" in ended.err and fault.file == "sweep.json"
            more = ("--fresh",) * fresh
            if not fresh and not (ended.code == 1 and fault.action == "raise"):
                problems += checks.ended_well(ended, [0])
        else:
            problems.append("the command does not end")
        if ended.code == 0:
            problems += checks.complete(root, self.whole, raised=fault.action == "raise")


def allowed(fault: Fault) -> tuple[set[int], bool]:
    """The exit codes that a fault allows, and whether the last line may be lost."""
    if fault.action == "signal":
        if fault.victim != "self":  # Ray's own programs: the driver may go on, or end with its sentence
            return {0, 1, 4}, False
        ends = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}
        return ({0} if fault.role == "worker" else {ends[fault.signal]}), False
    if fault.action == "raise":  # statistics that are tried in several ways may do without the one that raised
        return {0, 1, 2, 4, 5}, False
    mute = {"print", "complain"} <= set(fault.kinds) or fault.name == "terminal"
    return ({0} if fault.name in ("delay", "terminal") else {0, 1, 2, 3}), mute


def _rerun(finished: set[str], ended: Ended) -> list[str]:
    again = sorted(finished & set(ended.started))
    return [f"{len(again)} cells ran again that were finished and readable: {', '.join(again)}"] * bool(again)


def _events(work: Path) -> Sequence[tuple[str, str]]:
    return [line.partition(" ")[::2] for line in _text(work / "events").splitlines()]


def _text(path: Path) -> str:
    return path.read_text(errors="backslashreplace") if path.exists() else ""


def _with(setting: str) -> list[int]:
    """The processes that have something in their environment: those that a draw has started, and no others."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{setting}\0".encode() in (folder / "environ").read_bytes() + b"\0":
                found.append(int(folder.name))
    return found
