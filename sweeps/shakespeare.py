"""The paper's figure 3: NanoGPT on the characters of tiny Shakespeare, loss curves by batch size.

    python -m raysat.sweep sweeps/shakespeare.py

From the paper (section 5): 6 layers, 6 heads, 384 channels, context 256, samples of 256 characters, cross-entropy.
Chosen here, since the paper does not say: 5,000 iterations, nanoGPT's own for characters; NTK parametrization; an
untied output layer (tied networks have no limit of infinite width, see `raysat.models.gpt`); the stepsizes. The theorem
is about the squared loss: under cross-entropy gamma and k_op are those of the generalized Gauss-Newton kernel, an
analogy.

Cost at full size (dry run): 1.9e+17 operations in steps and 1.9e+16 in evaluations, about 2.3 hours of one H100-class
GPU; thirteen days on two cores.

On two cores, in about three minutes:

    python -m raysat.sweep sweeps/shakespeare.py --set name=shakespeare-small --set n_train=32 --set n_test=8 \
        --set 'models=[gpt(layers=2, heads=2)]' --set widths=[32] --set batch_sizes=[1,2,4,8,32] --set iterations=100 \
        --set seeds=2

Expected result: losses from about 4.6 (log 65 is 4.17) to 3.1, curves that almost coincide, as in the paper's figure,
and the reason for it: b_star is 1.1, because all sequences of 256 characters are alike.
"""

from raysat import Sweep, fixed_fraction, gpt, theory

sweep = Sweep(
    name="shakespeare",
    dataset="tinyshakespeare",
    loss="cross_entropy",
    preprocessing="none",
    models=[gpt(layers=6, heads=6)],
    widths=[384],
    batch_sizes=[1, 2, 4, 8, 16, 32, 64, 128, 256],
    stepsizes=[fixed_fraction(), theory()],
    iterations=5_000,
    evaluations=20,  # one evaluation of all 3,921 sequences costs as much as a thousand steps at b = 1
    k_samples=256,
    seeds=2,
)
