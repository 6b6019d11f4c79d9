"""The process of the command: a new one, or one forked from a process that has imported all it needs.

    python -m faults.child REQUEST.json     runs one command
    python -m faults.child                  forks a process for each request that comes as a line

A forked one costs a fraction of a second where a new one takes five. It ends as any process does, by Python's own end.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path

SECONDS = 120
"""After so long a command is ended by SIGALRM, which is none of the documented ends."""


def run(request: dict) -> None:
    """Become `python -m raysat.sweep`, or another command, with the fault of a request."""
    from faults import inject
    from faults.plans import Fault

    os.environ["FAULTS_DRIVER"] = str(os.getpid())
    inline = "--inline" in request["arguments"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(SECONDS)
    sys.argv = [request["module"], *request["arguments"]]
    inject.prepare(Fault.of(request["fault"]), request["work"], request["root"], request["plant"], inline=inline)
    if before := request.get("modules"):
        _note_modules(Path(before))
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _note_modules(path: Path) -> None:
    import atexit

    known = set(sys.modules)
    atexit.register(lambda: path.write_text("\n".join(sorted(set(sys.modules) - known))))


def serve() -> dict | None:
    """Fork a process for each request, and say how it ended. Returns the request in the forked one."""
    for line in sys.stdin:
        request = json.loads(line)
        for name in request.get("imports", ()):
            with suppress(Exception):
                importlib.import_module(name)
        if "module" not in request:
            print(json.dumps({"imported": True}), flush=True)
            continue
        process = os.fork()
        if not process:
            _redirect(request)
            return request
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"process": process, "code": status}), flush=True)
    return None


def _redirect(request: dict) -> None:
    for file, name, flags in ((0, os.devnull, os.O_RDONLY), (1, request["stdout"], os.O_WRONLY | os.O_CREAT),
                              (2, request["stderr"], os.O_WRONLY | os.O_CREAT)):  # fmt: skip
        opened = os.open(name, flags, 0o644)
        os.dup2(opened, file)
        os.close(opened)
    os.chdir(request["work"])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(json.loads(Path(sys.argv[1]).read_text()))
    else:
        import raysat.driver.loop
        import raysat.report  # noqa: F401

        if request := serve():
            run(request)
