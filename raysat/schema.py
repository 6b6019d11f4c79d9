"""The columns of the tables (`raysat.storage.schema`), under the name that documents and scripts use."""

import argparse
import sys

from raysat.messages.command import program
from raysat.storage.columns import as_markdown
from raysat.storage.schema import *  # noqa: F403


def main() -> int:
    """Print every column of every table as Markdown, for docs/columns.md."""
    argparse.ArgumentParser(
        prog=program("raysat.schema"), description="Print every column of every table."
    ).parse_args()
    print(as_markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
