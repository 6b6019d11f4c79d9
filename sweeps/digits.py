"""Two stepsize policies on scikit-learn's handwritten digits, in half a minute on two cores, without a download.

python -m raysat.sweep sweeps/digits.py

Expected result: under `theory` b_N close to b_star, which checks the code (the stepsize is made from beta(b)); under
`fixed_fraction` an h that hardly varies with b: one stepsize for every batch size hides saturation.
"""

from raysat import Sweep, fixed_fraction, mlp, powers_of_two, theory

sweep = Sweep(
    name="digits",
    dataset="digits",
    n_train=512,  # so that b = n takes seconds
    models=[mlp(depth=3, hidden_gain=2**0.5)],  # three hidden layers as in the paper; sqrt 2 keeps the ReLU's signal
    widths=[128, 256],
    batch_sizes=powers_of_two(512),
    stepsizes=[fixed_fraction(), theory()],
    iterations=400,  # b = 1 reaches a third of its initial loss
    evaluation_budget=10,  # all 30 evaluations at b = 1 too, on which b_N rests most; here they take no time
    seeds=3,
)
