"""Large batches and their remedies (Hoffer, Hubara and Soudry 2017): CIFAR-10, ResNet with batch normalization.

    python -m raysat.sweep sweeps/generalization.py
    python -m raysat.ablation results/generalization

Small batch and large batch, each remedy alone and together: ghost batch normalization (a model), square-root scaling of
the stepsize, multiplicative noise, and regime adaptation (trainings). For the small batch, which is the base batch, the
trainings are all the same. From the paper: momentum, a stepped schedule, b = 4,096 against b = 128, ghost batches of
128. Ours: the width and depth, the stepsize, and the number of epochs.

Cost at full size, by the dry run: 8.3e+17 operations in steps and 1.4e+16 in evaluations, some ten hours of one
H100-class GPU, of which the runs that adapt the regime are nearly all.

On two cores in some five minutes, fully connected on MNIST:

    python -m raysat.sweep sweeps/generalization.py --set name=generalization-small --set dataset=mnist \
        --set n_train=1024 --set n_test=2000 --set widths=[128] --set batch_sizes=[128,1024] --set epochs=40 \
        --set 'models=[mlp(2,"relu",norm="batch"),mlp(2,"relu",norm="batch",ghost=128)]'

What one should see there, with three seeds and 95 % intervals: test accuracy 0.861 ± 0.003 at b = 128, whatever the
training and the ghost size, and 0.735 ± 0.02 at b = 1,024 after the same 40 epochs, which are 40 iterations and leave
the training loss at 0.84. Square-root scaling brings 0.825 ± 0.014, noise alone nothing (0.725 ± 0.007); regime
adaptation brings 0.854 ± 0.011, with scaling 0.869 ± 0.014, and with scaling and noise 0.875 ± 0.009, above the small
batch. Ghost batches change none of these beyond the intervals, with regime adaptation or without. So here the large
batch's loss is one of iterations: the gap between training and test accuracy is no larger for it (0.03, and 0.14 for
the small one, which fits every sample). The distance from w_0 grows by 8.2 for each unit of log t at b = 128 and by 5.1
at b = 1,024; the line explains at least 90 % of its variance.
"""

from raysat import Sweep, Training, fixed, resnet

SMALL, LARGE = 128, 4096


def remedied(**remedies):
    return Training("momentum", schedule="step", base_batch=SMALL, **remedies)


sweep = Sweep(
    name="generalization",
    dataset="cifar10",
    preprocessing="standardize",
    models=[resnet(depth=28, norm="batch"), resnet(depth=28, norm="batch", ghost=SMALL)],
    widths=[16],
    batch_sizes=[SMALL, LARGE],
    stepsizes=[fixed(1.0)],
    epochs=80,
    trainings=[
        Training("momentum", schedule="step"),
        remedied(scaling="sqrt"),
        remedied(noise=True),
        remedied(adapt_regime=True),
        remedied(scaling="sqrt", adapt_regime=True),
        remedied(scaling="sqrt", noise=True, adapt_regime=True),
    ],
    loss="cross_entropy",
    seeds=3,
)
