"""The critical batch along training: a ResNet with batch normalization on CIFAR-10, momentum and augmentation.

    python -m raysat.sweep sweeps/branches.py

After Merrill et al. (2025, arXiv 2505.23971), who train language models: each run branches at some iterations t into
ones with batches of k b, with the stepsize scaled linearly, and b_crit(t) is the largest k b that loses no more than
5 % of the loss over a window of equally many samples. Chosen here: the window of two epochs, iterations, stepsize. The
recipe is that of He et al. (2016, section 4.2): momentum 0.9, images cropped from a border of four pixels and
mirrored. The theory makes no prediction for it.

Cost at full size (dry run): 1.7e+16 operations in steps and 4.7e+15 in evaluations, about half an hour of one
H100-class GPU; four days on two cores. Branches repeat the steps before t, so that those at the last t cost most.

On two cores, in about five minutes:

    python -m raysat.sweep sweeps/branches.py --set name=branches-small --set n_train=128 --set n_test=64 \
        --set 'models=[resnet(depth=10,norm="batch")]' --set widths=[4] --set batch_sizes=[8] --set iterations=200 \
        --set 'branches=Branches(at=[0,50,200],samples=512,draws=4,tolerance=0.05)'

Expected result: a section of the report, and the last sentence of the terminal, with b_crit(t) and the batch schedule
that follows it. This small, b_crit was 64 at t = 0 and 50, where one step is as good as another, and 8 [8, 32] at 200:
under linear scaling from 0.1 the large batches then take steps that are too large.
"""

from raysat import Branches, Sweep, Training, fixed, resnet

sweep = Sweep(
    name="branches",
    dataset="cifar10",
    preprocessing="standardize",
    loss="cross_entropy",
    models=[resnet(depth=28, norm="batch")],
    widths=[16],
    batch_sizes=[32],
    stepsizes=[fixed(0.1)],
    trainings=[Training("momentum", momentum=0.9, transform="raysat.data.augmentation:crop_and_flip")],
    iterations=5_000,
    n_train=49_152,
    evaluations=20,
    seeds=2,
    branches=Branches(at=[0, 50, 500, 5_000], samples=98_304, draws=4, tolerance=0.05),
)
