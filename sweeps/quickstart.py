"""All of raysat in a minute on two cores: scikit-learn's handwritten digits, no download.

python -m raysat.sweep sweeps/quickstart.py

Expected result: the first line says which batch size to use, and how certain that is. It is measured: at each batch
size stepsizes are tried until the best one lies between worse ones, and batch sizes are added until b_N is known within
a factor of two. b_star, predicted before training, is printed next to it.
"""

from raysat import Sweep, grid, mlp, powers_of_two

sweep = Sweep(
    name="quickstart",
    dataset="digits",
    n_train=512,  # so that b = n takes seconds
    models=[mlp(depth=3, hidden_gain=2**0.5)],  # three hidden layers as in the paper; sqrt 2 keeps the ReLU's signal
    widths=[256],
    batch_sizes=powers_of_two(512),
    stepsizes=[grid(auto=True)],
    adaptive=True,
    interval_ratio=2.0,  # until the ends of b_N's interval are within a factor of 2
    targets=[0.05],  # a hundredth of the initial loss, three epochs away at the critical batch size
    target_loss=0.05,  # trials stop there
    iterations=6_000,
    evaluation_budget=10,  # evaluations at b = 1 too, on which b_N rests most; here they take no time
    seeds=3,
)
