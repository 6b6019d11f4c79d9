"""Theorem 3.2 itself: linear least squares with a known power-law spectrum, gamma and k_op in closed form.

    python -m raysat.sweep sweeps/linear.py

It takes half a minute on two cores. Expected result: gamma and k_op as in `raysat.data.linear_problem` (k_op = 1
exactly); under `theory` N(b) follows beta(b), b_N near b_star; under `fixed_fraction` next to no saturation. Nothing
here is an approximation: the mean loss over seeds obeys an exact recursion, against which the tests check it.
"""

from raysat import Sweep, fixed_fraction, linear, powers_of_two, theory

sweep = Sweep(
    name="linear",
    dataset="linear(n=256, d=64, power=1.0)",
    preprocessing="none",  # centring would change the spectrum
    models=[linear()],
    batch_sizes=powers_of_two(256),
    stepsizes=[fixed_fraction(), theory()],
    iterations=2_000,
    dtype="float64",
    dense_samples=256,  # for the tight gamma of eq. 3.2
    seeds=5,
)
