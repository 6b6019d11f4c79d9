"""Faults, drawn from seeds: what strikes, whom, and at which event.

The same seed gives the same fault as long as an undisturbed run has the same events. Seeds run around a wheel of twenty
classes, so that any 200 in a row have each class ten times or more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

Census = Mapping[str, Sequence[tuple[str, str]]]
"""The events of an undisturbed run from each start: kind, and path under the results folder."""

STARTS = "fresh", "half", "cut", "done"
"""What the folder holds at first: nothing; what was left by a driver that was killed while it merged, or while a trial
stored its checkpoint; all."""

STORAGE = "create", "write", "open", "fsync", "replace", "unlink", "mkdir", "list", "stat"
CHANGES = "create", "write", "replace", "unlink", "mkdir"
WRITES = "create", "write", "fsync", "mkdir"
"""Calls for which a disk may be full."""

TABLES = "/(trials|curves|ntk)/"
"""The paths of part-files, which would be few among those of checkpoints."""

USER = "load", "build", "forward"
ANY = (*STORAGE, "print", "start", "build")


@dataclass(frozen=True)
class Fault:
    """What strikes a run.

    Attributes:
        name: Its class.
        action: `signal`, `error` (of the storage), `raise` (in the user's code, or Ray's), `delay` or `damage`.
        kinds: The kinds of events that are counted.
        at: The event at which it strikes, from 1.
        lasting: How many events it lasts.
        position: `before` a call, `after` it, or `torn`: in the midst of a write.
        role: Whose events are counted: `driver`, `worker`, or all.
        path: A pattern of the paths that are counted.
        signal: Its name.
        victim: Who gets the signal: `self`, `raylet`, `gcs_server` or `driver`.
        errno: The error's name.
        raises: A key of `EXCEPTIONS`.
        start: One of `STARTS`.
        damage: What becomes of a file before the run; a key of `raysat`'s `damage.WAYS`.
        file: The pattern of the file.
        draw: Seeds what is left open.
    """

    name: str
    action: str
    kinds: tuple[str, ...] = ANY
    at: int = 1
    lasting: int = 1
    position: str = "before"
    role: str = ""
    path: str = ""
    signal: str = ""
    victim: str = "self"
    errno: str = ""
    raises: str = ""
    start: str = "fresh"
    damage: str = ""
    file: str = ""
    draw: int = 0

    @classmethod
    def of(cls, fields: Mapping | None) -> Fault | None:
        """From plain data."""
        return None if fields is None else cls(**{**fields, "kinds": tuple(fields["kinds"])})

    @property
    def plain(self) -> dict:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        if self.action == "damage":
            return f"{self.name}: {self.file} {self.damage}, from {self.start}"
        what = self.signal or self.errno or self.raises or "an hour"
        when = f"{self.position} {self.role} event {self.at} of {', '.join(self.kinds)}, for {self.lasting}"
        where = f" in {self.path}" * bool(self.path)
        return f"{self.name}: {self.action} {what} to {self.victim}, {when}{where}, from {self.start}"


class Own(BaseException):
    """An exception of the user's that is no `Exception`."""


