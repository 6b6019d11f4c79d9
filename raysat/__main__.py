"""The command `raysat`, and `python -m raysat`: one name for all commands, each of which is a module too."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

import raysat

COMMANDS = {
    "run": ("sweep", "run a sweep file; the same command again runs only what is missing"),
    "status": ("status", "how a sweep stands, from another terminal or machine"),
    "forecast": ("forecast", "the loss curves of a sweep from its initialization alone, without training"),
    "analysis": ("analysis.command", "fit the critical batch sizes of a sweep and print them"),
    "report": ("report.__main__", "the figures and the page of a sweep, or of a folder of sweeps"),
    "doctor": ("doctor", "whether a results folder is sound, and what to do if not"),
    "ablation": ("ablation", "what each way of training ends with"),
    "asgd": ("asgd", "real asynchronous learners beside their simulation"),
    "communication": ("communication", "speed-up and cost for many workers"),
    "allreduce": ("allreduce", "measure the time of an all-reduce"),
    "columns": ("schema", "print every column of every table"),
}
"""What a user types: the module that has its `main`, and what it does."""


def main() -> int:
    """Run the command that the first argument names. Returns its exit code."""
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
    module, _ = COMMANDS[options.command]
    # A command without arguments of its own takes those of the process, which ends with it.
    sys.argv = [f"raysat {options.command}", *options.arguments]
    if not sys.flags.safe_path and os.getcwd() not in sys.path:  # modules are found as by `python -m`
        sys.path.insert(0, os.getcwd())
    return import_module(f"raysat.{module}").main()


if __name__ == "__main__":
    sys.exit(main())
