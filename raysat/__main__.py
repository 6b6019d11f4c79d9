"""The command `raysat`, and `python -m raysat`: one name for all commands, each of which is a module too."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

import raysat

COMMANDS = {
    "run": ("sweep:from_shell", "run a sweep file; the same command again runs only what is missing"),
    "status": ("status:main", "how a sweep stands, from another terminal or machine"),
    "forecast": ("forecast:main", "the loss curves of a sweep from its initialization alone, without training"),
    "analysis": ("analysis.command:main", "fit the critical batch sizes of a sweep and print them"),
    "report": ("report.__main__:main", "the figures and the page of a sweep, or of a folder of sweeps"),
    "doctor": ("doctor:main", "whether a results folder is sound, and what to do if not"),
    "ablation": ("ablation:main", "what each way of training ends with"),
    "asgd": ("asgd:main", "real asynchronous learners beside their simulation"),
    "communication": ("communication:main", "speed-up and cost for many workers"),
    "allreduce": ("allreduce:main", "measure the time of an all-reduce"),
    "columns": ("schema:main", "print every column of every table"),
}
"""The function and the description of each command, by name."""


def main() -> int:
    """Run the command that the first argument names, and return its exit code."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {does}" for name, (_, does) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="raysat",
        description=raysat.__doc__,
        epilog=f"commands:\n{commands}\n\n'raysat COMMAND --help' has the arguments of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"raysat {raysat.__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="of the command")
    options = parser.parse_args(sys.argv[1:])
    module, function = COMMANDS[options.command][0].split(":")
    # Commands read the arguments of the process, which ends with them.
    sys.argv = [f"raysat {options.command}", *options.arguments]
    if not sys.flags.safe_path and os.getcwd() not in sys.path:  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    return getattr(import_module(f"raysat.{module}"), function)()


if __name__ == "__main__":
    sys.exit(main())
