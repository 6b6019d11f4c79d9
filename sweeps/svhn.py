"""The paper's figures 1, 2g and 2h: SVHN, fully connected, 3 hidden layers of 2000, squared loss.

    python -m raysat.sweep sweeps/svhn.py                                                   # 2g, 2h: 20,000 iterations
    python -m raysat.sweep sweeps/svhn.py --set name=svhn-100k --set iterations=100_000     # 1

From the paper: data, network, loss, iterations, one stepsize for all batch sizes. Chosen here, since the paper does not
say: the stepsize's size, preprocessing and initialization (as in mnist.py), the batch sizes, and the `theory` stepsize.

Cost at full size (dry run): 1.8e+18 operations in steps and 9e+15 in evaluations at 20,000 iterations, about 21 hours
of one H100-class GPU.

On two cores, in about three minutes (SVHN is downloaded, 246 MB):

    python -m raysat.sweep sweeps/svhn.py --set name=svhn-small --set n_train=500 --set widths=[256] \
        --set batch_sizes=[1,2,4,8,16,32,64,256] --set iterations=1000 --set seeds=2

Expected result: under `theory` b_N near b_star (which checks the code), under `fixed_fraction` an h that hardly varies
with b.
"""

from raysat import Sweep, fixed_fraction, mlp, powers_of_two, theory

sweep = Sweep(
    name="svhn",
    dataset="svhn",
    models=[mlp(depth=3, hidden_gain=2**0.5)],  # sqrt 2 keeps the ReLU's signal through the layers
    widths=[2_000],
    batch_sizes=powers_of_two(73_257),
    stepsizes=[fixed_fraction(), theory()],
    iterations=20_000,
    seeds=3,
)
