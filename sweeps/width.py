"""Theorem 4.2: what becomes exact as the network gets wider. MNIST, fully connected, widths 64 to 4096.

    python -m raysat.sweep sweeps/width.py

Besides the fits it prints, for each width, b_star and its spread over seeds, the drift of the kernel
`||K(w_T) - K(w_0)|| / ||K(w_0)||`, and how far the convergence exponent of the network is from that of its
linearization (a network in its own right: `linearized(mlp())`, the same weights, the same batches).

The paper has no such experiment: all values are chosen here.

Cost at full size (dry run): 2.4e+14 operations in steps and 3.3e+14 in evaluations, two minutes of one H100-class GPU,
or two hours on two cores; the statistics at width 4096 take a few minutes more each.

On two cores, in about five minutes:

    python -m raysat.sweep sweeps/width.py --set name=width-small --set n_train=250 --set widths=[256,1024,4096] \
        --set batch_sizes=[1,4,16] --set iterations=100 --set ntk_at=[100] --set seeds=2

Expected result: a drift of about 24 %, 10 % and 3 %, an error of the linearization of about 6 %, 3 % and 1 %, and a
b_star near 9 at every width.
"""

from raysat import Sweep, linearized, mlp, theory

network = mlp(depth=3, hidden_gain=2**0.5)

sweep = Sweep(
    name="width",
    dataset="mnist",
    n_train=1_000,
    models=[network, linearized(network)],
    widths=[64, 128, 256, 512, 1024, 2048, 4096],
    batch_sizes=[1, 4, 16, 64, 256],
    stepsizes=[theory()],
    iterations=300,
    ntk_at=[300],
    seeds=3,
)
