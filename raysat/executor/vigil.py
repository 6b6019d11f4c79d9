"""Notices that the Ray of a driver has died, and says so in place of Ray's core, which ends the process without a word.

Where the raylet is gone the core of Ray 2.60 ends the driver some 14 seconds later, where the GCS is gone after a
minute, in both cases by `exit(1)` from a thread of its own, past all that Python could do. So a thread watches the two
processes and interrupts the main thread as Ctrl-C does, while there is time to store what has come. A parent process
that watches the driver would serve as well, but shells, batch systems and debuggers would then deal with two.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from raysat.errors import InputError

GRACE = 5.0
"""Seconds that the main thread has for storing what has come. Default: 5; it may be held in a call of Ray's that waits
for what has died, and Ray's core ends the process from some 14 seconds on, sooner on a machine that is busy."""

LAST = 2.0
"""Seconds more until the process is to have ended, where the main thread came to its end in time. Default: 2, as above;
Ray's core would end it with another code."""

NOTICE = 2.0
"""Seconds that an error of Ray's, which may have seen a loss first, waits for this thread to see it as well."""

EXIT_CODE = 4
"""Of a process whose main thread takes longer (`raysat.messages.ending.NO_CLUSTER`)."""

KNOCKS = 5.0
"""Seconds between two looks whether the GCS of somebody else's cluster answers."""

SILENT = 45.0
"""Seconds after which one that does not is taken for dead. Default: 45; Ray's core gives it a minute."""


SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGINT) + 5 * hasattr(signal, "SIGRTMIN")
"""What interrupts the main thread: one of the signals that stand for nothing."""


class Vigil:
    """Watches the processes of Ray on this machine, and the GCS of a cluster elsewhere.

    Args:
        processes: Of Ray's processes that the driver cannot do without, the ids by name.
        address: `host:port` of a GCS that is no process of this machine's, or of somebody else.
    """

    def __init__(self, processes: Mapping[str, int], address: str = "") -> None:
        self.processes, self.address = processes, address
        self.died = ""
        """Which of them has; empty as long as all live."""
        self._over, self._over_too = os.pipe()
        self._noticed, self._ended = threading.Event(), threading.Event()

    def __enter__(self) -> Vigil:
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, signal.default_int_handler)  # which passes through what catches errors
        threading.Thread(target=self._watch, daemon=True, name="raysat-vigil").start()
        return self

    def __exit__(self, kind: type | None = None, *_: object) -> None:
        if kind and issubclass(kind, Exception) and not issubclass(kind, InputError):
            self._noticed.wait(NOTICE)
        os.write(self._over_too, b".")

    def relieve(self) -> None:
        """The main thread has come so far that the process will end in words."""
        self._ended.set()

    @property
    def sentence(self) -> str:
        """What has happened, for a person."""
        return f"Ray has died (its {self.died} is gone: killed, or this machine's memory or disk was full)"

    def _watch(self) -> None:
        watched = {}
        for name, process in self.processes.items():
            with suppress(OSError, AttributeError):  # it has died already; not on Linux, where Ray's own end is left
                watched[os.pidfd_open(process)] = name
        silent_since = None
        while not self.died:
            ready, _, _ = select.select([*watched, self._over], [], [], KNOCKS if self.address else None)
            if self._over in ready:
                return
            if ready:
                self.died = watched[ready[0]]
            elif answers(self.address):
                silent_since = None
            else:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > SILENT:
                    self.died = f"GCS at {self.address}"
        self._noticed.set()
        main = threading.main_thread().ident
        assert main is not None  # it has been started
        signal.pthread_kill(main, SIGNAL)
        if self._ended.wait(GRACE):
            time.sleep(LAST)  # a process that ends takes this thread with it
        print(f"raysat: {self.sentence}; what is finished stays: run the same command again.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def answers(address: str) -> bool:
    """Return whether somebody listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
