"""Batch size and asynchronous learners under one budget of samples: a residual CNN on CIFAR-10.

    python -m raysat.sweep sweeps/asgd.py
    python -m raysat.ablation results/asgd

Studies of mini-batch and asynchronous SGD under a fixed budget of samples find that larger batches and more learners
converge more slowly even before the asymptotic regime, by the mean squared gradient norm. Chosen here: the network, the
stepsize, the budget of ten passes, and learners that arrive in turn, so that the staleness is p - 1. `python -m
raysat.asgd sweeps/asgd.py --learners 4` runs real learners and stores the staleness they had, which `asynchronous(4,
[...])` takes (docs/neighbours.md).

Cost at full size (dry run): 1.3e+15 operations in steps and 9.7e+15 in evaluations, most of them for the gradient
norms: a quarter of an hour of one H100-class GPU.

On two cores, in about two minutes, on MNIST:

    python -m raysat.sweep sweeps/asgd.py --set name=asgd-small --set dataset=mnist --set preprocessing=center \
        --set n_train=2000 --set n_test=1000 --set 'models=[mlp(2,"relu",2**0.5)]' --set widths=[64] \
        --set 'stepsizes=[fixed(0.6)]' --set batch_sizes=[16,64,256] --set samples=24000 --set seeds=5 \
        --set 'trainings=[asynchronous(1),asynchronous(4),asynchronous(8)]'

Expected result: the mean squared gradient norm rises with b and with p in every cell, in each of the five seeds: 0.009,
0.029, 0.11 for b = 16, 64, 256 with one learner, and 0.009, 0.015, 0.068 for p = 1, 4, 8 at b = 16. The final loss
rises with b for every p and in every seed (0.21, 0.35, 0.63 with one learner). With p it does not: from one learner to
four it is unchanged at b = 16 and 64 and falls by 5 % at b = 256; from four to eight it rises by 11 and 12 % at b = 16
and 64, and falls by 10 % at b = 256, where, within 94 iterations, staleness acts like momentum. docs/neighbours.md has
the table. The stepsize is one at which p matters: at a fifth of it p makes almost no difference.
"""

from raysat import Sweep, asynchronous, fixed_fraction, resnet

sweep = Sweep(
    name="asgd",
    dataset="cifar10",
    preprocessing="standardize",  # by channel, as is usual for convolutions
    models=[resnet(depth=10)],
    widths=[16],
    batch_sizes=[16, 64, 256, 1024],
    stepsizes=[fixed_fraction()],  # one stepsize for all: what changes is b and p alone
    samples=500_000,  # ten passes
    trainings=[asynchronous(1), asynchronous(4), asynchronous(16)],  # one learner is SGD
    gradient_norm=True,  # the quantity of the theory
    evaluations=60,  # the mean of the gradient norm is taken over them
    evaluation_budget=10,  # all 60 of them, at more than the cost of the steps
    seeds=3,
)
