"""The paper's figure 2a and 2b: MNIST, fully connected, 3 hidden layers of 1000, squared loss, 4,000 iterations.

    python -m raysat.sweep sweeps/mnist.py

From the paper (section 5): data, network, loss, iterations, one stepsize for all batch sizes. Chosen here, since the
paper does not say: the stepsize's size, the preprocessing, the initialization (its section 4 with the gain of He et al.
for ReLU), the batch sizes, the widths beside 1000, and the `theory` stepsize, without which saturation cannot be seen.

Cost at full size (dry run): 6.4e+16 operations in steps and 1.7e+15 in evaluations, about an hour of one H100-class
GPU; four days on two cores.

On two cores, in about five minutes:

    python -m raysat.sweep sweeps/mnist.py --set n_train=1000 --set widths=[512] \
        --set batch_sizes=[1,2,4,8,16,32,64,256] --set 'stepsizes=[theory()]' --set evaluation_budget=100

Expected result: b_N within 15 % of b_star, both about 10. That checks the code, not the theory: under `theory` the
stepsize is made from beta(b), and N(b) follows beta(b) wherever noise is small.
"""

from raysat import Sweep, fixed_fraction, mlp, powers_of_two, theory

sweep = Sweep(
    name="mnist",
    dataset="mnist",
    preprocessing="center",  # the mean image would be a direction of its own in the kernel
    models=[mlp(depth=3, hidden_gain=2**0.5)],  # the paper's network; sqrt 2 keeps the ReLU's signal through the layers
    widths=[250, 500, 1000],  # the paper's is 1000; the others show how b_star depends on width
    batch_sizes=powers_of_two(60_000),  # 1, 2, 4, ..., 32768 and n itself: full-batch gradient descent
    stepsizes=[fixed_fraction(), theory()],  # the paper's one stepsize for all b: the largest stable at b = 1
    iterations=4_000,
    seeds=3,
)
