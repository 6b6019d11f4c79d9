"""The paper's figures 2c to 2f: CIFAR-10, ResNet-28, squared loss, 12,000 and 100,000 iterations.

    python -m raysat.sweep sweeps/cifar.py
    python -m raysat.sweep sweeps/cifar.py --set name=cifar-100k --set iterations=100_000

From the paper (section 5): data, depth, loss, iterations, one stepsize for all batch sizes. Chosen here, since the
paper does not say: the base width (16, the narrowest ResNet-28 of Zagoruyko and Komodakis, and 64), GroupNorm
(BatchNorm mixes the samples of a batch, so that a sample has no gradient of its own), the stepsize's size, the
preprocessing, the batch sizes, and the `theory` stepsize, without which saturation cannot be seen.

Cost at full size (dry run): 4.6e+19 operations in steps and 3.4e+17 in evaluations at 12,000 iterations, about 520
hours of one H100-class GPU. Nearly all of it is for the large batches: b up to 1,024 takes about twelve.

On two cores, in about three minutes:

    python -m raysat.sweep sweeps/cifar.py --set name=cifar-small --set n_train=128 --set widths=[8] \
        --set batch_sizes=[1,4,16,64] --set iterations=150 --set seeds=2

Expected result: b_star about 4, and an h that varies by some 20 % under `theory` and 10 % under `fixed_fraction`, with
intervals as wide: two seeds and 150 iterations only show that it runs.
"""

from raysat import Sweep, fixed_fraction, powers_of_two, resnet, theory

sweep = Sweep(
    name="cifar",
    dataset="cifar10",
    preprocessing="standardize",  # by channel, as is usual for convolutions; `center` would differ by pixel
    models=[resnet(depth=28)],
    widths=[16, 64],
    batch_sizes=powers_of_two(50_000),
    stepsizes=[fixed_fraction(), theory()],
    iterations=12_000,
    k_samples=2_048,
    seeds=3,
)
