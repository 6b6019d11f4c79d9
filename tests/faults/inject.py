"""What strikes, inside the process that runs the sweep: events are counted, and one of them is the fault's.

An event is a call of the storage under the results folder (`create`, `write`, `open`, `fsync`, `replace`, `unlink`,
`mkdir`, `list`, `stat`), a write to the terminal (`print`, `complain`), the start of a trial (`start`), a call of the
user's code (`load`, `build`, `forward`), or one of Ray's (`ray`). All processes of a sweep count together.

In process the clock is simulated: nobody sleeps, and a storage call that takes an hour takes none.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import re
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

from faults import checks, victims  # now: what is imported while a cell runs counts as its code
from faults.plans import Fault, exception

_os = {name: getattr(os, name) for name in ("open", "close", "write", "lseek", "replace", "unlink", "mkdir", "stat")}
_open = io.open
HOUR = 3600.0
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTIXVQAAAABJRU5ErkJggg==")


class Hook:
    """Counts events, and strikes at those of a fault.

    Args:
        fault: What strikes; None only counts.
        work: The folder in which the processes count together.
        root: The results folder.
    """

    def __init__(self, fault: Fault | None, work: str, root: str) -> None:
        self.fault, self.work, self.root = fault, work, os.path.abspath(root)
        self.driver = int(os.environ["FAULTS_DRIVER"]) if "FAULTS_DRIVER" in os.environ else os.getpid()
        self.process, self.striking, self.ahead = os.getpid(), False, 0.0

    @property
    def role(self) -> str:
        """`driver` or `worker`."""
        return "driver" if os.getpid() == self.driver else "worker"

    def note(self, name: str, text: str) -> int:
        """Append a line to a file of `work`; returns how many bytes it then has, of all processes."""
        file = _os["open"](f"{self.work}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _os["write"](file, text.encode())
            return _os["lseek"](file, 0, os.SEEK_CUR)
        finally:
            _os["close"](file)

    def strikes(self, kind: str, path: object = "") -> bool:
        """Count an event; returns whether the fault is to strike at it."""
        fault = self.fault
        if self.striking or os.getpid() != self.process:  # of the fault itself, or of a process that draws figures
            return False
        if fault is None:
            self.note("events", f"{kind} {os.path.relpath(path, self.root) if path else ''}\n")
            return False
        if kind not in fault.kinds:
            return False
        if fault.role not in ("", self.role) or not re.search(fault.path, str(path)):
            return False
        number = self.note("count", ".")
        return fault.at <= number < fault.at + fault.lasting

    def strike(self, path: object = "") -> None:
        """Do what the fault does."""
        self.striking = True
        try:
            self.note("struck", f"{self.fault.action} {path}\n")
            _ACTIONS[self.fault.action](self, path)
        finally:
            self.striking = False

    def event(self, kind: str, path: object = "") -> None:
        """An event that is only counted, or struck before it."""
        if self.strikes(kind, path):
            self.strike(path)

    def around(self, kind: str, path: object, call: Callable[[], object], torn: Callable[[], object] = int) -> object:
        """A call that is an event: struck before, after, or in its midst, when `torn` has been done of it."""
        if not self.strikes(kind, path):
            return call()
        if self.fault.position == "after":
            value = call()
            self.strike(path)
            return value
        if self.fault.position == "torn":
            torn()
        self.strike(path)
        return call()

    def inside(self, path: object) -> bool:
        """Whether a path lies in the results folder."""
        if not isinstance(path, str | os.PathLike):
            return False
        path = os.path.abspath(path)
        return path == self.root or path.startswith(f"{self.root}/")


hook: Hook | None = None
"""That of this process."""


def event(kind: str) -> None:
    """Count a call of the user's code."""
    if hook:
        hook.event(kind)


sys.faults_event = event


def _signal(hook: Hook, path: object) -> None:
    number = getattr(signal, hook.fault.signal)
    for process in victims.of(hook.fault.victim, hook.driver):
        os.kill(process, number)


def _error(hook: Hook, path: object) -> None:
    number = getattr(errno, hook.fault.errno)
    raise OSError(number, os.strerror(number), str(path))


def _raise(hook: Hook, path: object) -> None:
    raise exception(hook.fault.raises)


def _delay(hook: Hook, path: object) -> None:
    """The call takes an hour, in which others look into the folder."""
    hook.ahead += HOUR
    if problems := checks.readable(Path(hook.root)):
        hook.note("problems", "".join(f"{problem}, while {path} is slow\n" for problem in problems))


_ACTIONS = {"signal": _signal, "error": _error, "raise": _raise, "delay": _delay}


class _Terminal(io.RawIOBase):
    """A stream of the terminal's, each write of which is an event."""

    def __init__(self, file: int, kind: str) -> None:
        super().__init__()
        self.file, self.kind = file, kind

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.file

    def write(self, content: object) -> int:
        hook.event(self.kind)
        return _os["write"](self.file, content)


class _File:
    """An open file, each write to which is an event."""

    def __init__(self, file: object, path: object) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> object:
        return iter(self._file)

    def write(self, content: str | bytes) -> object:
        def torn() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        return hook.around("write", self._path, lambda: self._file.write(content), torn)


def install(fault: Fault | None, work: str, root: str) -> None:
    """Wrap the storage calls of this process."""
    global hook
    hook = Hook(fault, work, root)
    builtins.open = io.open = _opener
    for name, kind in (("replace", "replace"), ("rename", "replace"), ("unlink", "unlink"), ("mkdir", "mkdir"),
                       ("listdir", "list"), ("scandir", "list"), ("stat", "stat")):  # fmt: skip
        setattr(os, name, _wrapped(getattr(os, name), kind))
    os.fsync = _fsync(os.fsync)
    _wrap_writers()


