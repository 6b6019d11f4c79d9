"""Statistics of networks drawn from the grammar of `tests/grammar.py`: how many are right, refused, or wrong.

    python benchmarks/fuzz.py [--draws 500] [--seed 0]

Every second draw is computed in float32. A number is right to 1e-6 in float64 and to 2e-4 in float32, against plain
reverse-mode autograd of one sample and one output at a time; a refusal counts as one only where its reason is true of
the network, else as wrong. It ends with exit code 1 where a number is wrong or more than 5 % are refused. It needs the
extra `test`, and takes some five minutes on two cores for 500 draws.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing import judge
from grammar import Drawn, networks


def main() -> int:
    """Draw, judge, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500, help="networks")
    parser.add_argument("--seed", type=int, default=0, help="of hypothesis")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    words: Counter[str] = Counter()
    reasons: Counter[str] = Counter()

    @hypothesis.seed(options.seed)
    @hypothesis.settings(
        max_examples=options.draws,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(networks())
    def draws(drawn: Drawn) -> None:
        verdict = judge(drawn, (torch.float64, torch.float32)[words.total() % 2])
        words[verdict.word] += 1
        if verdict.word == "refused":
            reasons[verdict.why] += 1
        if verdict.word == "wrong":
            print(f"wrong: {verdict.why}\n  {drawn}", flush=True)

    begun = time.perf_counter()
    draws()
    total = words.total()
    print(f"seed {options.seed}, {total} networks, {time.perf_counter() - begun:.0f} s, torch {torch.__version__}:")
    for word in ("right", "refused", "wrong", "nothing to compare"):
        print(f"  {word}: {words[word]} ({words[word] / total:.1%})")
    for reason, count in reasons.most_common():
        print(f"  refused {count}: {reason}")
    return int(words["wrong"] > 0 or words["refused"] > 0.05 * total)


if __name__ == "__main__":
    sys.exit(main())