class Silent(Exception):
    """One whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


EXCEPTIONS = {
    "plain": lambda: RuntimeError("out of luck"),
    "not UTF-8": lambda: RuntimeError("a file named \udcff\udcfe, and \ud800"),
    "zero byte": lambda: ValueError("zero \0 and \x1b[31m escapes"),
    "markup": lambda: ValueError("[/bold] [red]<b>&amp;</b>"),
    "long": lambda: ValueError("x" * 1_000_000),
    "empty": lambda: KeyError(),
    "no text": Silent,
    "memory": lambda: MemoryError(),
    "exit": lambda: SystemExit(3),
    "interrupt": lambda: KeyboardInterrupt(),
    "base": lambda: Own("no Exception"),
    "iteration": lambda: StopIteration(1),
    "disk": lambda: OSError(28, "No space left on device"),
    "ray": lambda: _of_ray(),
    "connection": lambda: ConnectionError("the GCS does not answer"),
}


def _of_ray() -> Exception:
    from ray.exceptions import RaySystemError

    return RaySystemError("the raylet does not answer")


def exception(name: str) -> BaseException:
    """An exception of some kind."""
    return EXCEPTIONS[name]()


def _at(random: Random, census: Census, start: str, kinds: Sequence[str], path: str = "") -> int:
    """One of the events that an undisturbed run has."""
    count = sum(kind in kinds and bool(re.search(path, f"/{of}")) for kind, of in census[start])
    return random.randint(1, max(1, count))


def _signal(name: str):
    def make(random: Random, census: Census) -> Fault:
        start = random.choice(STARTS)
        kinds = random.choice([ANY, STORAGE, CHANGES, ("write",), ("start", "build", "print")])
        path = random.choice(["", TABLES]) if "write" in kinds else ""
        position = random.choice(["before", "after", "torn", "torn"])
        twice = name == "SIGINT" and random.random() < 0.3
        at = _at(random, census, start, kinds, path)
        return Fault(name, "signal", kinds, at, 1 + twice, position, path=path, signal=name, start=start)

    return make


def _full(random: Random, census: Census) -> Fault:
    start = random.choice(STARTS)
    kinds = WRITES + ("print", "complain") * (random.random() < 0.5)
    lasting = random.choice([1, 1, 2, 5, 20, 200])
    path = "" if "print" in kinds else random.choice(["", TABLES])
    position = random.choice(["before", "torn"])
    at = _at(random, census, start, kinds, path)
    return Fault("disk full", "error", kinds, at, lasting, position, path=path, errno="ENOSPC", start=start)


def _storage(random: Random, census: Census) -> Fault:
    start = random.choice(STARTS)
    kinds = random.choice([(kind,) for kind in STORAGE] + [STORAGE])
    error = random.choice(["EIO", "EACCES", "ESTALE", "ENOENT", "EROFS", "EINTR", "EMFILE"])
    lasting = random.choice([1, 1, 1, 3, 10])
    position = random.choice(["before", "before", "after"])
    at = _at(random, census, start, kinds)
    return Fault("storage error", "error", kinds, at, lasting, position, errno=error, start=start)


PLACES = (
    "trials/[0-9a-f]{16}", "trials/merged", "trials/schema", "curves/[0-9a-f]{16}", "curves/merged", "ntk/[0-9a-f]{16}",
    "ntk/merged", "checkpoints/", "checkpoints/", "sweep.json", "status.json", "analysis.parquet", "report.html",
)  # fmt: skip


def _damage(random: Random, census: Census) -> Fault:
    place = random.choice(PLACES)
    ways = ["truncated", "emptied", "flipped", "flipped", "swapped", "swapped", "removed"]
    if place not in PLACES[9:]:  # nobody promises that a folder is written over
        ways += ["a folder", "a dangling link", "doubled"]
    way = random.choice(ways)
    start = "cut" if place == "checkpoints/" else random.choice(["cut", "done"])
    return Fault("damaged file", "damage", damage=way, file=place, start=start, draw=random.randrange(1 << 30))


def _delay(random: Random, census: Census) -> Fault:
    start = random.choice(STARTS[:3])
    kinds = random.choice([STORAGE, CHANGES, ("write",)])
    path, position = random.choice(["", TABLES]), random.choice(["before", "torn", "torn", "after"])
    at = _at(random, census, start, kinds, path)
    return Fault("delay", "delay", kinds, at, random.choice([1, 3]), position, path=path, start=start)


def _user(random: Random, census: Census) -> Fault:
    start = random.choice(["fresh", "fresh", "half", "cut"])
    kinds = (random.choice(USER),)
    names = [name for name in EXCEPTIONS if name not in ("ray", "connection")]
    at = _at(random, census, start, kinds)
    return Fault("user code", "raise", kinds, at, random.choice([1, 1, 3]), raises=random.choice(names), start=start)


def _terminal(random: Random, census: Census) -> Fault:
    start = random.choice(STARTS[:3])
    kinds = random.choice([("print",), ("print",), ("print", "complain")])
    error = random.choice(["ENOSPC", "EPIPE", "EIO", "EAGAIN"])
    lasting = random.choice([1, 2, 10_000, 10_000])
    at = _at(random, census, start, kinds)
    return Fault("terminal", "error", kinds, at, lasting, errno=error, start=start)


def _killed(victim: str):
    def make(random: Random, census: Census) -> Fault:
        if victim == "self" or random.random() < 0.5:
            kinds, role, most = random.choice([(("start",), "worker", 8), (("write",), "worker", 20)])
        else:
            kinds, role, most = random.choice([(("write",), "driver", 20), (("replace",), "driver", 20)])
        name = {"self": "worker"}.get(victim, victim)
        at = random.randint(1, most)
        return Fault(f"{name} killed, Ray", "signal", kinds, at, role=role, signal="SIGKILL", victim=victim)

    return make


def _driver(random: Random, census: Census) -> Fault:
    name, start = random.choice(["SIGKILL", "SIGTERM", "SIGINT"]), random.choice(["fresh", "fresh", "half", "cut"])
    kinds = random.choice([STORAGE, ("write", "replace", "unlink"), ("print",)])
    at = _at(random, census, start, kinds)
    return Fault("driver ended, Ray", "signal", kinds, at, role="driver", signal=name, start=start)


def _on_ray(random: Random, census: Census) -> Fault:
    name = "exception, Ray"
    way = random.choice(["driver", "worker", "storage", "user", "full"])
    if way == "driver":
        return Fault(
            name, "raise", ("ray",), random.randint(1, 6), role="driver", raises=random.choice(["ray", "connection"])
        )
    if way == "worker":
        return Fault(
            name, "raise", ("ray",), random.randint(1, 8), role="worker", raises=random.choice(["ray", "exit"])
        )
    if way == "user":
        raises = random.choice(["plain", "not UTF-8", "long", "memory", "exit", "base", "no text", "interrupt"])
        return Fault(name, "raise", ("build",), random.randint(1, 8), role="worker", raises=raises)
    role, errno = ("driver", "EIO") if way == "storage" else (random.choice(["driver", "worker"]), "ENOSPC")
    kinds = ("write",) if way == "full" else ("replace", "open", "fsync")
    return Fault(name, "error", kinds, random.randint(1, 10), random.choice([1, 5]), "torn", role, errno=errno)


INLINE = (
    _signal("SIGKILL"), _storage, _signal("SIGTERM"), _full, _damage, _signal("SIGINT"), _user, _terminal, _delay,
    _signal("SIGKILL"), _storage, _damage, _full, _user, _signal("SIGTERM"),
)  # fmt: skip
RAY = (_killed("self"), _killed("raylet"), _killed("gcs_server"), _driver, _on_ray)
WHEEL = (*INLINE, *RAY)


def on_ray(seed: int) -> bool:
    """Whether a seed's draw runs under Ray."""
    return seed % len(WHEEL) >= len(INLINE)


def drawn(seed: int, census: Census) -> Fault:
    """The fault of a seed."""
    return WHEEL[seed % len(WHEEL)](Random(seed), census)
