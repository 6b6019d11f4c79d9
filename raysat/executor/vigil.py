"""Notice that the driver's Ray has died, and report it before Ray's core silently ends the process.

If the raylet dies, the core of Ray 2.60 ends the driver some 14 seconds later, if the GCS dies, after a minute; both
times by `exit(1)` from its own thread, which Python cannot catch. So a thread watches the two processes and interrupts
the main thread as Ctrl-C does, while there is time to store the results so far. A parent process that watches the
driver would serve as well, but shells, batch systems and debuggers would then deal with two.
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
"""Seconds that the main thread has for storing results. Default: 5; it may be stuck in a call of Ray that waits for a
dead process, and Ray's core ends this one after some 14 seconds, sooner on a busy machine."""

LAST = 2.0
"""Further seconds for the process to end, if the main thread finished in time. Default: 2, as above; Ray's core would
end it with another exit code."""

NOTICE = 2.0
"""Seconds that the handler of a Ray error, which may notice the death first, waits for this thread to notice it."""

EXIT_CODE = 4
"""The exit code of a process whose main thread takes longer (`raysat.messages.ending.NO_CLUSTER`)."""

KNOCKS = 5.0
"""Seconds between two checks whether the GCS of a cluster elsewhere answers."""

SILENT = 45.0
"""Seconds without an answer after which it counts as dead. Default: 45; Ray's core gives it a minute."""


SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGINT) + 5 * hasattr(signal, "SIGRTMIN")
"""The signal that interrupts the main thread: a real-time signal without a meaning of its own."""


class Vigil:
    """Watches the processes of Ray on this machine, and the GCS of a cluster elsewhere.

    Args:
        processes: The ids, by name, of the Ray processes that the driver cannot do without.
        address: `host:port` of a GCS on another machine, or started by another process.
    """

    def __init__(self, processes: Mapping[str, int], address: str = "") -> None:
        self.processes, self.address = processes, address
        self.died = ""
        """The name of the process that died; empty as long as all live."""
        self._over, self._over_too = os.pipe()
        self._noticed, self._ended = threading.Event(), threading.Event()

    def __enter__(self) -> Vigil:
        if threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, signal.default_int_handler)  # KeyboardInterrupt is not caught as an error
        threading.Thread(target=self._watch, daemon=True, name="raysat-vigil").start()
        return self

    def __exit__(self, kind: type | None = None, *_: object) -> None:
        if kind and issubclass(kind, Exception) and not issubclass(kind, InputError):
            self._noticed.wait(NOTICE)
        os.write(self._over_too, b".")

    def relieve(self) -> None:
        """Note that the main thread is about to end the process with a message."""
        self._ended.set()

    @property
    def sentence(self) -> str:
        """What happened, as a sentence for users."""
        return f"Ray has died (its {self.died} is gone: killed, or this machine's memory or disk was full)"

    def _watch(self) -> None:
        watched = {}
        for name, process in self.processes.items():
            with suppress(OSError, AttributeError):  # already dead, or not on Linux, where the behaviour of Ray remains
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
        assert main is not None  # the main thread always exists
        signal.pthread_kill(main, SIGNAL)
        if self._ended.wait(GRACE):
            time.sleep(LAST)  # this daemon thread ends with the process
        print(f"raysat: {self.sentence}; what is finished stays: run the same command again.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def answers(address: str) -> bool:
    """Return whether anything listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True
