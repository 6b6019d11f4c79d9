"""The main experiment: b_N measured with tuned stepsizes, and what the network at initialization predicts. MNIST.

    python -m raysat.sweep sweeps/critical_batch.py
    python -m raysat.forecast sweeps/critical_batch.py      # the same from the initialization alone

Every batch size gets its own best stepsize, so that N(b) assumes nothing of the theory. The report gives two readings:
over all stepsizes, and over those at which the linearized network is stable. The paper has no such experiment: all
values are chosen here.

Cost at full size (dry run): 2.1e+14 operations in steps and 4.3e+13 in evaluations for the stepsizes it starts with.
Without races (`--set race=False`) it adds as many again: some 490 trials, six minutes of one H100-class GPU, or 44
minutes on two cores (busy with other work). benchmarks/README.md says what racing saves. Width 512 alone, in some
minutes:

    python -m raysat.sweep sweeps/critical_batch.py --set name=critical_batch-small --set widths=[512]

Expected result: gamma and k_op near 12 and 1.2, b_star near 10; among stable stepsizes b_N of 5 at width 512 and 10 at
2048; among all stepsizes the best ones lie far beyond 2/k_op and reach the target in a few iterations. What that does
to b_N, and how far off the forecast is, is in docs/reproduction.md.
"""

from raysat import Sweep, grid, mlp

sweep = Sweep(
    name="critical_batch",
    dataset="mnist",
    n_train=1_000,
    n_test=0,  # evaluations are most of the cost
    models=[mlp(depth=3, hidden_gain=2**0.5)],  # sqrt 2 keeps the ReLU's signal through the layers
    widths=[512, 2048],
    batch_sizes=[1, 2, 4, 8, 16, 32, 64, 256],
    stepsizes=[grid(auto=True)],
    evaluation_budget=100.0,  # all 30 evaluations at every b: they limit how well N(b) is known
    iterations=1_000,  # b = 1 reaches the target under 2/beta(1) in 700
    target_loss=0.6,  # an eighth of the initial loss; trials stop there
    targets=[0.6],
    spectrum=24,  # the forecast's N(b) is that of 64 products to four digits
    seeds=3,
)
