"""The columns of the tables (`raysat.storage.schema`), under the name that documents and scripts have."""

from raysat.storage.schema import *  # noqa: F403
from raysat.storage.schema import as_markdown

if __name__ == "__main__":
    print(as_markdown(), end="")
