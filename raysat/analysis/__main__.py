"""`python -m raysat.analysis RESULTS/NAME`."""

import sys

from raysat.analysis.command import main

if __name__ == "__main__":
    sys.exit(main())