terminal: dict[str, io.TextIOWrapper] = {}
"""The streams of this process as they were first, by name."""


def install_terminal() -> None:
    """Let each write to the terminal be an event."""
    for name, file, kind in (("stdout", 1, "print"), ("stderr", 2, "complain")):
        buffer = io.BufferedWriter(_Terminal(file, kind))
        errors = getattr(sys, name).errors
        terminal[name] = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=name == "stderr")
        setattr(sys, name, terminal[name])


def _wrapped(real: Callable, kind: str) -> Callable:
    @wraps(real)
    def call(*args: object, **kwargs: object) -> object:
        if not args or not hook.inside(args[0]):
            return real(*args, **kwargs)
        return hook.around(kind, args[0], lambda: real(*args, **kwargs))

    return call


def _fsync(real: Callable) -> Callable:
    def call(file: int) -> None:
        path = os.readlink(f"/proc/self/fd/{file}")
        if not hook.inside(path):
            return real(file)
        return hook.around("fsync", path, lambda: real(file))

    return call


def _opener(file: object, mode: str = "r", *args: object, **kwargs: object) -> object:
    if not hook.inside(file):
        return _open(file, mode, *args, **kwargs)
    writes = set(mode) & set("wax+")
    opened = hook.around("create" if writes else "open", file, lambda: _open(file, mode, *args, **kwargs))
    return _File(opened, file) if writes else opened


def _wrap_writers() -> None:
    """Arrow and PyTorch write to files by code of their own."""
    import pyarrow.parquet as pq
    import torch

    def wrapped(real: Callable, place: int, failure: type[Exception]) -> Callable:
        @wraps(real)
        def call(*args: object, **kwargs: object) -> object:
            path = args[place]
            if not hook.inside(path):
                return real(*args, **kwargs)

            def torn() -> None:
                whole = io.BytesIO()
                real(*args[:place], whole, *args[place + 1 :], **kwargs)
                with _open(path, "wb") as file:
                    file.write(whole.getvalue()[: whole.tell() // 2])

            try:
                return hook.around("write", path, lambda: real(*args, **kwargs), torn)
            except OSError as error:
                raise failure(error) from None

        return call

    pq.write_table = wrapped(pq.write_table, 1, lambda error: error)
    torch.save = wrapped(torch.save, 1, lambda error: RuntimeError(f"PytorchStreamWriter failed writing file: {error}"))


def simulate_time() -> None:
    """Let nobody sleep: the clock of this process jumps instead."""
    from raysat.storage import retry

    real = {name: getattr(time, name) for name in ("monotonic", "perf_counter", "time")}

    def shifted(clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + (hook.ahead if hook else 0.0)

    for name, clock in real.items():
        setattr(time, name, shifted(clock))

    def sleep(seconds: float) -> None:
        hook.ahead += seconds

    time.sleep = sleep
    retry.RetryingWriter.__init__.__defaults__ = (time.monotonic, sleep)
    retry.RetryPolicy.__init__.__defaults__ = (sleep,)
    retry.retry_read.sleep = sleep


def small_steps() -> None:
    """Let a tiny trial have many checkpoints, and a few part-files be merged."""
    from raysat.storage import store
    from raysat.trial import train as trial

    store.COMPACT_AFTER = 3
    trial.STEPS_AT_ONCE, trial.CHECKPOINT_SHARE = 1, float("inf")


def light_figures() -> None:
    """Let figures be files of a pixel: what they show is tested elsewhere."""
    from matplotlib.figure import Figure

    from raysat.plots import drawing

    def savefig(figure: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(PIXEL)

    Figure.savefig = savefig
    drawing._processes = lambda: 1
    drawing.Figure.get_layout_engine = lambda figure: type("", (), {"execute": lambda *_: None})


def traced(job: object) -> object:
    """`run_trials`, the start of which is an event; in a worker of Ray's it first wraps what that process calls."""
    from raysat.trial.train import run_trials

    if hook is None:
        request = json.loads(Path(os.environ["FAULTS_REQUEST"]).read_text())
        small_steps()
        install(Fault.of(request["fault"]), request["work"], request["root"])
        _wrap_ray()
    for one in job.members:
        hook.note("starts", f"{one.key}\n")
    hook.event("start", job.key)
    return run_trials(job)


def _wrap_ray() -> None:
    """Let what is asked of Ray be an event."""
    import ray
    from ray import tune

    for owner, name in itertools.chain(
        ((ray, name) for name in ("get", "put", "nodes", "cluster_resources")), [(tune, "report")]
    ):
        real = getattr(owner, name)

        def call(*args: object, _real: Callable = real, _name: str = name, **kwargs: object) -> object:
            hook.event("ray", _name)
            return _real(*args, **kwargs)

        setattr(owner, name, call)


def prepare(fault: Fault | None, work: str, root: str, plant: str = "", *, inline: bool) -> None:
    """All of it, in the process of the command."""
    from faults import planted
    from raysat.driver import loop as driver

    small_steps()
    light_figures()
    if inline:
        simulate_time()
    if plant:
        planted.DEFECTS[plant]()
    install(fault, work, root)
    install_terminal()
    if not inline:
        _wrap_ray()
    driver.run_trials = traced
    with suppress(ValueError):
        sys.argv[0] = "raysat.sweep"
