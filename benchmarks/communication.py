"""How well the model of the all-reduce predicts sizes that it was not fitted to.

    python -W ignore benchmarks/communication.py [--ranks 2] [--backend gloo]

Every second size is left out of the fit. It takes half a minute.
"""

from __future__ import annotations

import argparse

from raysat.allreduce import fit, measure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", default="gloo")
    options = parser.parse_args()
    measured = measure(options.ranks, [2**k for k in range(10, 25)], options.backend, repeats=100)
    link = fit(measured[::2])
    print(
        f"{options.backend}, {options.ranks} ranks: alpha = {1e6 * link.alpha:.1f} us, {link.bandwidth / 1e9:.2f} GB/s"
    )
    for k, one in enumerate(measured):
        predicted = link.seconds(one.size, one.ranks)
        use = "held out" if k % 2 else "fitted"
        print(
            f"{one.size:>10,} bytes: measured {1e6 * one.seconds:9.1f} us, model {1e6 * predicted:9.1f} us "
            f"({100 * (predicted / one.seconds - 1):+.0f} %), {use}"
        )


if __name__ == "__main__":
    main()
