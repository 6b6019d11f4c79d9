"""Batch size and asynchronous learners under one budget of samples: a residual CNN on CIFAR-10.

    python -m raysat.sweep sweeps/asgd.py
    python -m raysat.ablation results/asgd

Studies of mini-batch and asynchronous SGD under a fixed budget of samples find that larger batches and more learners
converge more slowly even before the asymptotic regime, by the mean squared gradient norm. Ours: the network, the
stepsize, the budget of ten passes, and learners that arrive in turn, so that the staleness is p - 1.
`python -m raysat.asgd sweeps/asgd.py --learners 4` runs real learners and prints the staleness they had, which
`asynchronous(4, [...])` takes.

Cost at full size, by the dry run: 1.3e+15 operations in steps and 6.5e+14 in evaluations, a tenth of an hour of one
H100-class GPU; the gradient norms come on top: as many evaluations again, with a backward pass.

On two cores in some two minutes, on MNIST:

    python -m raysat.sweep sweeps/asgd.py --set name=asgd-small --set dataset=mnist --set preprocessing=center \
        --set n_train=2000 --set n_test=1000 --set 'models=[mlp(2,"relu",2**0.5)]' --set widths=[64] \
        --set 'stepsizes=[fixed(1.2)]' --set batch_sizes=[16,64,256] --set samples=8000 \
        --set 'trainings=[asynchronous(1),asynchronous(4),asynchronous(8)]'

What one should see there, at the end of the budget, with three seeds and 95 % intervals: by the mean squared gradient
norm 0.016, 0.040, 0.13 for b = 16, 64, 256 with one learner, and 0.016, 0.053, 1.5 for p = 1, 4, 8 at b = 16: it is
worse with p at every b, and with b but for p = 8 (1.54 at b = 16, 1.42 at b = 64); among stale runs the intervals are
as wide as the means. The loss rises with b for
every p (0.25, 0.41, 0.77 with one learner), and with p at b = 16 (0.25, 0.28, 0.37, intervals of 0.03) and b = 64
(0.41, 0.44, 0.49). At b = 256 it falls with p (0.77, 0.60, 0.56): in 31 iterations staleness acts as momentum does. The
stepsize was chosen because p shows there: at a tenth of it p makes hardly a difference.
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
    trainings=[asynchronous(1), asynchronous(4), asynchronous(16)],  # of one learner: SGD
    gradient_norm=True,  # the quantity of the theory
    evaluations=12,
    seeds=3,
)
